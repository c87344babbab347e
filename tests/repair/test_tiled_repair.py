"""Repair by models that score images in tiles: in windows around the marked regions, at the resolution of the tiles."""

import numpy as np
import pytest
import torch
from brightness_models import brightness_context
from diffad import DiffADPipeline, ReferenceImages
from diffad.repair.inpainting import Inpainting
from PIL import Image
from scipy.ndimage import binary_dilation
from tiny_pipeline import SIZE, category_images, smooth_images, tiled_pipeline

SETTINGS = {"timesteps": (50, 20), "margin": 2, "attempts": 1}
STEPS = len(SETTINGS["timesteps"]) + 1  # of an attempt at one round of windows


@pytest.fixture(scope="module")
def pipe():
    pipe = tiled_pipeline(weights={"mahalanobis": 1.0})
    pipe.calibrate(smooth_images(21, seed=4, size=(96, 64)), short_side=2 * SIZE)
    return pipe


def with_blocks(image: Image.Image, *blocks: tuple[int, int, int, int], dot: int = 1) -> Image.Image:
    """The image with rectangles `(top, left, height, width)` of black and white dots, each `dot` pixels wide."""
    pixels = np.array(image)
    for top, left, height, width in blocks:
        dots = np.where((np.indices((height, width)) // dot).sum(0) % 2, 0, 255)
        pixels[top : top + height, left : left + width] = dots[..., None]
    return Image.fromarray(pixels)


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("block", [(20, 40, 8, 8), (0, 0, 7, 9), (57, 87, 7, 9), (0, 50, 6, 8)])
def test_a_marked_region_is_repaired_and_nothing_else(pipe, block):
    """In the middle and at the borders of an image as large as it is scored."""
    good = smooth_images(1, seed=6, size=(96, 64))[0]
    defective = with_blocks(good, block)
    scored = pipe(defective)
    assert scored.is_defective[0]
    output = pipe.reconstruct(defective, **SETTINGS)
    changed = output.difference_maps[0] > 0
    inside = np.zeros((64, 96), dtype=bool)
    inside[block[0] : block[0] + block[2], block[1] : block[1] + block[3]] = True
    repaired = grey(output.images[0])
    assert changed[inside].mean() > 0.9
    assert np.abs(repaired - grey(good))[inside].mean() < 0.6 * np.abs(grey(defective) - grey(good))[inside].mean()
    near = binary_dilation(scored.masks[0], iterations=16)
    assert not changed[~near].any() and (~near).any()
    assert pipe(output.images[0]).image_scores[0] < scored.image_scores[0]


def test_in_a_larger_image_the_original_remains_outside(pipe):
    good = smooth_images(1, seed=6, size=(288, 192))[0]  # three times the size at which it is scored
    defective = with_blocks(good, (60, 120, 24, 24), dot=3)
    output = pipe.reconstruct(defective, **SETTINGS)
    assert output.images[0].size == (288, 192) and output.intermediates == [[]]
    before, after = np.asarray(defective), np.asarray(output.images[0])
    assert (before != after)[60:84, 120:144].mean() > 0.9
    far = np.ones((192, 288), dtype=bool)
    far[0:150, 50:220] = False
    np.testing.assert_array_equal(before[far], after[far])


def test_repeatable_and_independent_of_the_batch(pipe):
    sizes = [(96, 64), (64, 64), (64, 130), (96, 64)]
    images = [
        with_blocks(smooth_images(1, seed=10 + i, size=size)[0], (6, 4, 8, 8), (48, 50, 9, 7)) for i, size in enumerate(sizes)
    ]
    images.append(smooth_images(1, seed=4, size=(96, 64))[0])
    settings = {"return_traces": True, "intermediate_steps": "all", **SETTINGS}
    together = pipe.reconstruct(images, batch_size=5, **settings)
    again = pipe.reconstruct(images, batch_size=5, **settings)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(together.images[i]), np.asarray(again.images[i]))
        alone = pipe.reconstruct(image, batch_size=1, **settings)
        assert np.abs(grey(alone.images[0]) - grey(together.images[i])).max() <= 1
        np.testing.assert_allclose(alone.traces[0], together.traces[i], rtol=1e-3)
        assert len(alone.traces[0]) == 1 + len(alone.intermediates[0])
    assert {frame.size for frame in together.intermediates[2]} == {(64, 130)}


def test_good_images_are_returned_as_they_are(pipe):
    good_images = smooth_images(21, seed=4, size=(96, 64))
    good = [image for image, defective in zip(good_images, pipe(good_images).is_defective, strict=True) if not defective][:4]
    output = pipe.reconstruct(good, return_traces=True, **SETTINGS)
    for before, after, trace in zip(good, output.images, output.traces, strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
        assert len(trace) == 1 + STEPS and len(set(trace)) == 1


def test_region_larger_than_a_tile_is_repaired_in_windows_one_after_the_other(pipe):
    good = smooth_images(1, seed=6, size=(96, 64))[0]
    defective = with_blocks(good, (12, 20, 40, 56))
    output = pipe.reconstruct(defective, return_traces=True, intermediate_steps="all", **SETTINGS)
    steps = len(output.traces[0]) - 1
    assert steps > STEPS and steps % STEPS == 0
    assert (output.difference_maps[0][12:52, 20:76] > 0).mean() > 0.95
    # The first window's part stays as it is while the next ones are repaired, and the last one's is not touched before.
    frames = [grey(frame) for frame in output.intermediates[0]]
    np.testing.assert_array_equal(frames[STEPS - 1][12:20, 20:28], frames[-1][12:20, 20:28])
    np.testing.assert_array_equal(frames[STEPS - 1][44:52, 68:76], grey(defective)[44:52, 68:76])
    assert (frames[-1][44:52, 68:76] != grey(defective)[44:52, 68:76]).mean() > 0.9
    shares = [(frame != grey(defective)).any(axis=2).mean() for frame in frames[STEPS - 1 :: STEPS]]
    assert (np.diff(shares) > 0).all()


def repair_black(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What is made of images whose black is marked by a UNet that paints everything 0.5, and what it saw."""
    seen = []

    def predict(noisy: torch.Tensor, t: int) -> torch.Tensor:
        seen.append(noisy.clone())
        return torch.full_like(noisy, 0.5)

    method = Inpainting(timesteps=(1,), spins=1, margin=0, attempts=1, denoiser_error=0.0)
    return method.run(images, brightness_context(predict), lambda x: x).images, seen


def test_each_window_sees_what_the_earlier_ones_have_repaired():
    """A band as wide as three windows, from edge to edge of a white image: only what was repaired tells how it continues."""
    images = torch.ones(1, 3, 32, 96)
    images[..., 8:88] = -1
    repaired, seen = repair_black(images)
    assert len(seen) == 4  # 80 pixels and 4 on each side, in steps of at most 24
    assert (seen[0] == 1).all()  # filled with the white in front of the band
    for view in seen[1:3]:
        torch.testing.assert_close(view, torch.full_like(view, 0.5))
    torch.testing.assert_close(repaired[..., 8:88], torch.full((1, 3, 32, 80), 0.5))
    assert torch.equal(repaired[..., :1], images[..., :1]) and torch.equal(repaired[..., 95:], images[..., 95:])


def test_nothing_is_filled_from_marked_regions_that_are_repaired_later():
    images = torch.ones(1, 3, 96, 96)
    images[..., 40:50, 40:50] = -1
    images[..., 44:47, 52:68] = -1  # beside it, and not in its window as a whole
    repaired, seen = repair_black(images)
    assert len(seen) == 2 and repaired.min() > 0
    assert (seen[0][..., 40 - 29 : 50 - 29, 40 - 29 : 50 - 29] == 1).all()
    assert (seen[0][..., 45 - 29, 53 - 29 : 60 - 29] == -1).all()


def test_windows_are_repaired_with_the_category_of_their_image():
    pipe = tiled_pipeline(("nut", "bolt"), weights={"mahalanobis": 1.0})
    torch.nn.init.normal_(pipe.unet.class_embedding.weight, std=3)
    good_images = [image for label in (0, 1) for image in category_images(5, 4, label, size=(96, 64))]
    pipe.calibrate(good_images, categories=[0] * 5 + [1] * 5, short_side=2 * SIZE)
    image = with_blocks(category_images(1, 6, 1, size=(96, 64))[0], (4, 4, 8, 8), (50, 70, 8, 8))
    settings = {"false_alarm_rate": 0.5, **SETTINGS}
    alone = pipe.reconstruct(image, categories="bolt", batch_size=1, **settings)
    both = pipe.reconstruct([image, image], categories=["nut", "bolt"], batch_size=8, **settings)
    assert alone.difference_maps[0].any()
    assert np.abs(grey(alone.images[0]) - grey(both.images[1])).max() <= 1
    assert np.abs(grey(both.images[0]) - grey(both.images[1])).max() > 1


def tiles_of(image: Image.Image, corners: list[tuple[int, int]]) -> ReferenceImages:
    """Tiles of a good image, as a model keeps them."""
    pixels = np.stack([np.array(image)[y : y + SIZE, x : x + SIZE].transpose(2, 0, 1) for y, x in corners])
    references = ReferenceImages((SIZE, SIZE), (0,) * len(corners))
    references.images.copy_(torch.from_numpy(pixels))
    return references


def test_content_comes_from_tiles_of_good_images(pipe):
    """Two regions in windows of their own; each one's content is in another tile, elsewhere than in the window."""
    good = smooth_images(1, seed=6, size=(96, 64))[0]
    blocks = (6, 8, 8, 8), (44, 76, 8, 8)
    defective = with_blocks(good, *blocks)
    with_tiles = DiffADPipeline(**{**pipe.components, "references": tiles_of(good, [(2, 3), (30, 61)])})
    with_tiles.set_progress_bar_config(disable=True)
    without, output, again = (p.reconstruct(defective, **SETTINGS) for p in (pipe, with_tiles, with_tiles))
    np.testing.assert_array_equal(np.asarray(output.images[0]), np.asarray(again.images[0]))
    for top, left, height, width in blocks:
        block = slice(top, top + height), slice(left, left + width)
        error, of_means = (np.abs(grey(repair.images[0]) - grey(good))[block].mean() for repair in (output, without))
        assert error < 0.5 * of_means, (error, of_means)
