"""Test images scored by Ray's workers; all their maps come back, so that metrics are those of one process to the last digit."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from .. import __version__
from ..data import DataError, Sample, find_layout
from ..evaluation.scored_samples import ScoredSamples, gather, score_batches
from ..pipeline_diffad import DiffADPipeline
from .loading import Load, host, loaded_alike
from .ray_data import Cluster

MAPS = {"maps": np.float32, "called_masks": np.bool_, "term_maps": np.float32}


@dataclass(frozen=True)
class EvaluationTask:
    """What a worker does: names of test images, as bytes, to what the model says of them.

    Args:
        load: loads the model, on any machine of the cluster.
        data: that the images are of.
        score: [`diffad.evaluation.scored_samples.score_batches`] but for model and images.
        version, digest: of diffad and of the model, which every worker's must be.
    """

    load: Load
    data: str
    score: Callable[[DiffADPipeline, Sequence[Sample]], Iterator[dict[str, np.ndarray]]]
    version: str
    digest: str

    @cached_property
    def pipe(self) -> DiffADPipeline:
        return loaded_alike(self.load, self.version, self.digest)

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        layout, source = find_layout(self.data)
        return {sample.name: sample for sample in layout.test(source)}

    def __call__(self, names: list[bytes]) -> Iterator[pa.Table]:
        missing = next((name for name in map(os.fsdecode, names) if name not in self.samples), None)
        if missing is not None:
            raise DataError(f"{host()}: {missing} is not in {self.data}; the data lie in one place for all machines")
        yield from map(as_table, self.score(self.pipe, [self.samples[os.fsdecode(name)] for name in names]))


def score_by_workers(cluster: Cluster, load: Load, data: str) -> Callable[..., ScoredSamples]:
    """Takes the place of [`diffad.evaluation.scored_samples.score_samples`].

    Args:
        load: loads the model for one thread; pickled by reference, so a function of a module or a partial of one.
        data: that the images are of.
    """

    def score_samples(
        pipe: DiffADPipeline,
        samples: Sequence[Sample],
        masks: np.ndarray | None,
        map_size: tuple[int, int],
        scratch: Path,
        batch_size: int = 8,
        false_alarm_rate: float | None = None,
        category: str | None = None,
    ) -> ScoredSamples:
        settings = {"map_size": map_size, "batch_size": batch_size, "false_alarm_rate": false_alarm_rate, "category": category}
        place = str(Path(data).resolve()) if Path(data).exists() else data
        work = EvaluationTask(load, place, partial(score_batches, **settings), __version__, pipe.digest)
        tables = cluster.map(work, [os.fsencode(sample.name) for sample in samples], batch_size)
        return gather((as_batch(table, map_size) for table in tables), pipe, samples, masks, map_size, scratch)

    return score_samples


def as_table(batch: Mapping[str, np.ndarray]) -> pa.Table:
    """Arrays of a batch as columns, maps as the bytes of each image."""
    return pa.table({name: [row.tobytes() for row in array] if name in MAPS else array for name, array in batch.items()})


def as_batch(table: pa.Table, map_size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The arrays that [`as_table`] made a table of; `(height, width)` is the size of the maps."""
    batch = {}
    for name in table.column_names:
        if name in MAPS:
            rows = [np.frombuffer(cell, MAPS[name]) for cell in table[name].to_pylist()]
            shape = (-1, *map_size) if name == "term_maps" else map_size
            batch[name] = np.stack([row.reshape(shape) for row in rows])
        else:
            batch[name] = np.array(table[name].to_pylist()) if name == "categories" else table[name].to_numpy()
    return batch
