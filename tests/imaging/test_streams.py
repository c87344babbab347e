"""Batches of images read ahead: in order, with errors in their places, and with bounded numbers of pixels in memory."""

import threading
import weakref

import pytest
from diffad import ImageError
from diffad.imaging import streams
from diffad.imaging.streams import BATCHES_AHEAD, read_batches
from PIL import Image


def square(name: str) -> Image.Image:
    """An image whose name says how long its sides are."""
    return Image.new("RGB", (int(name.partition("-")[0]),) * 2)


def pixels(name: str) -> int:
    return int(name.partition("-")[0]) ** 2


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_images_come_in_order_and_in_full_batches(batch_size):
    names = [f"8-{i}" for i in range(20)]
    batches = list(read_batches(names, square, batch_size))
    assert [name for batch in batches for name, _ in batch] == names
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_errors_come_in_the_place_of_their_images():
    def read(name):
        if name.endswith("3"):
            raise ImageError(f"{name}: damaged")
        return square(name)

    (batch,) = read_batches([f"8-{i}" for i in range(5)], read, 5)
    assert [isinstance(image, ImageError) for _, image in batch] == [False, False, False, True, False]


def test_other_errors_are_the_callers():
    def read(name):
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="8-0"):
        list(read_batches(["8-0"], read, 1))


def test_batches_with_many_pixels_are_cut(monkeypatch):
    monkeypatch.setattr(streams, "PIXELS_AHEAD", 1000)
    names = ["10-a", "20-b", "20-c", "10-d", "10-e", "40-f", "10-g", "10-h"]
    batches = [[name for name, _ in batch] for batch in read_batches(names, square, 4, pixels)]
    assert batches == [["10-a", "20-b", "20-c", "10-d"], ["10-e"], ["40-f"], ["10-g", "10-h"]]


@pytest.mark.parametrize("sides", [[10] * 40, [30] * 20, [10, 31, 31, 10, 10, 10, 31] * 5, [8] * 100])
def test_pixels_in_memory_are_bounded(monkeypatch, sides):
    """Besides the batch that the caller has: images that are read or being read, not yet thrown away."""
    most, limit = [0], 1000
    monkeypatch.setattr(streams, "PIXELS_AHEAD", limit)
    alive, lock = {}, threading.Lock()

    def read(name):
        image = square(name)
        with lock:
            alive[name] = pixels(name)
            most[0] = max(most[0], sum(alive.values()))
        weakref.finalize(image, alive.pop, name)
        return image

    names = [f"{side}-{i}" for i, side in enumerate(sides)]
    count = 0
    for batch in read_batches(names, read, 4, pixels):
        count += len(batch)
    assert count == len(names) and most[0] <= 2 * limit + max(map(pixels, names))


def test_no_more_batches_are_read_ahead_than_said():
    started, lock = [], threading.Lock()

    def read(name):
        with lock:
            started.append(name)
        return square(name)

    batches = read_batches([f"8-{i}" for i in range(100)], read, 2)
    for taken in range(1, 20):
        next(batches)
        assert len(started) <= 2 * (taken + BATCHES_AHEAD)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size"):
        next(read_batches(["8"], square, 0))
