"""What model_index.json says of a pipeline's classes: from the installed package, or from code in the repository."""

import json
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "diffad"
PIPELINE_CLASS = "DiffADPipeline"
# Library and class of each component. A saved pipeline may name no others, because it would decide what is imported.
COMPONENT_CLASSES = {
    "unet": (PACKAGE, "JointUNet2DModel"),
    "scheduler": ("diffusers", "DDPMScheduler"),
    "feature_extractor": (PACKAGE, "FeatureExtractor"),
    "gaussian": (PACKAGE, "PadimGaussian"),
    "residual_gaussian": (PACKAGE, "PadimGaussian"),
    "calibration": (PACKAGE, "Calibration"),
    "discriminant": (PACKAGE, "LinearDiscriminant"),
    "multiscale": (PACKAGE, "MultiscaleFeatures"),
    "feature_denoiser": (PACKAGE, "FeatureDenoiser"),
    "profiles": (PACKAGE, "CalibratedProfiles"),
    "references": (PACKAGE, "ReferenceImages"),
}
REFERENCES = "references"
OPTIONAL_COMPONENTS = ("residual_gaussian", "discriminant", "multiscale", "feature_denoiser", "profiles", REFERENCES)


def read_json_object(path: str | Path) -> dict:
    """Content of a JSON file that holds settings.

    Raises:
        ValueError: naming the file, if it is not JSON or not an object.
        OSError: if it can't be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); write or download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a JSON object of settings; write or download it again")
    return content


def component_module_name(code_module: str) -> str:
    """Name of the module in every component's folder, beside a repository's own code."""
    return f"{code_module}_components"


def with_repository_code(config: Mapping, code_module: str) -> dict:
    """Entries of a pipeline saved by the package, changed to name the repository's own modules."""
    own = [name for name, value in components(config).items() if value[0] == PACKAGE]
    changed = {name: [component_module_name(code_module), config[name][1]] for name in own}
    return {**config, **changed, "_class_name": [code_module, config["_class_name"]]}


def with_installed_classes(
    config: Mapping, source: str | Path = "model_index.json", pipeline_class: str = PIPELINE_CLASS
) -> dict:
    """The reverse: entries as the package saves them. Those of a pipeline without code of its own are returned unchanged.

    Args:
        config: content of a model_index.json.
        source: the file, for errors.
        pipeline_class: name of a subclass of DiffADPipeline that may have been saved.

    Raises:
        ValueError: naming the file, if it is of another pipeline, lacks a component, or names a class that is not the
            component's.
    """
    class_name, code_module = config.get("_class_name"), None
    if isinstance(class_name, list | tuple) and len(class_name) == 2:
        code_module, class_name = class_name
    if class_name not in (PIPELINE_CLASS, pipeline_class):
        raise ValueError(f"{source}: the model's _class_name is {class_name!r:.100}, not {PIPELINE_CLASS}")
    entries = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(entries.keys() - COMPONENT_CLASSES.keys())
    if unknown:
        raise ValueError(f"{source}: {unknown[0]} is not a part of a {PIPELINE_CLASS}")
    missing = [name for name in COMPONENT_CLASSES if name not in entries and name not in OPTIONAL_COMPONENTS]
    if missing:
        raise ValueError(f"{source}: the pipeline has no {missing[0]}; it is not complete")
    installed = {name: _installed_class(name, value, code_module, source) for name, value in entries.items()}
    return {**config, **installed, "_class_name": class_name}


def components(config: Mapping) -> dict[str, list[str]]:
    """Entries `[library, class name]` of the components that are there; an optional one that is not has an entry of nulls."""
    return {name: value for name, value in config.items() if name in COMPONENT_CLASSES and value[0] is not None}


def _installed_class(name: str, value: object, code_module: object, source: str | Path) -> list[str | None]:
    library, class_name = COMPONENT_CLASSES[name]
    allowed = [[library, class_name]]
    if library == PACKAGE and isinstance(code_module, str):
        allowed.append([component_module_name(code_module), class_name])
    if value in allowed:
        return [library, class_name]
    if value == [None, None] and name in OPTIONAL_COMPONENTS:
        return [None, None]
    raise ValueError(f"{source}: {name} is {value!r:.100}, not the class {class_name} of {library}")
