"""Feeds mutated images, masks and manifests to the package. As a script: what, seed, number of inputs and of seconds at most.

    PYTHONPATH=tests python tests/fuzzing.py images 0 100000 300

Prints what became of them as JSON: how many were refused with the package's own errors and how many read, every other exception
by the input's number, the slowest input's seconds and the peak of memory in MiB. An input depends on seed and number alone.
"""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mutated_files import mutated, valid_files
from PIL import Image

Feed = Callable[[np.random.Generator, Path], None]


def mutated_file() -> Callable[[np.random.Generator, Path], Path]:
    """Writes one of the valid files, mutated, into a folder."""
    files = valid_files()
    names, contents = list(files), list(files.values())

    def write(rng: np.random.Generator, folder: Path) -> Path:
        name = names[rng.integers(len(names))]
        path = folder / name
        path.write_bytes(mutated(files[name], rng, contents))
        return path

    return write


def images() -> Feed:
    """Reads mutated files as images."""
    from diffad.imaging.decoding import MAX_PIXELS, pixel_count
    from diffad.imaging.reading import page_count, read_image

    write = mutated_file()

    def feed(rng: np.random.Generator, folder: Path) -> None:
        path = write(rng, folder)
        image = read_image(path)
        assert image.mode == "RGB" and image.width * image.height == pixel_count(path) <= MAX_PIXELS and page_count(image) >= 1

    return feed


def masks() -> Feed:
    """Reads mutated files as masks."""
    from diffad.imaging.masks import read_mask

    write = mutated_file()

    def feed(rng: np.random.Generator, folder: Path) -> None:
        path = write(rng, folder)
        mask = read_mask(path)
        assert mask.ndim == 2 and mask.dtype == np.float32 and set(np.unique(mask)) <= {0, 1}

    return feed


WORDS = (
    "good",
    "OK",
    "0",
    "1",
    "scratch",
    "train",
    "Test",
    "validation",
    "",
    " ",
    "masks/0.png",
    "a/0.png",
    "a\\1.png",
    "../x.png",
)
WORDS += (
    '"',
    '""',
    "sep=;",
    "image",
    "Split",
    "label",
    "mask",
    "group",
    "=1+1",
    "ä",
    "\u2028",
    "\0",
    "\r",
    "x" * 200_000,
    "a" * 300,
)
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")


def manifests() -> Feed:
    """Reads mutated manifests, of which many rows name images that exist."""
    from diffad.data import evaluation_samples, split_held_out, training_samples
    from diffad.data.sample import DataError

    rows = [f"a/{i}.png,train,good,,part {i // 2}" for i in range(6)]
    rows += ["b/0.png,test,good,,", *[f"b/{i}.png,test,scratch,masks/{i}.png," for i in range(1, 4)]]
    lines = ["image,split,label,mask,group", *rows]

    def prepare(folder: Path) -> None:
        for name in (*(row.partition(",")[0] for row in rows), *(f"masks/{i}.png" for i in range(1, 4))):
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / name)

    def feed(rng: np.random.Generator, folder: Path) -> None:
        if not (folder / "a").is_dir():
            prepare(folder)
        text = list(lines)
        for _ in range(rng.integers(0, 4)):
            i = rng.integers(len(text))
            cells = text[i].split(",")
            cells[rng.integers(len(cells))] = WORDS[rng.integers(len(WORDS))]
            action = rng.integers(6)
            text[i : i + 1] = (
                [",".join(cells)],
                [",".join(cells)],
                [],
                [text[i]] * 2,
                [text[i], WORDS[rng.integers(len(WORDS))]],
            )[min(action, 4)]
            text = text or [""]
        delimiter = (",", ",", ";", "\t", "|")[rng.integers(5)]
        joined = ("\n", "\r\n", "\r")[rng.integers(3)].join(text).replace(",", delimiter)
        content = joined.encode(ENCODINGS[rng.integers(len(ENCODINGS))], errors="replace")
        if rng.random() < 0.4:
            content = mutated(content, rng, [lines[0].encode()])
        path = folder / "parts.csv"
        path.write_bytes(content)
        training = failure = None
        try:
            training = split_held_out(training_samples(path), 0.3, 0)
        except DataError as error:
            failure = error
        evaluation_samples(path)
        if failure:
            raise failure
        assert training and not any(sample.is_defective for part in training for sample in part)

    return feed


FEEDS = {"images": images, "masks": masks, "manifests": manifests}


def run(what: str, seed: int, count: int, seconds: float) -> dict:
    """Feeds inputs until there were enough or time is up, and counts."""
    from diffad import ImageError
    from diffad.data import DataError

    warnings.simplefilter("ignore")
    feed, outcomes, escaped, slowest = FEEDS[what](), Counter(), [], (0.0, -1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            before = time.monotonic()
            if before - started > seconds:
                break
            try:
                feed(np.random.default_rng([seed, number]), Path(folder))
                outcomes["read"] += 1
            except (ImageError, DataError) as error:
                outcomes["refused"] += 1
                if "\n" in str(error) or (isinstance(error, ImageError) and folder not in str(error)):
                    escaped.append([number, f"unclear: {str(error)[:300]}"])
            except Exception as error:
                escaped.append([number, f"{type(error).__name__}: {str(error)[:300]}"])
            slowest = max(slowest, (time.monotonic() - before, number))
    spent = time.monotonic() - started
    # The resource module's figure includes the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10
    return {
        "inputs": outcomes.total() + len(escaped),
        **outcomes,
        "escaped": escaped,
        "slowest": slowest,
        "seconds": spent,
        "peak_mib": peak,
    }


def run_apart(what: str, seed: int, count: int, seconds: float) -> dict:
    """The same in a process of its own, which may hang or crash."""
    command = [sys.executable, __file__, what, str(seed), str(count), str(seconds)]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=2 * seconds + 120)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
