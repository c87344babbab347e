"""Synthetic defects that choose the map: where they are, how visible, and on which images."""

import numpy as np
import pytest
from diffad_training import likely_defects as made_up
from diffad_training.likely_defects import KINDS, MAX_ATTEMPTS, MIN_CONTRAST, blob, likely_defect, likely_defects
from tiny_pipeline import smooth_images

SIZE = (64, 48)


def good_images(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return [np.asarray(image) for image in smooth_images(count, seed=2, size=size[::-1])]


def plain(level: int) -> np.ndarray:
    return np.full((*SIZE, 3), level, np.uint8)


def test_images_kinds_and_places_follow_from_the_seed():
    images = good_images(4)
    first, again, other = (likely_defects(images, 12, seed) for seed in (1, 1, 2))
    for (image, mask, *rest), (image_again, mask_again, *rest_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, image_again)
        np.testing.assert_array_equal(mask, mask_again)
        assert rest == rest_again
    assert not any(np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))
    # The first defects don't depend on how many there are.
    np.testing.assert_array_equal(likely_defects(images, 5, 1)[4][0], first[4][0])


def test_kinds_and_images_take_turns():
    made = likely_defects(good_images(5), 30, seed=0)
    assert len(made) == 30
    assert [kind for _, _, kind, _ in made] == [*KINDS] * 10
    assert [owner for *_, owner in made] == [i // 3 % 5 for i in range(30)]
    # With a number of images that three divides, too, every image gets every kind.
    made = likely_defects(good_images(6), 36, seed=0)
    assert {(kind, owner) for _, _, kind, owner in made} == {(kind, i) for kind in KINDS for i in range(6)}


def test_index_is_that_of_the_good_image_which_differs_nowhere_else():
    images = good_images(5)
    for image, mask, _, owner in likely_defects(images, 30, seed=3):
        changed = [(image != good).any(axis=2).mean() for good in images]
        assert np.argmin(changed) == owner and changed[owner] < 0.2
        assert image.shape == images[owner].shape and image.dtype == np.uint8 and mask.shape == SIZE and mask.dtype == bool


@pytest.mark.parametrize("kind", KINDS)
def test_defect_is_visible(kind):
    image, donor = good_images(2)
    for seed in range(15):
        defective, mask = likely_defect(image, donor, kind, np.random.default_rng(seed))
        difference = (defective.astype(float) - image.astype(float))[mask]
        assert mask.any() and np.mean(difference**2) ** 0.5 >= MIN_CONTRAST


def test_opacity_blends_and_a_half_of_it_is_the_mask(monkeypatch):
    opacity = np.zeros(SIZE)
    opacity[10:20, 10:14], opacity[10:20, 14], opacity[10:20, 15] = 1.0, 0.5, 0.49
    monkeypatch.setattr(made_up, "blob", lambda size, rng: opacity)
    # A piece of a plain donor is that donor, wherever it is from.
    defective, mask = likely_defect(plain(100), plain(180), "piece", np.random.default_rng(0))
    expected = np.zeros(SIZE, bool)
    expected[10:20, 10:15] = True
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(defective, np.repeat(np.round(100 + 80 * opacity)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_where_the_blob_is_not(kind, monkeypatch):
    drawn = []
    monkeypatch.setattr(made_up, "blob", lambda *args: drawn.append(blob(*args)) or drawn[-1])
    image, donor = good_images(2)
    for seed in range(5):
        defective, mask = likely_defect(image, donor, kind, np.random.default_rng(seed))
        np.testing.assert_array_equal(mask, drawn[-1] >= 0.5)
        np.testing.assert_array_equal(defective[drawn[-1] == 0], image[drawn[-1] == 0])


def test_blobs_have_the_area_they_are_drawn_with(monkeypatch):
    monkeypatch.setattr(made_up, "AREA", (0.01, 0.01))
    areas = []
    for seed in range(60):
        opacity = blob((96, 80), np.random.default_rng(seed))
        assert opacity.min() == 0 and opacity.max() <= 1
        mask = opacity >= 0.5
        if not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
            areas.append(mask.mean())
    # An opacity of one half is at radius 1.05, of which the ragged edge takes 0.25 n, n of variance 1.
    assert len(areas) > 30 and np.mean(areas) == pytest.approx(0.01 * (1.05**2 + 0.25**2), rel=0.15)


def test_brightness_of_a_grey_part_shifts_without_colour():
    image = good_images(1)[0].mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
    for seed in range(10):
        defective, _ = likely_defect(image, image, "shift", np.random.default_rng(seed))
        assert np.ptp(defective, axis=2).max() == 0


def test_what_can_not_be_seen_is_left_out(monkeypatch):
    attempts = []
    monkeypatch.setattr(made_up, "blob", lambda *args: attempts.append(blob(*args)) or attempts[-1])
    assert likely_defect(plain(90), plain(90), "piece", np.random.default_rng(0)) is None
    assert len(attempts) == MAX_ATTEMPTS
    # The image is its own donor where there is no other of its shape.
    made = likely_defects([plain(90), np.full((30, 30, 3), 90, np.uint8)], 12, seed=0)
    assert {kind for _, _, kind, _ in made} == {"shift", "blur"}
    assert [owner for *_, owner in made] == [i // 3 % 2 for i in range(12) if i % 3]


def test_donors_are_other_images_of_the_same_shape():
    # Two images of 250 in another shape, on which pieces of each other can't be seen.
    images = [plain(90), plain(150), *np.full((2, 30, 30, 3), 250, np.uint8)]
    pieces = [(image, mask, owner) for image, mask, kind, owner in likely_defects(images, 24, seed=0) if kind == "piece"]
    assert {owner for *_, owner in pieces} == {0, 1}
    for image, mask, owner in pieces:
        assert image[mask].min() >= 90 and image[mask].max() <= 150
        assert np.abs(image[mask].mean() - (150, 90)[owner]) < 20
