"""Writers of a folder that are killed at every one of their accesses to files, each in a forked process.

A process of its own runs this, because forking one that has torch in its memory takes ten times as long.
"""

import json
import os
import signal
import sys
from pathlib import Path

from diffad.system import atomic
from diffad.system.atomic import DIGEST, complete, finish, writing

OLD = {"index.json": "old", "unet/config.json": "old", "unet/weights": "old" * 1000, "extra/weights": "only in the old"}
NEW = {"index.json": "new", "unet/config.json": "new", "unet/weights": "new" * 1000, "unet/second": "only in the new"}


def write(folder: Path, contents: dict[str, str], **options) -> None:
    with writing(folder, **options) as unfinished:
        for name, text in contents.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text)


def contents_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != DIGEST
    }


def killed_at(number: int, folder: Path, act) -> bool:
    """Runs `act` in a process that kills itself at its `number`-th access to a file in the folder; whether it came so far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event.startswith(("open", "os.", "shutil.")) and any(str(folder) in str(argument) for argument in arguments):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def kill_writers(base: Path, existing: bool) -> dict[str, int]:
    """How often the old folder was left and how often the new one, with or without an `existing` one."""
    seen = {"old": 0, "new": 0}
    for number in range(1, 1000):
        folder = base / str(number) / "model"
        if existing:
            write(folder, OLD)
            (folder / "notes.txt").write_text("a user's")
        else:
            folder.parent.mkdir()
        killed = killed_at(number, folder.parent, lambda folder=folder: write(folder, NEW, whole=True))
        complete(folder)
        found = contents_of(folder) if folder.exists() else None
        if existing:
            assert found.pop("notes.txt") == "a user's"
            found = {name: text for name, text in found.items() if not name.startswith(atomic.UNFINISHED)}
        expected = OLD if existing else None
        assert found in (expected, NEW)
        seen["new" if found == NEW else "old"] += 1
        if not killed:
            assert found == NEW
            break
        write(folder, NEW, whole=True)
        found = contents_of(folder)
        found.pop("notes.txt", None)
        assert found == NEW
        assert not list(folder.parent.rglob(".*"))  # nothing is left of the killed writer
    return seen


def kill_what_ends_a_replacement(base: Path) -> dict[str, int]:
    """How often what ends an interrupted replacement was killed before it came to its end."""
    folder = base / "model"
    write(folder, OLD)
    next(number for number in range(1, 1000) if _is_decided(folder, number))
    kills = next(number for number in range(1, 1000) if not killed_at(number, folder, lambda: finish(folder)))
    complete(folder)
    assert contents_of(folder) == NEW
    return {"kills": kills}


def _is_decided(folder: Path, number: int) -> bool:
    assert killed_at(number, folder, lambda: write(folder, NEW, whole=True))
    return (folder / atomic.COMPLETE).is_dir()


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    os.fsync = lambda descriptor: None  # as in all tests
    print(json.dumps(kill_what_ends_a_replacement(place) if what == "ending" else kill_writers(place, what == "existing")))
