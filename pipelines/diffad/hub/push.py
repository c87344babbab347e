"""A trained pipeline as a complete repository of the Hugging Face Hub: written to a folder, and uploaded."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..jobs.history import read_history, write_history
from ..model_index import (
    COMPONENT_CLASSES,
    PACKAGE,
    REFERENCES,
    component_module_name,
    components,
    read_json_object,
    with_installed_classes,
    with_repository_code,
)
from ..pipeline_diffad import DiffADPipeline
from ..system.atomic import finish, writing
from .card import DataTerms, model_card
from .checked_json import read_checked
from .evaluation_record import EvaluationRecord, read_evaluation
from .services import copy_graphs, write_endpoint
from .single_file import code_module_name, component_code, single_file_code
from .upload import upload

MODEL_INDEX = "model_index.json"
TRAINING_CONFIG, TRAINING_SUMMARY, HELD_OUT = "training_config.json", "training_summary.json", "held_out.json"
# What training leaves there, and what a card needs of it.
TRAINING_FILES = {
    TRAINING_CONFIG: ("the settings of a training run", {"data": str, "seed": int}),
    TRAINING_SUMMARY: ("the summary of a training run", {"steps": int, "seconds": float, "peak_memory_mib": float}),
    HELD_OUT: ("the names of held-out images", {"held_out": list}),
}
# Settings that name folders of the machine, or how a run was carried out and not what comes of it.
LOCAL_SETTINGS = ("output_dir", "cache_dir", "resume_from_checkpoint", "report_to", "overwrite")


def push(
    model: DiffADPipeline | str | Path,
    repo_id: str,
    evaluations: Sequence[str | Path] = (),
    terms: DataTerms | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    with_references: bool = False,
    exported: Sequence[str | Path] = (),
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
        with_references: also upload the images of good parts that the model holds for repair.
        exported: folders that `diffad export` wrote of this model, for `onnx/` and `openvino/` of the repository.

    Returns:
        The repository's address.

    Raises:
        ValueError: as `export_repo`.
        ConnectionError: if the Hub can't be reached or refuses.
    """
    validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository"
        export_repo(model, folder, evaluations, terms, repo_id, with_references, exported)
        return upload(folder, repo_id, commit_message or f"Upload with diffad {__version__}", private, token)


def export_repo(
    model: DiffADPipeline | str | Path,
    folder: str | Path,
    evaluations: Sequence[str | Path] = (),
    terms: DataTerms | None = None,
    repo_id: str | None = None,
    with_references: bool = False,
    exported: Sequence[str | Path] = (),
) -> None:
    """Writes a repository: safetensors, configurations, code, card, sample pictures, and a handler for Inference Endpoints.

    Asks no network.

    Args:
        model: a pipeline, or the folder of a trained one, which is loaded to be sure that it can be; weights of a folder are
            copied as they are.
        folder: where to; created, and must be empty.
        evaluations: output folders of evaluations of this model, for the card. That they are of this model is told by the
            digest in them; those before diffad 0.2 have none, so that settings are compared and the card says so.
        terms: licence and origin of the training images, for the card.
        repo_id: name that the card uses; None is the folder.
        with_references: include the images of good parts that the model holds for repair. They are photographs of someone's
            parts, so that they are left out otherwise.
        exported: folders that `diffad export` wrote of this model, for `onnx/` and `openvino/` of the repository.

    Raises:
        ValueError: if the folder is not empty, `model` is no complete pipeline with safetensors and a calibration, one of its
            files is damaged, an evaluation or an exported folder is of another model, or the data needs a licence (see
            [`diffad.hub.card.model_card`]).
    """
    folder = Path(folder)
    read = [read_evaluation(path) for path in evaluations]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: not an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder until it is complete.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "repository"
        digest = _write_repo(model, unfinished, read, terms, repo_id or folder.name, with_references)
        write_endpoint(unfinished)
        copy_graphs([Path(path) for path in exported], unfinished, digest)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)


