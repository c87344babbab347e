"""Prediction by Ray's workers: each loads the model once, reads images and makes rows as a single process does."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from .. import __version__
from ..data import DataError
from ..jobs.images import is_stored
from ..jobs.predict import MakeRows, PredictionSettings, rows_here
from ..jobs.table import SCHEMA
from ..runtime.detector import Detector
from ..system.text import printable
from .loading import Load, host, loaded_alike
from .ray_data import Cluster

if TYPE_CHECKING:  # an exported model needs none of what a pipeline does
    from ..pipeline_diffad import DiffADPipeline


@dataclass(frozen=True)
class PredictionTask:
    """What a worker does: names of images, as bytes, to their rows.

    Args:
        load: loads the model, on any machine of the cluster.
        folder, settings, batch_size, base: of [`diffad.jobs.predict.rows_here`].
        version, digest: of diffad and of the model, which every worker's must be.
    """

    load: Load
    folder: str
    settings: PredictionSettings
    batch_size: int
    base: Path
    version: str
    digest: str

    @cached_property
    def make_rows(self) -> MakeRows:
        pipe = loaded_alike(self.load, self.version, self.digest)
        if not is_stored(self.folder) and not (self.base / self.folder).is_dir():  # else each image would be called missing
            raise DataError(f"{host()}: {self.folder} is not there; images lie in one place for all machines, or in a store")
        return rows_here(pipe, self.folder, self.settings, self.batch_size, self.base)

    def __call__(self, names: list[bytes]) -> Iterator[pa.Table]:
        rows = [row for some in self.make_rows([os.fsdecode(name) for name in names]) for row in some]
        yield pa.Table.from_pylist(rows, schema=SCHEMA)


def rows_of_workers(cluster: Cluster, load: Load) -> Callable[..., MakeRows]:
    """An engine of [`diffad.jobs.predict.predict_folder`].

    Args:
        load: loads the model for one thread; pickled by reference, so a function of a module or a partial of one.
    """

    def engine(pipe: "DiffADPipeline | Detector", folder: str, settings: PredictionSettings, batch_size: int) -> MakeRows:
        work = PredictionTask(load, folder, settings.resolved(), batch_size, Path.cwd(), __version__, pipe.digest)

        def make_rows(names: Sequence[str]) -> Iterator[list[dict]]:
            position = 0
            for table in cluster.map(work, [os.fsencode(name) for name in names], batch_size):
                rows = table.to_pylist()
                expected = [printable(name) for name in names[position : position + len(rows)]]
                if [row["path"] for row in rows] != expected:
                    raise RuntimeError(f"Ray gave other rows than those of the images from {names[position]} on")
                position += len(rows)
                yield rows
            if position < len(names):
                raise RuntimeError(f"Ray gave {position} rows of {len(names)} images")

        return make_rows

    return engine
