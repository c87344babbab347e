"""A model that judges by brightness alone, in no time, and an inspection around it."""

import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from diffad.runtime.detector import Detections
from diffad.scoring.conformal import conformal_threshold, default_rate
from diffad.scoring.reference_parts import ReferenceParts
from diffad.watch.backoff import Backoff
from diffad.watch.inspection import Inspection
from diffad.watch.journal import PartJournal
from diffad.watch.judge import Judge
from diffad.watch.sources.folder import FolderSource
from diffad.watch.sources.opening import source_address
from PIL import Image
from stub_model import stub_features, stub_reference_parts

THRESHOLD = 100.0


class StubCalibration:
    """Scores 5, 10, ..., 100: at 5 % the highest one is the threshold."""

    def calibration_scores_of(self, category: int = 0) -> np.ndarray:
        return np.arange(1, 21) * THRESHOLD / 20

    def single_scores_of(self, category: int = 0) -> None:
        return None

    def reference_parts(self, category: int = 0) -> None:
        return None

    def supported_rate(self, rate: float | None, category: int = 0) -> float:
        return default_rate(20) if rate is None else rate


class StubModel:
    """Its score is the mean grey level; bright images are defective."""

    digest = "stub"
    category_names = None
    calibration = StubCalibration()

    def __call__(
        self, images: Sequence[Image.Image], batch_size: int, categories=None, false_alarm_rate=None, return_features=False
    ) -> Detections:
        maps = [np.asarray(image.convert("L"), dtype=np.float32) for image in images]
        scores = np.array([one.mean() for one in maps])
        threshold = np.full(len(maps), conformal_threshold(self.calibration.calibration_scores_of(), 0.05))
        masks = [one > THRESHOLD for one in maps]
        rates, ones = np.full(len(maps), 0.05), np.ones(len(maps))
        return Detections(scores, ones, scores > threshold, maps, masks, rates, threshold, threshold)

    def category_indices(self, categories, count: int) -> None:
        return None


class KnownImages(StubCalibration):
    """Of 60 images of grey levels up to 100, whose features are known."""

    parts = stub_reference_parts(60)

    def calibration_scores_of(self, category: int = 0) -> np.ndarray:
        return np.arange(1, 61) * THRESHOLD / 60

    def reference_parts(self, category: int = 0) -> ReferenceParts:
        return self.parts

    def supported_rate(self, rate: float | None, category: int = 0) -> float:
        return default_rate(60) if rate is None else rate


class StubWithFeatures(StubModel):
    digest = "stub with features"
    calibration = KnownImages()

    def __call__(self, images, *arguments, **options) -> Detections:
        output = super().__call__(images, *arguments, **options)
        output.pooled_features = np.stack(list(map(stub_features, images)))
        return output


class ListSink:
    """Keeps what it gets in lists; fails as often as it is told to."""

    wants_latest_only = False

    def __init__(self, address: str = "list", failures: int = 0):
        self.address, self.failures = address, failures
        self.results: list[dict] = []
        self.situations: list = []

    def send(self, results, situation) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise OSError("not now")
        self.results += results
        self.situations.append(situation)

    def close(self) -> None:
        pass

    @property
    def states(self) -> list[str]:
        """Names of the states seen, repetitions left out."""
        names = [situation.state.name for situation in self.situations]
        return [name for name, before in zip(names, [None, *names]) if name != before]


def fast_backoff() -> Backoff:
    return Backoff(0.01, 0.05)


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (level, level, level))


def save_grey(folder: Path, levels: Sequence[int], first: int = 0) -> list[Path]:
    """One image for each level, named by their numbers."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{first + i:04d}.png" for i in range(len(levels))]
    for path, level in zip(paths, levels):
        grey(level).save(path)
    return paths


def folder_inspection(folder: Path, journal: PartJournal, sinks, load=StubModel, once=True, **options) -> Inspection:
    """An inspection of a folder that waits in milliseconds."""
    source = FolderSource(folder, journal.knows, once, settle=0.03, patience=options.pop("file_patience", 0.2))
    return Inspection(source, Judge(load), journal, sinks, backoff=fast_backoff, **options)


def watch_once(folder: Path, journal_path: Path, make_sinks, **options):
    """Summary of a run over what lies in a folder; `make_sinks` gets the journal's identity."""
    with PartJournal(journal_path, source_address(str(folder))) as journal:
        return folder_inspection(folder, journal, make_sinks(journal.identity), **options).run()


@contextmanager
def running(inspection: Inspection):
    """The inspection in a thread, stopped at the end."""
    thread = threading.Thread(target=inspection.run, daemon=True)
    thread.start()
    try:
        yield inspection
    finally:
        inspection.stop()
        thread.join(20)
        assert not thread.is_alive()


def eventually(question, timeout: float = 60.0) -> None:
    """Waits until a question is answered by yes."""
    stop = time.monotonic() + timeout
    while not question():
        assert time.monotonic() < stop, "did not come about"
        time.sleep(0.005)
