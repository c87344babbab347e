"""Loading the model that a command was given."""

from pathlib import Path

import torch
from diffusers.utils import logging

from ..data import DataError
from ..data.huggingface import is_hub_name
from ..memory import keep_freed_memory
from ..pipeline_diffad import DiffADPipeline


def check_model(model: str) -> None:
    """Raises DataError for a folder without a model; any other name is left to the Hub."""
    if Path(model).exists() and not is_model(Path(model)):
        raise DataError(f"{model}: is not a trained model (no model_index.json); name the --output of `diffad train`")
    if not Path(model).exists() and not is_hub_name(model):
        raise DataError(f"{model}: no such folder")


def is_model(path: Path) -> bool:
    return (path / "model_index.json").is_file()


def load_model(model: str, device: str | None = None) -> DiffADPipeline:
    """A pipeline from a folder or the Hub, on a torch device; None is the GPU if there is one, else the CPU."""
    check_model(model)
    keep_freed_memory()
    logging.disable_progress_bar()  # of loading
    return DiffADPipeline.from_pretrained(model).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
