"""What computes for a command: its own process, or Ray's workers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .loading import load_scoring

if TYPE_CHECKING:
    from ..cluster.ray_data import Cluster

ENGINES = ("process", "ray")


def cluster_of(engine: str, address: str | None, workers: int | None, device: str | None) -> "Cluster | None":
    """The cluster that options name; None for this process.

    Raises:
        ValueError: if options don't go together, or Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"--engine {engine}: expected {' or '.join(ENGINES)}")
    if engine == "process":
        for option, value in {"--address": address, "--workers": workers}.items():
            if value is not None:
                raise ValueError(f"{option} {value}: is for --engine ray")
        return None
    if device not in (None, "cpu"):
        raise ValueError(f"--device {device}: workers of --engine ray compute on CPUs; leave it out")
    from ..cluster.ray_data import Cluster, check_installed

    check_installed()
    return Cluster(address, workers)


def worker_model(model: str, profile: str | None, precision: str | None = None) -> Callable:
    """What loads a command's model in a worker, which works elsewhere, with one thread."""
    place = str(Path(model).resolve()) if Path(model).exists() else model
    return partial(load_scoring, place, "cpu", profile, precision, 1)
