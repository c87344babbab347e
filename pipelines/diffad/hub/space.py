"""A Space of the Hub: a page that inspects parts with a pushed model."""

import json
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from .. import __version__
from .services import REQUIREMENTS, pinned_requirements
from .upload import upload

APP = "app.py"
PLACEHOLDER = 'MODEL = "OWNER/NAME"'


def push_space(space_id: str, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads the Space of a model, and creates it where there is none.

    Args:
        space_id, repo_id: of the Space and of the model, `owner/name` each. A private model needs its token as a secret
            `HF_TOKEN` of the Space.
        private: whether a new Space is private; None is the owner's default.
        token: of the Hub; None is the one of `hf auth login`.

    Returns:
        The Space's address.

    Raises:
        ModuleNotFoundError: if Gradio is not installed, whose version the Space names.
        ConnectionError: if the Hub can't be reached or refuses.
    """
    validate_repo_id(space_id)
    with tempfile.TemporaryDirectory() as scratch:
        write_space(Path(scratch), space_id, repo_id)
        return upload(Path(scratch), space_id, f"Upload with diffad {__version__}", private, token, is_space=True)


def write_space(folder: Path, space_id: str, repo_id: str) -> None:
    """Writes what a Space consists of: the page, the versions that it needs, and the settings in the README's head.

    Raises:
        ModuleNotFoundError: if Gradio is not installed, whose version the Space names.
    """
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        raise ModuleNotFoundError("a Space names the version of Gradio: pip install 'diffad[app]'", name="gradio") from None
    folder.mkdir(parents=True, exist_ok=True)
    page = (Path(__file__).parent / "templates" / "space_app.py").read_text(encoding="utf-8")
    (folder / APP).write_text(page.replace(PLACEHOLDER, f"MODEL = {json.dumps(repo_id)}"), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in pinned_requirements()), encoding="utf-8")
    settings = {
        "title": space_id.rpartition("/")[2],
        "sdk": "gradio",
        "sdk_version": gradio,
        "app_file": APP,
        "models": [repo_id],
    }
    # JSON is YAML, too.
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
    (folder / "README.md").write_text(f"---\n{head}---\n\nInspects parts with the model {repo_id}.\n", encoding="utf-8")
