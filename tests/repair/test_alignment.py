"""Alignment of good images by what surrounds a region, against images that scipy has moved, and naive loops."""

import math

import numpy as np
import pytest
import torch
from diffad.repair.alignment import (
    OWN,
    Placement,
    _best_shifts,
    best_placements,
    matched_levels,
    placed,
    surroundings,
    turning_helps,
)
from scipy.ndimage import gaussian_filter, rotate, shift

SIDE = 96


def structured(seed: int, side: int = SIDE, sigma: float = 3.0) -> np.ndarray:
    """`(3, side, side)` in about [-0.5, 0.5], without any repetition."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(3, side, side)), (0, sigma, sigma))
    return 0.5 * noise / np.abs(noise).max()


def disc(side: int = SIDE, radius: float = 12, centre: tuple[float, float] = (50, 44)) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


def test_surroundings_fall_with_the_distance_to_the_region():
    region = np.zeros((40, 40), dtype=bool)
    region[:, :10] = True
    weight = surroundings(region, decay_length=5.0)
    assert weight.sum() == pytest.approx(1) and not weight[region].any()
    assert weight[7, 14] / weight[7, 10] == pytest.approx(math.exp(-4 / 5))
    assert not weight[:, 9 + 20 :].any()  # exp(-20 / 5) is below 2 %
    assert not surroundings(np.ones((4, 4), dtype=bool), 5.0).any()


@pytest.mark.parametrize("excluding", [False, True])
def test_best_shift_is_that_of_a_loop_over_all(excluding):
    rng = np.random.default_rng(3)
    target, sources = torch.from_numpy(rng.normal(size=(20, 22))), torch.from_numpy(rng.normal(size=(2, 20, 22)))
    weight = torch.zeros(20, 22, dtype=torch.float64)
    weight[5:11, 8:15] = torch.from_numpy(rng.random((6, 7)))
    weight[7:9, 10:12] = 0
    weight /= weight.sum()
    excluded = torch.zeros(20, 22, dtype=torch.float64)
    excluded[7:9, 10:12] = 1
    costs, downs, rights = _best_shifts(target, weight, sources, excluded if excluding else None)

    margin, w = 8, weight[5:11, 8:15].numpy()
    t = target[5:11, 8:15].numpy()
    frames = np.pad(sources.numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    taken = np.pad(excluded.numpy(), margin)
    for n, frame in enumerate(frames):
        best = (np.inf, None)
        for y in range(frame.shape[0] - 5):
            for x in range(frame.shape[1] - 6):
                s = frame[y : y + 6, x : x + 7]
                if excluding and taken[y : y + 6, x : x + 7].any():
                    continue  # here no hole of the weights can hide what is excluded: it is as large
                mean, level = (w * s).sum(), (w * t).sum()
                variance = max((w * (s - mean) ** 2).sum(), 1e-5)
                gain = np.clip((w * s * (t - level)).sum() / variance, 0.7, 1.4)
                cost = (w * (gain * (s - mean) - (t - level)) ** 2).sum() + 0.05 * (mean - level) ** 2
                best = min(best, (cost, (y - margin - 5, x - margin - 8)))
        assert costs[n] == pytest.approx(best[0], abs=1e-6) and (downs[n], rights[n]) == best[1]


def test_levels_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(1, 50)), rng.random(50)
    targets = 1.1 * values + 0.3 + 0.1 * rng.normal(size=(1, 50))
    weight /= weight.sum()
    gain, a, b = matched_levels(values, targets, weight)
    slope, offset = np.polyfit(values[0], targets[0], 1, w=np.sqrt(weight))
    assert gain == pytest.approx(slope) and (b - gain * a).item() == pytest.approx(offset)
    assert matched_levels(values, 3 * values, weight)[0] == 1.4


@pytest.mark.parametrize(
    ("moved", "parts_turn"),
    [
        (lambda image: shift(image, (0, 5.4, -3.7), order=3, mode="mirror"), False),
        (lambda image: rotate(image, 3, (1, 2), reshape=False, order=3, mode="mirror"), False),
        (lambda image: rotate(image, 130, (1, 2), reshape=False, order=3, mode="mirror"), True),
        (lambda image: rotate(image[..., ::-1], 75, (1, 2), reshape=False, order=3, mode="mirror"), True),
    ],
    ids=["shift", "small turn", "turn", "mirror and turn"],
)
def test_content_of_a_moved_image_comes_back(moved, parts_turn):
    truth, region = structured(1), disc()
    damaged = np.where(region, 1.0, truth)
    sources = np.stack([structured(2), 0.8 * moved(truth) + 0.1])
    (best, *_) = best_placements(damaged, region, sources, parts_turn)
    assert best.source == 1
    content = placed(sources[1], best)
    weight = surroundings(region, 8.0)
    gain, a, b = matched_levels(content[:, weight > 0], truth[:, weight > 0], weight[weight > 0])
    error = gain * (content[:, region] - a) + b - truth[:, region]
    assert np.sqrt(np.square(error).mean()) < 0.05 * truth[:, region].std()
    assert gain == pytest.approx(1.25, rel=0.02)


def test_a_texture_continues_from_elsewhere_in_the_image_itself():
    rows, columns = np.indices((SIDE, SIDE))
    lattice = np.stack([0.4 * np.sin(2 * np.pi * rows / 12) * np.cos(2 * np.pi * columns / 16)] * 3)
    region = disc(radius=8)
    (best, *_) = best_placements(np.where(region, 1.0, lattice), region, np.stack([structured(2), structured(5)]))
    assert best.source == OWN and math.hypot(best.down, best.right) > 16
    assert np.abs(placed(lattice, best)[:, region] - lattice[:, region]).max() < 0.05


def test_without_surroundings_nothing_is_proposed():
    assert best_placements(structured(1), np.ones((SIDE, SIDE), dtype=bool), structured(2)[None]) == []


def test_a_placement_at_rest_is_the_source():
    source = structured(4, 16)
    assert np.allclose(placed(source, Placement(0.0, 0, False, 0.0, 0.0, 0.0)), source)


def test_turning_helps_parts_that_turn_only():
    part = structured(1)
    upright = np.stack([part + 0.02 * structured(seed) for seed in range(2, 8)])
    angles = (20, 75, 140, 200, 265, 310)
    turned = np.stack([rotate(one, angle, (1, 2), reshape=False, mode="mirror") for one, angle in zip(upright, angles)])
    assert turning_helps(turned[:3], upright[3:])
    assert not turning_helps(upright[:3], upright[3:])
