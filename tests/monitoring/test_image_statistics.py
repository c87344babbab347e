"""What changed in images, in words."""

import numpy as np
import pytest
from diffad.imaging.image_statistics import STATISTICS, displacement, look_of, reduced, statistics_of
from diffad.monitoring.suggestions import WORDS, suggestions
from PIL import Image, ImageEnhance, ImageFilter


def parts(count: int, seed: int) -> list[Image.Image]:
    """One structured part under slightly different light and noise."""
    rng = np.random.default_rng(seed)
    part = np.kron(np.random.default_rng(99).integers(60, 160, size=(12, 12, 3)), np.ones((8, 8, 1)))
    return [
        Image.fromarray(np.clip(part * rng.normal(1, 0.01) + rng.normal(0, 6, part.shape), 0, 255).astype(np.uint8))
        for _ in range(count)
    ]


def moved(image: Image.Image, right: int, down: int) -> Image.Image:
    return Image.fromarray(np.roll(np.asarray(image), (down, right), axis=(0, 1)))


def found(change) -> list[str]:
    reference, recent = parts(20, 0), [change(image) for image in parts(20, 1)]
    looks = [[look_of(image) for image in images] for images in (reference, recent)]
    mean = np.mean([look.square for look in looks[0]], axis=0)
    statistics = [[statistics_of(look, mean) for look in of_set] for of_set in looks]
    assert list(statistics[0][0]) == list(STATISTICS) == list(WORDS)
    return [suggestion.words for suggestion in suggestions(*statistics)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: ImageEnhance.Brightness(image).enhance(0.8), "darker"),
        (lambda image: image.filter(ImageFilter.GaussianBlur(1.5)), "blurred, or less noise"),
        (
            lambda image: Image.merge("RGB", [band.point(lambda v, k=k: v + 9 * k) for k, band in enumerate(image.split())]),
            "more blue",
        ),
        (lambda image: moved(image, 6, 0), "moved right"),
        (lambda image: moved(image, 0, -9), "moved up"),
        (lambda image: ImageEnhance.Contrast(image).enhance(1.3), "more contrast"),
    ],
)
def test_changes_are_named(change, words):
    assert words in found(change)


def test_the_same_parts_suggest_nothing():
    assert found(lambda image: image) == []


@pytest.mark.parametrize(("down", "right"), [(0, 0), (5, -7), (-20, 11)])
def test_displacement_is_the_shift(down, right):
    image = np.random.default_rng(3).normal(size=(128, 128))
    assert displacement(image, np.roll(image, (down, right), axis=(0, 1))) == (down, right)


def test_sharpness_is_the_variance_of_the_laplacian():
    pixels = np.random.default_rng(4).integers(0, 256, size=(9, 11), dtype=np.uint8)
    padded = np.pad(pixels.astype(float), 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * padded[1:-1, 1:-1]
    image = Image.fromarray(np.repeat(pixels[..., None], 3, axis=2))
    assert look_of(image).levels["sharpness"] == pytest.approx(laplacian.var())


@pytest.mark.parametrize("size", [(300, 200), (700, 1100), (1024, 768), (2900, 1300)])
def test_large_images_are_reduced_as_a_whole(size):
    pixels = np.linspace(0, 255, size[0])[None].repeat(size[1], axis=0)
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    small = reduced(image)
    assert max(small.size) == min(512, max(size)) and small.width / small.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert look_of(image).levels["brightness"] == pytest.approx(np.asarray(image).mean(), abs=0.5)
    assert reduced(small).tobytes() == small.tobytes()


def test_too_few_parts_suggest_nothing():
    statistics = [look_of(image).levels for image in parts(7, 5)]
    assert suggestions(statistics, [{**one, "brightness": 0.0} for one in statistics]) == []
    assert set(statistics[0]) < set(WORDS)
