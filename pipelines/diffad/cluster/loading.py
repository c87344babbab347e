"""The model of a worker, which must be the one that the driver has."""

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import __version__
from ..runtime.detector import Detector

if TYPE_CHECKING:  # an exported model needs none of what a pipeline does
    from ..pipeline_diffad import DiffADPipeline

Load = Callable[[], "DiffADPipeline | Detector"]


def loaded_alike(load: Load, version: str, digest: str) -> "DiffADPipeline | Detector":
    """Loads a worker's model.

    Args:
        version, digest: of the driver's diffad and model.

    Raises:
        ValueError: naming the machine where another model lies, or another diffad is installed.
    """
    if __version__ != version:
        raise ValueError(f"{host()}: has diffad {__version__}, not {version}; install the same on all machines")
    pipe = load()
    if pipe.digest != digest:
        raise ValueError(f"{host()}: another model lies there under the same name; copy the same to all machines")
    if not isinstance(pipe, Detector):
        pipe.set_progress_bar_config(disable=True)
    return pipe


def host() -> str:
    """Name of this machine."""
    return platform.node()
