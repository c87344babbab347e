"""A trained pipeline as a complete repository of the Hugging Face Hub: written to a folder, and uploaded."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError  # the HTTP library's, whichever the Hub's client uses
from huggingface_hub.utils import validate_repo_id

from ..model_index import with_installed_classes, with_repository_code
from .card import DataTerms, Evaluation, images_per_category, model_card, read_evaluation
from .single_file import FILE_PREFIX, code_module_name, component_code, component_module_name, single_file_code

if TYPE_CHECKING:
    from ..pipeline_diffad import DiffADPipeline

MODEL_INDEX = "model_index.json"
TRAINING_CONFIG, TRAINING_SUMMARY = "training_config.json", "training_summary.json"
# Settings that name folders of the machine, or how a run was carried out and not what comes of it.
LOCAL_SETTINGS = ("output_dir", "cache_dir", "resume_from_checkpoint", "report_to")


def push(
    model: "DiffADPipeline | str | Path",
    repo_id: str,
    evaluations: Sequence[str | Path] = (),
    terms: DataTerms | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Uploads a model to the Hub in one commit, and creates the repository where there is none.

    Args:
        model: a pipeline, or the folder of a trained one.
        repo_id: `owner/name`, or `name` for one of your own.
        evaluations: output folders of evaluations, for the card.
        terms: licence and origin of the training images, for the card.
        private: whether a new repository is private; None is the owner's default.
        token: of the Hub; None is the one of `hf auth login`.
        commit_message: None names the version of diffad.

    Returns:
        The repository's address.

    Raises:
        ValueError: as `export_repo`.
        ConnectionError: if the Hub can't be reached or refuses.
    """
    from .. import __version__

    validate_repo_id(repo_id)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository"
        export_repo(model, folder, evaluations, terms, repo_id)
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            # One commit, where upload_folder may make several: nobody loads half a model.
            api.create_commit(
                url.repo_id,
                _upload_operations(folder, api.list_repo_files(url.repo_id)),
                commit_message=commit_message or f"Upload with diffad {__version__}",
            )
        except (HTTPError, OSError, RuntimeError) as error:
            raise ConnectionError(f"{repo_id} could not be uploaded to {api.endpoint}: {_reason(error)}") from error
    return str(url)


def export_repo(
    model: "DiffADPipeline | str | Path",
    folder: str | Path,
    evaluations: Sequence[str | Path] = (),
    terms: DataTerms | None = None,
    repo_id: str | None = None,
) -> None:
    """Writes a repository: safetensors, configurations, code, card and sample pictures. Asks no network.

    Args:
        model: a pipeline, or the folder of a trained one; weights of a folder are copied as they are.
        folder: where to; created, and must be empty.
        evaluations: output folders of evaluations, for the card.
        terms: licence and origin of the training images, for the card.
        repo_id: name that the card uses; None is the folder.

    Raises:
        ValueError: if the folder is not empty, `model` is no complete pipeline with safetensors and a calibration, or the card
            can't be written (see [`diffad.hub.card.model_card`]).
    """
    folder = Path(folder)
    read = [read_evaluation(path) for path in evaluations]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: not an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder until it is complete.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "repository"
        _write_repo(model, unfinished, read, terms, repo_id or folder.name)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)


def _write_repo(model, folder: Path, evaluations: Sequence[Evaluation], terms: DataTerms | None, repo_id: str) -> None:
    from .. import __version__

    if isinstance(model, str | Path):
        source = Path(model)
        config = _saved_pipeline(source)
        _copy_pipeline(source, folder, config)
    else:
        # Where it was loaded from lie the settings that it was trained with.
        loaded_from = model.config.get("_name_or_path")
        source = Path(loaded_from) if loaded_from else None
        model.save_pretrained(folder)
        config = _saved_pipeline(folder)
    configs = {name: _remove_paths(folder, name) for name in _components(config)}
    if 0 in images_per_category(configs["calibration"]["num_calibration_images"]):
        raise ValueError("the pipeline is not calibrated: call pipe.calibrate(normal_images) first")

    code_module = _write_code(folder, config, __version__)
    training, summary = (_read_json(source / name) if source else None for name in (TRAINING_CONFIG, TRAINING_SUMMARY))
    if training is not None:
        training = _without_paths(training)
        _write_json(folder / TRAINING_CONFIG, training)
    card = model_card(
        repo_id,
        configs,
        __version__,
        code_module,
        evaluations,
        _copy_sheets(evaluations, folder),
        training,
        summary,
        terms,
    )
    (folder / "README.md").write_text(f"{card}\n", encoding="utf-8")


