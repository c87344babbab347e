"""The output folder of a run: one run at a time, no other run's files mixed in, nothing of a user's cleared unasked."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diffad.data import DataError
from diffad.jobs.model_summary import is_unfinished
from diffad.system.atomic import discard_unfinished, finish, remove_folder, write_text
from diffad_training.config import FORMER_NAMES, TrainingConfig
from filelock import FileLock, Timeout

RECORD = "training_run.json"
LOCK = ".training.lock"
MODEL_FILES = ("model_index.json", "training_config.json")
# Settings that say where and how a run is carried out, and not what comes of it.
LOCAL_SETTINGS = frozenset(
    {"data", "all_good", "exclude", "output_dir", "cache_dir", "num_workers", "compile", "overwrite", "resume_from_checkpoint"}
    | {"report_to", "checkpointing_steps", "checkpoints_total_limit", "keep_checkpoints", "validation_steps"}
)


@dataclass(frozen=True)
class Fingerprint:
    """What the result of a run depends on.

    Args:
        settings: all but the local ones.
        processes: that train together.
        images: digest of their names, categories and pixels.
        held_out: names of the images that are not trained on.
    """

    settings: Mapping[str, object]
    processes: int
    images: str = ""
    held_out: Sequence[str] = ()

    @classmethod
    def of_settings(cls, config: TrainingConfig, processes: int) -> "Fingerprint":
        """What is known of a run before its data is read."""
        settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in LOCAL_SETTINGS}
        return cls(json.loads(json.dumps(settings)), processes)

    @classmethod
    def from_dict(cls, saved: Mapping) -> "Fingerprint":
        settings = {FORMER_NAMES.get(name, name): value for name, value in saved["settings"].items()}
        return cls(settings, saved["processes"], saved["images"], list(saved["held_out"]))

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def difference_of_settings(self, now: "Fingerprint") -> str | None:
        """The first thing known before the data is read in which a run differs from this one; None if nothing."""
        defaults = Fingerprint.of_settings(TrainingConfig(), 1).settings
        for name in sorted({*self.settings, *now.settings}):
            kept, new = (settings.get(name, defaults.get(name)) for settings in (self.settings, now.settings))
            if kept != new:
                return f"{name} {kept} there, {new} now"
        return None if self.processes == now.processes else f"{self.processes} process(es) there, {now.processes} now"

    def difference(self, now: "Fingerprint") -> str | None:
        """The first thing in which a run differs from this one; None if nothing."""
        if text := self.difference_of_settings(now):
            return text
        if moved := sorted(set(self.held_out) ^ set(now.held_out)):
            return f"{moved[0]} held out {'there' if moved[0] in self.held_out else 'now'} only"
        return None if self.images == now.images else "other images in the data"


class RunFolder:
    """The output folder of one run, as train.py works in it."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder this process's own; what killed ones left unfinished in it is ended or removed.

        A folder in which nothing was written is gone afterwards.

        Raises:
            DataError: if another training runs in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            with suppress(NotImplementedError):  # a file system without locks
                lock.acquire()
        except Timeout:
            raise DataError(f"{self.path}: another training is running in it; wait, or name another --output_dir") from None
        try:
            finish(self.path)
            discard_unfinished(self.path)
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                (self.path / LOCK).unlink()
            lock.release()
            with suppress(OSError):  # not empty
                self.path.rmdir()

    def check_free_for(self, now: Fingerprint, goes_on: bool) -> bool:
        """Refuses a folder whose files this run would mix with or take the place of.

        Args:
            now: settings of this run.
            goes_on: whether it goes on from a checkpoint.

        Returns:
            Whether this very run is finished already.

        Raises:
            DataError: naming what differs, and the remedy.
        """
        record, is_finished = self._read_record()
        if not (is_finished or self.checkpoints() or self.has_finished_model()):
            return False
        remedy = "name another --output_dir, or --overwrite it"
        if record is None:
            raise DataError(f"{self.path}: holds a model or checkpoints without a record of their run; {remedy}")
        if difference := record.difference_of_settings(now):
            raise DataError(f"{self.path}: holds another run ({difference}); {remedy}")
        if not goes_on:
            raise DataError(f"{self.path}: holds this run; --resume_from_checkpoint latest goes on with it, or {remedy}")
        return is_finished

    def has_finished_model(self) -> bool:
        """Whether a model lies here that is not the first one of a run that has not ended."""
        return any((self.path / name).exists() for name in MODEL_FILES) and not is_unfinished(self.path)

    def clear(self) -> None:
        """Removes checkpoints and logs of another run; its model stays until the new one takes its place."""
        for folder in self.checkpoints():
            remove_folder(folder)
        shutil.rmtree(self.path / "logs" / "diffad", ignore_errors=True)

    def record(self, fingerprint: Fingerprint, is_finished: bool) -> None:
        """Writes whose folder this is, and whether its model is complete."""
        text = json.dumps({"finished": is_finished, "run": fingerprint.to_dict()}, indent=1)
        write_text(self.path / RECORD, f"{text}\n")

    def checkpoints(self) -> list[Path]:
        """Folders named `checkpoint-N`, by their number; others are passed over."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        found = [path for path in entries if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    def _read_record(self) -> tuple[Fingerprint | None, bool]:
        path = self.path / RECORD
        if not path.is_file():
            return None, False
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Fingerprint.from_dict(record["run"]), bool(record["finished"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: damaged; name another --output_dir, or remove it") from None
