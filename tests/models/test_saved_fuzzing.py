"""Saved pipelines with bytes of any file changed, cut or added: refused with a ValueError or OSError, or loaded. Seeded."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from diffad import DiffADPipeline
from tiny_pipeline import save_tiny_model

DIGESTS = ("digest.json", "tensors.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    save_tiny_model(folder)
    for path in folder.rglob("*.json"):  # which would see every change before anything is read
        if path.name in DIGESTS:
            path.unlink()
    return folder


def mutated(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    end = min(len(content), place + draw.choice((1, 1, 4, 40)))
    return draw.choice(
        (
            content[:place] + draw.randbytes(end - place) + content[end:],
            content[:place] + content[end:],
            content[:place] + content[place:end] * 2 + content[end:],
            content[:place],
            content[:place] + draw.choice((b"null", b"-1", b"1e999", b'"', b"[]", b"{}", b"\xff")) + content[end:],
        )
    )


def damage_and_load(sound: Path, folder: Path, count: int, seed: int) -> Counter:
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file())
    draw, outcomes = random.Random(seed), Counter()
    for number in range(count):
        model = shutil.copytree(sound, folder / str(number))
        damaged = model / draw.choice(files)
        damaged.write_bytes(mutated(damaged.read_bytes(), draw))
        try:
            DiffADPipeline.from_pretrained(model)
            outcomes["loaded"] += 1
        except (ValueError, OSError) as error:
            assert "\n" not in str(error), error
            outcomes["refused"] += 1
        shutil.rmtree(model)
    return outcomes


def test_short(sound, tmp_path):
    assert damage_and_load(sound, tmp_path, 30, seed=1)["refused"] > 10


@pytest.mark.long
def test_long(sound, tmp_path):
    print(damage_and_load(sound, tmp_path, 5000, seed=2))