def _upload_operations(folder: Path, present: Sequence[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # Code of an earlier upload, which the new model_index.json doesn't name.
    stale = [name for name in present if Path(name).name.startswith(FILE_PREFIX) and name not in paths]
    return [CommitOperationAdd(name, path) for name, path in paths.items()] + [CommitOperationDelete(name) for name in stale]


def _reason(error: Exception) -> str:
    reason = getattr(error, "server_message", None) or str(error).partition("\n")[0]
    response = getattr(error, "response", None)
    refused = response is not None and response.status_code in (401, 403)
    return f"{reason} (log in with `hf auth login`, with a token that may write)" if refused else reason


def _saved_pipeline(folder: Path) -> dict:
    """model_index.json of a pipeline, which must be complete."""
    config = _read_json(folder / MODEL_INDEX)
    if config is None:
        raise ValueError(f"{folder}: no {MODEL_INDEX}; give the folder of a trained pipeline")
    config = with_installed_classes(config)
    if config["_class_name"] != "DiffADPipeline":
        raise ValueError(f"{folder}: a {config['_class_name']}, not a DiffADPipeline")
    for name, (library, _) in _components(config).items():
        # Of the components only the scheduler, which is diffusers' own, has no weights.
        needed = ("*.json",) if library == "diffusers" else ("*.json", "*.safetensors")
        for pattern in needed:
            if not any((folder / name).glob(pattern)):
                raise ValueError(f"{folder / name}: no {pattern}; the pipeline is not complete")
    return config


def _components(config: dict) -> dict[str, list[str]]:
    # An optional component that is not there has an entry of nulls.
    return {name: value for name, value in config.items() if isinstance(value, list) and value[0] is not None}


def _copy_pipeline(source: Path, folder: Path, config: dict) -> None:
    for name in _components(config):
        (folder / name).mkdir(parents=True)
        for pattern in ("*.json", "*.safetensors"):
            for path in (source / name).glob(pattern):
                shutil.copyfile(path, folder / name / path.name)


def _remove_paths(folder: Path, component: str) -> dict:
    """Configuration of a component, from which the folder that it was once loaded from is removed."""
    (path,) = (folder / component).glob("*config.json")
    config = json.loads(path.read_text())
    if config.pop("_name_or_path", None) is not None:
        _write_json(path, config)
    return config


def _without_paths(training: dict) -> dict:
    """Settings of a training run without the machine's folders; of those that it read only the name is left."""
    kept = {key: value for key, value in training.items() if key not in LOCAL_SETTINGS}
    for key in ("data", "pretrained_unet"):
        if kept[key] is not None and (Path(kept[key]).is_absolute() or Path(kept[key]).exists()):
            kept[key] = Path(kept[key]).resolve().name
    return kept


def _write_code(folder: Path, config: dict, version: str) -> str:
    """Writes code and model_index.json; returns the code's module name."""
    code = single_file_code(version)
    module = code_module_name(code)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    own = {name: class_name for name, (library, class_name) in _components(config).items() if library == "diffad"}
    components = component_code(module, own.values())
    for name in own:
        (folder / name / f"{component_module_name(module)}.py").write_text(components, encoding="utf-8")
    config = {key: value for key, value in config.items() if key != "_name_or_path"}
    _write_json(folder / MODEL_INDEX, with_repository_code(config, module, component_module_name(module)))
    return module


def _copy_sheets(evaluations: Sequence[Evaluation], folder: Path) -> list[str]:
    """Copies the sample pictures and returns their places in the repository, empty where there are none."""
    places: list[str] = []
    for evaluation in evaluations:
        if evaluation.sheet is None:
            places.append("")
            continue
        # Folders of test images may have one name, say those of two production lines.
        names = (f"{evaluation.data}{number}" for number in ("", *(f"-{i}" for i in range(2, len(evaluations) + 1))))
        places.append(next(place for name in names if (place := f"samples/{name}.png") not in places))
        (folder / "samples").mkdir(exist_ok=True)
        shutil.copyfile(evaluation.sheet, folder / places[-1])
    return places


def _read_json(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
