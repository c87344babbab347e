"""Feeds a monitor with production: tables of `diffad predict` or folders of images, each part once over any number of runs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..imaging.decoding import ImageError, pixel_count
from ..imaging.image_statistics import look_of, statistics_of
from ..imaging.reading import read_image
from ..imaging.streams import read_batches
from ..monitoring.drift_monitor import DriftMonitor
from ..monitoring.feedback_list import read_feedback
from ..monitoring.rejected_parts import RejectedParts
from ..monitoring.state_digest import StateError, with_digest
from ..monitoring.suggestions import Suggestion, suggested_changes, suggestions
from ..pipeline_diffad import DiffADPipeline
from ..runtime.detector import Detector
from ..scoring.conformal import conformal_threshold
from ..scoring.reference_parts import ReferenceParts
from ..system.atomic import write_text
from ..system.file_digest import file_digest
from ..system.text import one_line
from .folders import image_names
from .monitor_state import Sources, read_state
from .recalibrate import calibration_images
from .resume import files_digest, only_writer
from .table import read_rows

SAVED_EVERY = 500  # images


@dataclass(frozen=True)
class MonitorSettings:
    """What decides a monitor; a state belongs to one choice of them.

    Args:
        level, false_alarm_rate, defect_rate, seed: of [`DriftMonitor`].
        category: that is monitored, of a model of several.
        reference: folder of good images, for the embedding test and to say what changed.
        all_good: all images of the reference folder are good, though they lie in several subfolders.
        feedback: list of the operator's words, for the test of feedback.
    """

    level: float = 0.05
    false_alarm_rate: float | None = None
    defect_rate: float = 0.0
    category: str | None = None
    reference: Path | None = None
    all_good: bool = False
    feedback: Path | None = None
    seed: int = 0


class MonitorRun:
    """A monitor with its state file; used within [`diffad.jobs.resume.only_writer`] of the file, as [`monitor`] does.

    Args:
        pipe: scores images, or has scored the tables.
        path: of the state; it need not exist.
        with_features: whether the embedding test runs, for a new state; it needs a reference.

    Raises:
        ValueError: if the state is damaged or of another model or other settings, or the settings can't be used.
    """

    def __init__(
        self,
        pipe: DiffADPipeline | Detector,
        path: Path,
        settings: MonitorSettings,
        with_features: bool = False,
        batch_size: int = 8,
    ):
        self.pipe, self.path, self.settings, self.batch_size = pipe, path, settings, batch_size
        self.category = _category_index(pipe, settings.category)
        saved = read_state(path)
        self.identity = {"model": pipe.digest, "category": settings.category}
        self.reference_digest, features = None, None
        if saved is not None:
            self.reference_digest = saved["reference_digest"]
            self._check(saved)
            features = saved["reference_features"]
        elif with_features:
            self.reference_digest = self._digest_of_reference()
            features = self._reference_features()
        self.missed = 0  # defects that the list of feedback says were called good
        self.reference_features = features
        rate = pipe.calibration.supported_rate(settings.false_alarm_rate, self.category)
        self.monitor = DriftMonitor(
            pipe.calibration.calibration_scores_of(self.category),
            rate,
            settings.level,
            settings.defect_rate,
            self.reference_features,
            settings.seed,
            with_feedback=settings.feedback is not None,
            single_scores=pipe.calibration.single_scores_of(self.category),
        )
        self.sources, self.rejected = Sources(), RejectedParts()
        if saved is not None:
            try:
                self.monitor.restore(saved["monitor"])
            except StateError as error:
                raise ValueError(f"{path}: can't go on from it: {one_line(error)}; name another --state") from None
            self.sources, self.rejected = saved["sources"], saved["rejected"]

    def take_table(self, table: Path) -> None:
        """Takes the rows of a table that were not taken before.

        Raises:
            ValueError: if the table is none of the model's predictions, or rows that were taken have changed.
        """
        key = str(table.resolve())
        taken = self.sources.tables.get(key, {"rows": 0, "digest": None})
        digest, root, rows = hashlib.sha256(), _folder_of(table), 0
        for row in read_rows(table):
            if rows == taken["rows"]:
                self._check_taken(table, taken, rows, digest.hexdigest())
            digest.update(f"{row['path']}\0{row.get('score')}\0".encode(errors="surrogateescape"))
            rows += 1
            if rows > taken["rows"]:
                self._take_row(row, table, rows, root)
        if rows <= taken["rows"]:
            self._check_taken(table, taken, rows, digest.hexdigest())
        self.sources.tables[key] = {"rows": rows, "digest": digest.hexdigest()}
        self.save()

    def take_folder(self, folder: Path) -> None:
        """Scores the images of a folder that were not taken before, the oldest first, and takes them.

        Raises:
            DataError: if there are no images.
        """
        key = str(folder.resolve())
        taken = self.sources.folders.setdefault(key, [])
        known = set(taken)
        names = [name for name in image_names(folder) if name not in known]
        names.sort(key=lambda name: ((folder / name).stat().st_mtime_ns, name) if (folder / name).exists() else (0, name))
        batches = read_batches(
            names, lambda name: read_image(folder / name), self.batch_size, lambda name: pixel_count(folder / name)
        )
        unsaved = 0
        with tqdm(total=len(names), desc="monitoring", unit="image", mininterval=1, disable=None) as progress:
            for batch in batches:
                readable = [(name, image) for name, image in batch if not isinstance(image, ImageError)]
                self.sources.skipped["unreadable"] += len(batch) - len(readable)
                if readable:
                    self._take_images([folder / name for name, _ in readable], [image for _, image in readable])
                taken.extend(name for name, _ in batch)
                unsaved += len(batch)
                if unsaved >= SAVED_EVERY:
                    self.save()
                    unsaved = 0
                progress.update(len(batch))
        self.save()

    def take_feedback(self) -> None:
        """Takes the present list of reports, whole, in place of what was taken of it before.

        Raises:
            ValueError: if the list is damaged.
        """
        if self.settings.feedback is not None and self.settings.feedback.is_file():
            feedback = read_feedback(self.settings.feedback)
            self.missed = len(feedback.missed)
            self.monitor.set_reports(self.rejected.places_of(feedback))

    def save(self) -> None:
        """Writes the state, whole or not at all."""
        features = self.reference_features
        state = {
            **self.identity,
            "reference_digest": self.reference_digest,
            "reference_features": None if features is None else features.tolist(),
            "monitor": self.monitor.to_dict(),
            "sources": asdict(self.sources),
            "rejected": asdict(self.rejected),
        }
        write_text(self.path, json.dumps(with_digest(state)) + "\n")

    def suggestions(self) -> list[Suggestion]:
        """What changed in the latest images beside the reference, or without one beside the calibration images.

        Nothing while there is no alarm, or images are missing.
        """
        reference, recent = self.reference_images(), self.recent_images()
        if not self.monitor.state.changed or not recent:
            return []
        if not reference:
            return [] if self.known_reference is None else suggested_changes(self.known_reference, _readable(recent))
        looks = [[look_of(image) for image in _readable(paths)] for paths in (reference, recent)]
        mean = np.mean([look.square for look in looks[0]], axis=0)
        return suggestions(*([statistics_of(look, mean) for look in of_set] for of_set in looks))

    @property
    def known_reference(self) -> ReferenceParts | None:
        """What the model itself knows of its calibration images."""
        return self.pipe.calibration.reference_parts(self.category)

    def reference_images(self) -> list[Path]:
        """Images of the reference folder; none without one."""
        settings = self.settings
        return [] if settings.reference is None else calibration_images(settings.reference, settings.all_good)

    def recent_images(self) -> list[Path]:
        """Images of the latest parts, as far as they are still there."""
        return [path for path in map(Path, self.sources.recent) if path.is_file()]

    def _take_row(self, row: dict, table: Path, number: int, root: Path | None) -> None:
        if row.get("error"):
            self.sources.skipped["unreadable"] += 1
            return
        if row.get("label") == "unknown":
            self.sources.skipped["of an unknown product"] += 1
            return
        if (row.get("category") or None) != self.settings.category:
            self.sources.skipped["of another category"] += 1
            return
        try:
            score, threshold = float(row["score"]), float(row["image_threshold"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{table}: row {number} has no score and image_threshold; `diffad predict` writes them") from None
        if threshold != self.monitor.threshold:
            raise ValueError(
                f"{table}: row {number} was judged by the threshold {threshold:g}, the model's is {self.monitor.threshold:g}; "
                "name the model and the --false-alarm-rate that the table was written with"
            )
        try:
            self.monitor.update(score)
        except ValueError as error:
            raise ValueError(f"{table}: row {number}: {error}") from None
        path = None if root is None else root / row["path"]
        self._note(score, row["path"], path)

    def _take_images(self, paths: Sequence[Path], images: Sequence) -> None:
        category, rate = self.settings.category, self.settings.false_alarm_rate
        output = self.pipe(images, self.batch_size, category, rate, return_features=True)
        features = [None] * len(images) if self.reference_features is None else output.pooled_features
        if features is None:
            raise ValueError(f"{self.path}: tests embeddings, which this model's score does not look at; name another --state")
        for path, score, of_image in zip(paths, output.image_scores, features, strict=True):
            self.monitor.update(float(score), of_image)
            self._note(float(score), path.name, path.resolve())

    def _note(self, score: float, name: str, path: Path | None) -> None:
        """What later explains an alarm, or lets a report find its part."""
        self.sources.add_recent(path)
        if self.settings.feedback is not None and score > self.monitor.threshold:
            digest = file_digest(path) if path is not None and path.is_file() else None
            self.rejected.add(self.monitor.parts - 1, name, digest)

    def _reference_features(self) -> np.ndarray | None:
        """Of reference images whose scores lie below the monitor's cut, as of the parts that they are compared with.

        None where scoring has none at hand.
        """
        pipe, rate = self.pipe, self.settings.false_alarm_rate
        rate = pipe.calibration.supported_rate(rate, self.category)
        single = pipe.calibration.single_scores_of(self.category)
        cut = pipe.calibration.image_threshold(rate, self.category) if single is None else conformal_threshold(single, rate)
        found: list[np.ndarray] = []
        paths = self.reference_images()
        for start in tqdm(range(0, len(paths), self.batch_size), desc="reference", unit="batch", mininterval=1, disable=None):
            images = [read_image(path) for path in paths[start : start + self.batch_size]]
            output = pipe(images, self.batch_size, self.settings.category, rate, return_features=True)
            if output.pooled_features is None:
                return None
            of_images = zip(output.pooled_features.astype(float), output.image_scores, strict=True)
            found += [of_image for of_image, score in of_images if score < cut]
        return np.array(found)

    def _digest_of_reference(self) -> str:
        folder = self.settings.reference
        return files_digest(folder, image_names(folder))

    def _check(self, saved: dict) -> None:
        for name, value in self.identity.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{self.path}: belongs to another {name} ({str(saved.get(name))[:40]} there, {str(value)[:40]} now); name "
                    "another --state, or remove the file to begin anew"
                )
        if self.reference_digest is not None and self.settings.reference is not None:
            now = self._digest_of_reference()
            if now != self.reference_digest:
                raise ValueError(
                    f"{self.settings.reference}: is not as it was when {self.path} was begun; restore the reference images, or "
                    "remove the state to begin anew"
                )

    def _check_taken(self, table: Path, taken: dict, rows: int, digest: str) -> None:
        if taken["rows"] and (rows < taken["rows"] or digest != taken["digest"]):
            raise ValueError(
                f"{table}: the {taken['rows']} rows that {self.path} has taken from it are not there any more; write new parts "
                "into another table, or append them"
            )


def monitor(
    pipe: DiffADPipeline | Detector,
    path: Path,
    settings: MonitorSettings,
    tables: Sequence[Path] = (),
    folder: Path | None = None,
    batch_size: int = 8,
) -> MonitorRun:
    """Takes what is new in tables and in a folder, and saves the state.

    Args:
        path: of the state, a JSON file; it is made if it does not exist.
        tables: written by `diffad predict` with this model; they may have grown since the last time.
        folder: of images, which are scored. Only if there are no tables, embeddings are tested, too.
        batch_size: images per forward pass.

    Raises:
        ValueError: if the state, a table or a setting can't be used, or another process uses the state.
    """
    missing = [table for table in tables if not table.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such table")
    with only_writer(path):
        run = MonitorRun(pipe, path, settings, settings.reference is not None and not tables, batch_size)
        if run.reference_features is not None and tables:
            raise ValueError(f"{path}: tests embeddings, which tables lack; give the folder of images, or another --state")
        for table in tables:
            run.take_table(table)
        if folder is not None:
            run.take_folder(folder)
        run.take_feedback()
        run.save()
    return run


def _category_index(pipe: DiffADPipeline | Detector, category: str | None) -> int:
    if pipe.category_names is not None and category is None:
        raise ValueError(f"a model of several categories: name the one to monitor of {', '.join(pipe.category_names)}")
    indices = pipe.category_indices(category, 1)
    return 0 if indices is None else indices[0]


def _folder_of(table: Path) -> Path | None:
    """The folder that a table's paths are relative to, which the record beside it names."""
    try:
        record = json.loads(table.with_name(f"{table.name}.run.json").read_text(encoding="utf-8"))
        folder = Path(record["run"]["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder.parent if folder.is_file() else folder


def _readable(paths: Sequence[Path]) -> Iterator:
    for path in paths:
        try:
            yield read_image(path)
        except ImageError:
            continue
