"""Keeps a file that can't be used for people to look at, before something else takes its name."""

import shutil
from pathlib import Path


def kept_aside(path: Path) -> Path:
    """Copies a file beside itself under a free name, such as `monitor.json.damaged` or `monitor.json.damaged-2`; that name.

    Raises:
        OSError: if it can't be copied, such as on a full disk; nothing is left then.
    """
    copy, number = path.with_name(f"{path.name}.damaged"), 1
    while copy.exists():
        number += 1
        copy = path.with_name(f"{path.name}.damaged-{number}")
    try:
        shutil.copy2(path, copy)
    except OSError:
        copy.unlink(missing_ok=True)
        raise
    return copy
