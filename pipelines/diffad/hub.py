"""A trained pipeline as a complete repository of the Hugging Face Hub: written to a folder, and uploaded."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .model_card import DataTerms, Evaluation, model_card, read_evaluation
from .model_index import with_installed_classes, with_repository_code
from .remote_code import FILE_PREFIX, code_module_name, component_code, component_module_name, single_file_code

if TYPE_CHECKING:
    from .pipeline_diffad import DiffADPipeline

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
        repo_id: `owner/name`.
        evaluations: output folders of evaluations, for the card.
        terms: licence and origin of the training images, for the card.
        private: whether a new repository is private; None is the owner's default.
        token: of the Hub; None is the one of `hf auth login`.
        commit_message: None names the version of diffad.

    Returns:
        The repository's address.

    Raises:
        ValueError: as `export_repo`.
        huggingface_hub.errors.HfHubHTTPError: if the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    from . import __version__

    validate_repo_id(repo_id)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        export_repo(model, folder, evaluations, terms, repo_id)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=url.repo_id,
            commit_message=commit_message or f"Upload with diffad {__version__}",
            # Code of an earlier upload, which the new model_index.json doesn't name.
            delete_patterns=f"*{FILE_PREFIX}*.py",
        )
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
            can't be written (see [`diffad.model_card.model_card`]).
    """
    from . import __version__

    folder = Path(folder)
    read = [read_evaluation(path) for path in evaluations]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: not an empty folder")
    if isinstance(model, str | Path):
        source = Path(model)
        config = _saved_pipeline(source)
        _copy_pipeline(source, folder, config)
    else:
        # Where it was loaded from lie the settings that it was trained with.
        source = Path(model.config.get("_name_or_path") or "")
        model.save_pretrained(folder)
        config = _saved_pipeline(folder)
    configs = {name: _remove_paths(folder, name) for name in _components(config)}
    if not configs["calibration"]["num_normals"]:
        raise ValueError("the pipeline is not calibrated: call pipe.calibrate(normal_images) first")

    code_module = _write_code(folder, config, __version__)
    training = _read_json(source / TRAINING_CONFIG)
    if training is not None:
        training = {key: value for key, value in training.items() if key not in LOCAL_SETTINGS}
        for key in ("data", "pretrained_unet"):
            if training[key] is not None and (Path(training[key]).is_absolute() or Path(training[key]).exists()):
                training[key] = Path(training[key]).resolve().name
        _write_json(folder / TRAINING_CONFIG, training)
    card = model_card(
        repo_id or folder.name,
        configs,
        __version__,
        code_module,
        read,
        [_copy_sheet(evaluation, folder) for evaluation in read],
        training,
        _read_json(source / TRAINING_SUMMARY),
        terms,
    )
    (folder / "README.md").write_text(f"{card}\n", encoding="utf-8")


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
    return {name: value for name, value in config.items() if isinstance(value, list)}


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


def _copy_sheet(evaluation: Evaluation, folder: Path) -> str:
    """Copies the sample pictures and returns their place in the repository; empty where there are none."""
    if evaluation.sheet is None:
        return ""
    name = f"samples/{evaluation.data}.png"
    (folder / "samples").mkdir(exist_ok=True)
    shutil.copyfile(evaluation.sheet, folder / name)
    return name


def _read_json(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
