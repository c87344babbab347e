"""Uploads a folder to the Hub in one commit."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError  # the HTTP library's, whichever the Hub's client uses

from .single_file import FILE_PREFIX


def upload(
    folder: Path, repo_id: str, message: str, private: bool | None = None, token: str | None = None, is_space: bool = False
) -> str:
    """Uploads what a folder holds, and creates the repository where there is none.

    Args:
        repo_id: `owner/name`, or `name` for one of your own.
        private: whether a new repository is private; None is the owner's default.
        token: of the Hub; None is the one of `hf auth login`.
        is_space: a Space with Gradio instead of a model.

    Returns:
        The repository's address.

    Raises:
        ConnectionError: if the Hub can't be reached or refuses.
    """
    api = HfApi(token=token)
    kind = {"repo_type": "space"} if is_space else {}
    sdk = {"space_sdk": "gradio"} if is_space else {}
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True, **kind, **sdk)
        # One commit, where upload_folder may make several: nobody loads half a model.
        operations = _operations(folder, api.list_repo_files(url.repo_id, **kind))
        api.create_commit(url.repo_id, operations, commit_message=message, **kind)
    except (HTTPError, OSError, RuntimeError) as error:
        raise ConnectionError(f"{repo_id} could not be uploaded to {api.endpoint}: {_reason(error)}") from error
    return str(url)


def _operations(folder: Path, present: Sequence[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # Code of an earlier upload, which the new model_index.json doesn't name.
    stale = [name for name in present if Path(name).name.startswith(FILE_PREFIX) and name not in paths]
    return [CommitOperationAdd(name, path) for name, path in paths.items()] + [CommitOperationDelete(name) for name in stale]


def _reason(error: Exception) -> str:
    reason = getattr(error, "server_message", None) or str(error).partition("\n")[0]
    response = getattr(error, "response", None)
    refused = response is not None and response.status_code in (401, 403)
    return f"{reason} (log in with `hf auth login`, with a token that may write)" if refused else reason