def _write_repo(
    model: DiffADPipeline | str | Path,
    folder: Path,
    evaluations: Sequence[EvaluationRecord],
    terms: DataTerms | None,
    repo_id: str,
    with_references: bool,
) -> str:
    """Writes all but what is for services, and returns the model's digest."""
    if isinstance(model, str | Path):
        source = trained_in = Path(model)
        finish(source)  # what a kill cut off
        index = _saved_pipeline(source)
        pipe = DiffADPipeline.from_pretrained(source)
    else:
        # Where it was loaded from lie the settings that it was trained with.
        loaded_from = model.config.get("_name_or_path")
        trained_in = Path(loaded_from) if loaded_from else None
        source = folder.with_name("saved")
        model.save_pretrained(source)
        index, pipe = _saved_pipeline(source), model
    if not pipe.calibration.is_fitted:
        raise ValueError("the pipeline is not calibrated: calibrate it on good images first (`diffad calibrate`)")

    if not with_references and REFERENCES in index:
        index = {**index, REFERENCES: [None, None]}

    code = single_file_code(__version__)
    code_module = code_module_name(code)
    # The digest over what is written here is checked on load: not over the card and others that one edits on the Hub.
    with writing(folder) as unfinished:
        _copy_components(source, unfinished, components(index))
        _write_json(unfinished / MODEL_INDEX, with_repository_code(_without_paths(index), code_module))
        if held_out := _read_if_there(trained_in, HELD_OUT):  # names only: which images must not be trained on
            _write_json(unfinished / HELD_OUT, held_out)
    if trained_in is not None and (history := read_history(trained_in)):
        write_history([replace(entry, folder=Path(entry.folder).name) for entry in history], folder)
    _write_code(folder, index, code, code_module)
    training, summary = (_read_if_there(trained_in, name) for name in (TRAINING_CONFIG, TRAINING_SUMMARY))
    if training is not None:
        training = _settings_without_paths(training)
        _write_json(folder / TRAINING_CONFIG, training)
    card = model_card(
        repo_id,
        # As JSON has them, and under their present names also where an older version saved the model.
        {name: json.loads(getattr(pipe, name).to_json_string()) for name in components(index)},
        pipe.digest,
        __version__,
        code_module,
        evaluations,
        _copy_sheets(evaluations, folder),
        training,
        summary,
        terms,
    )
    (folder / "README.md").write_text(f"{card}\n", encoding="utf-8")
    return pipe.digest


def _saved_pipeline(folder: Path) -> dict:
    """model_index.json of a saved pipeline, which must be complete: installed classes, no file damaged, none missing."""
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise ValueError(f"{folder}: no {MODEL_INDEX}; give the folder of a trained pipeline")
    index = with_installed_classes(read_json_object(path), path)
    for name, (library, _) in components(index).items():
        config = _config_file(folder, name)
        if not config.is_file():
            raise ValueError(f"{folder / name}: no {config.name}; the pipeline is not complete")
        read_json_object(config)
        # Of the components only the scheduler, which is diffusers' own, has no weights.
        if library == PACKAGE and not any((folder / name).glob("*.safetensors")):
            raise ValueError(f"{folder / name}: no *.safetensors; the pipeline is not complete")
    return index


def _config_file(folder: Path, component: str) -> Path:
    is_own = COMPONENT_CLASSES[component][0] == PACKAGE
    return folder / component / ("config.json" if is_own else "scheduler_config.json")


def _copy_components(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copies weights and configurations, these without the folder that a component was once loaded from."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for path in (*(source / name).glob("*.json"), *(source / name).glob("*.safetensors")):
            shutil.copyfile(path, folder / name / path.name)
        config_file = _config_file(folder, name)
        config = read_json_object(config_file)
        if _without_paths(config) != config:
            _write_json(config_file, _without_paths(config))


def _without_paths(config: dict) -> dict:
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def _settings_without_paths(training: dict) -> dict:
    """Settings of a training run without the machine's folders; of those that it read only the name is left."""
    kept = {key: value for key, value in training.items() if key not in LOCAL_SETTINGS}
    for key in ("data", "pretrained_unet", "roi"):
        if isinstance(kept.get(key), str) and (Path(kept[key]).is_absolute() or Path(kept[key]).exists()):
            kept[key] = Path(kept[key]).resolve().name
    return kept


def _write_code(folder: Path, index: dict, code: str, code_module: str) -> None:
    (folder / f"{code_module}.py").write_text(code, encoding="utf-8")
    own = {name: class_name for name, (library, class_name) in components(index).items() if library == PACKAGE}
    for name in own:
        path = folder / name / f"{component_module_name(code_module)}.py"
        path.write_text(component_code(code_module, own.values()), encoding="utf-8")


def _copy_sheets(evaluations: Sequence[EvaluationRecord], folder: Path) -> list[str]:
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


def _read_if_there(folder: Path | None, name: str) -> dict | None:
    if folder is None or not (folder / name).is_file():
        return None
    return read_checked(folder / name, *TRAINING_FILES[name])


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
