"""What model_index.json says about where a pipeline's classes come from: the installed package, or code in the repository."""

PACKAGE = "diffad"


def with_repository_code(config: dict, code_module: str, component_module: str) -> dict:
    """Entries of a pipeline saved by the package, changed to name the repository's own modules."""
    changed = {name: [component_module, value[1]] for name, value in config.items() if _library(value) == PACKAGE}
    return {**config, **changed, "_class_name": [code_module, config["_class_name"]]}


def with_installed_classes(config: dict) -> dict:
    """The reverse: entries as the package saves them. Those of a pipeline without code of its own are returned unchanged."""
    if isinstance(config["_class_name"], str):
        return config
    code_module, class_name = config["_class_name"]
    changed = {
        name: [PACKAGE, value[1]]
        for name, value in config.items()
        if name != "_class_name" and (_library(value) or "").startswith(code_module)
    }
    return {**config, **changed, "_class_name": class_name}


def _library(value) -> str | None:
    """Library of a component's entry `[library, class name]`; None for other entries."""
    is_component = isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)
    return value[0] if is_component else None
