"""Loading the model that a command was given."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.description import FILE as EXPORTED
from ..runtime.detector import Detector

if TYPE_CHECKING:  # an exported model needs none of what a pipeline does
    from ..pipeline_diffad import DiffADPipeline


def check_model(model: str) -> None:
    """Raises DataError for a folder without a model, or a path that leads nowhere; any other name is left to the Hub."""
    from ..data import DataError
    from ..data.huggingface import is_hub_name

    if is_exported(Path(model)):
        raise DataError(f"{model}: is an exported model, which scores images and does nothing else; name the trained model")
    if Path(model).exists() and not is_model(Path(model)):
        raise DataError(f"{model}: is not a trained model (no model_index.json); name the --output of `diffad train`")
    if not Path(model).exists() and not is_hub_name(model):
        raise DataError(f"{model}: no such folder")


def is_model(path: Path) -> bool:
    """Whether a saved pipeline lies there."""
    return (path / "model_index.json").is_file()


def is_exported(path: Path) -> bool:
    """Whether `diffad export` wrote that folder."""
    return (path / EXPORTED).is_file()


def load_scoring(
    model: str,
    device: str | None = None,
    profile: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
) -> "DiffADPipeline | Detector":
    """Loads what scores images: an exported model, or a pipeline as [`load_model`] does.

    Args:
        profile: of a pipeline; an exported model has the one that it was exported with.
        precision: of an exported model.
        threads: of one computation on the CPU; None is all cores.

    Raises:
        DataError, ExportError: if there is no model, or it is damaged or not calibrated.
        ValueError: if device, profile or precision can't be used.
    """
    if is_exported(Path(model)):
        if profile is not None:
            raise ValueError(f"--profile {profile}: {model} has the profile that it was exported with; export another")
        return Detector(model, device or "cpu", threads, precision)
    if precision is not None:
        raise ValueError(f"--precision {precision}: {model} is not an exported model; `diffad export` makes one")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return load_model(model, device, profile)


def check_device(device: str) -> None:
    """Raises ValueError unless torch can compute on a device of that name, such as `cpu` or `cuda:1`."""
    import torch

    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device}: can't be used here ({reason})") from None


def load_model(model: str, device: str | None = None, profile: str | None = None) -> "DiffADPipeline":
    """Loads a pipeline from a folder or the Hub.

    Args:
        device: of torch; None is the GPU if there is one, else the CPU.
        profile: that is the pipeline's only score; None is all that the model has, with its default first.

    Raises:
        DataError: if there is no model.
        ValueError: if the device can't be used, or the model has no such profile.
    """
    import torch
    from diffusers.utils import logging

    from ..pipeline_diffad import DiffADPipeline
    from ..system.memory import keep_freed_memory

    check_model(model)
    if device is not None:
        check_device(device)
    keep_freed_memory()
    logging.disable_progress_bar()  # of loading
    pipe = DiffADPipeline.from_pretrained(model).with_profile(profile)
    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=None)  # silent where nobody looks
    return pipe
