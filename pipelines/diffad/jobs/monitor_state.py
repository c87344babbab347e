"""The state file of `diffad monitor`: what is in it, and how it is read."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..monitoring.rejected_parts import RejectedParts
from ..monitoring.saved_values import numbers, text, whole
from ..monitoring.state_digest import DamagedStateError, StateError, check_content
from ..monitoring.suggestions import RECENT_PARTS
from ..system.text import one_line

SKIPPED = ("unreadable", "of an unknown product", "of another category")
NEEDED = {"model", "category", "reference_digest", "reference_features", "monitor", "sources"}


@dataclass
class Sources:
    """What has been taken already, as the state keeps it.

    Args:
        tables: by absolute path the number of rows taken and their digest.
        folders: by absolute path the names of the images taken.
        recent: image files of the latest parts.
        skipped: counts of rows that are no parts of the monitored product.
    """

    tables: dict[str, dict] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    recent: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIPPED, 0))

    @classmethod
    def restored(cls, saved: dict) -> "Sources":
        """Of the fields by their names.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: if they are damaged.
        """
        tables = {path: {"rows": whole(one["rows"]), "digest": text(one["digest"])} for path, one in saved["tables"].items()}
        folders = {path: list(map(text, names)) for path, names in saved["folders"].items()}
        skipped = {name: whole(saved["skipped"][name]) for name in SKIPPED}
        return cls(tables, folders, list(map(text, saved["recent"])), skipped)

    def add_recent(self, path: Path | None) -> None:
        if path is not None:
            self.recent = [*self.recent[-RECENT_PARTS + 1 :], str(path)]


def read_state(path: Path) -> dict | None:
    """The content of a state file, with sources, rejected parts and features `(r, D)` of the reference as they are used.

    Raises:
        ValueError: if it is damaged, or something else.
    """
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        check_content(saved)
        if missing := NEEDED - set(saved):
            raise DamagedStateError(f"not the state of a monitor, without {', '.join(sorted(missing))}")
        features = saved["reference_features"]
        return saved | {
            "reference_features": None if features is None else numbers(features, None, None),
            "sources": Sources.restored(saved["sources"]),
            "rejected": RejectedParts.restored(saved["rejected"]) if "rejected" in saved else RejectedParts(),
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        what = one_line(error) if isinstance(error, StateError) else f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{path}: can't be read ({what}); name another --state, or remove the file") from None
