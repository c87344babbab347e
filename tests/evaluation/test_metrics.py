import itertools
from fractions import Fraction

import numpy as np
import pytest
from diffad import detection_metrics, localization_metrics
from diffad.evaluation.counts import region_shares
from diffad.evaluation.metrics import mask_metrics
from diffad.evaluation.sweep import area_under_curve
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score


def naive_regions(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected regions of one mask by flood fill."""
    open_pixels, regions = {tuple(pixel) for pixel in np.argwhere(mask)}, []
    while open_pixels:
        region, front = set(), [open_pixels.pop()]
        while front:
            row, column = front.pop()
            region.add((row, column))
            neighbours = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & open_pixels
            open_pixels -= neighbours
            front.extend(neighbours)
        regions.append(region)
    return regions


def naive_aupro(maps: np.ndarray, masks: np.ndarray, limit: Fraction) -> Fraction:
    """Per-region overlap integrated up to a false positive rate, from the definition and in exact fractions."""
    curve = [(Fraction(0), Fraction(0))]
    good_pixels = int((~masks).sum())
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        above = maps >= threshold
        overlaps = [
            Fraction(sum(bool(above[i][pixel]) for pixel in region), len(region))
            for i in range(len(masks))
            for region in naive_regions(masks[i])
        ]
        curve.append((Fraction(int((above & ~masks).sum()), good_pixels), sum(overlaps) / len(overlaps)))
    area = Fraction(0)
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def random_case(seed: int, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Maps that know a little about the masks, with ties when rounded to a number of levels; one good image."""
    rng = np.random.default_rng(seed)
    masks = rng.random((4, 7, 6)) < 0.3
    masks[0] = False
    maps = rng.normal(size=masks.shape) + masks
    return (maps if levels is None else np.round(maps * levels / 4)), masks


@pytest.mark.parametrize("levels", [1, 3, 10, None])
@pytest.mark.parametrize("seed", range(5))
def test_aupro_matches_a_naive_loop(seed, levels):
    maps, masks = random_case(seed, levels)
    metrics = localization_metrics(maps, masks, fpr_limits=(0.05, 0.3, 0.5, 1.0))
    for percent in (5, 30, 50, 100):
        expected = float(naive_aupro(maps, masks, Fraction(percent, 100)))
        assert metrics[f"aupro_{percent:02d}"] == pytest.approx(expected, rel=1e-6)


def row_of_pixels(scores: list[float], mask: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[scores]], dtype=float), np.array([[mask]], dtype=bool)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0.25, 0.5),
        (0.3, 0.5),
        (0.5, 0.5),  # the jump at FPR 0.5 has no width
        (0.6, (0.5 * 0.5 + 0.1 * 1.0) / 0.6),
        (1.0, 0.75),
    ],
)
def test_aupro_by_hand_for_regions_of_one_and_two_pixels(limit, expected):
    # From the top: region a; two normal pixels; both pixels of region b; two normal pixels.
    maps, masks = row_of_pixels([9, 1, 5, 3, 8, 2, 7], [1, 0, 1, 1, 0, 0, 0])
    assert localization_metrics(maps, masks, (limit,))[f"aupro_{round(limit * 100)}"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("limit", "expected"), [(0.3, 0.45), (0.2, 0.3), (0.5, (1 / 6 + 1 / 6) / 0.5), (1.0, 5 / 6)])
def test_aupro_by_hand_where_a_tie_makes_the_curve_slope(limit, expected):
    # The region and one of three normal pixels share a score: a straight line from (0, 0) to (1/3, 1).
    maps, masks = row_of_pixels([2, 1, 2, 1], [1, 0, 0, 0])
    assert localization_metrics(maps, masks, (limit,))[f"aupro_{round(limit * 100)}"] == pytest.approx(expected, rel=1e-12)


def test_order_of_tied_pixels_does_not_matter():
    maps, masks = random_case(0, levels=2)
    shuffled = np.random.default_rng(1).permutation(maps.size)
    pixel_maps, pixel_masks = (array.reshape(-1, 1, 1) for array in (maps, masks))
    expected = localization_metrics(pixel_maps, pixel_masks)
    assert localization_metrics(pixel_maps[shuffled], pixel_masks[shuffled]) == pytest.approx(expected, rel=1e-12)


def test_constant_map_scores_as_chance():
    _, masks = random_case(0)
    metrics = localization_metrics(np.zeros(masks.shape), masks)
    prevalence = masks.mean()
    expected = {
        "pixel_auroc": 0.5,
        "pixel_ap": prevalence,
        "pixel_f1_max": 2 * prevalence / (1 + prevalence),
        "aupro_30": 0.15,
        "aupro_05": 0.025,
    }
    assert metrics == pytest.approx(expected, rel=1e-9)


def test_perfect_and_inverted_maps_reach_the_ends_of_the_range():
    _, masks = random_case(0)
    perfect = localization_metrics(masks.astype(float), masks)
    assert perfect == {name: 1.0 for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05")}
    inverted = localization_metrics(-masks.astype(float), masks)
    assert (inverted["pixel_auroc"], inverted["aupro_30"], inverted["aupro_05"]) == (0, 0, 0)


def test_every_region_counts_the_same_whatever_its_size():
    maps, masks = row_of_pixels([0, 1, 9, 9, 9, 9, 9, 9, 1, 1], [1, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    assert localization_metrics(maps, masks)["aupro_30"] == pytest.approx(0.5)


def test_diagonal_neighbours_are_one_region():
    masks = np.array([[[1, 0, 0, 0], [0, 1, 1, 0]]], dtype=bool)
    assert region_shares(masks[0]).tolist() == [1 / 3] * 3
    maps = np.where([[[1, 0, 0, 0], [0, 0, 0, 0]]], 9.0, 0.0)
    maps[~masks] = np.linspace(1, 2, 5)
    assert localization_metrics(maps, masks, (0.5,))["aupro_50"] == pytest.approx(1 / 3)


def test_regions_are_never_joined_between_images():
    """The first image's region, at its lower border, is found; the second's, at its upper border, is not."""
    masks = np.zeros((2, 2, 3), dtype=bool)
    masks[0, 1] = masks[1, 0, 0] = True
    maps = np.where(masks & (np.arange(2) == 0)[:, None, None], 2.0, 0.0)
    maps[~masks] = 1
    assert localization_metrics(maps, masks)["aupro_30"] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_region_shares_match_a_flood_fill(seed):
    for mask in random_case(seed)[1]:
        shares = np.zeros(mask.shape)
        shares[mask] = region_shares(mask)
        for region in naive_regions(mask):
            assert {shares[pixel] for pixel in region} == {1 / len(region)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("levels", [1, 4, None])
def test_pixel_metrics_match_sklearn(levels, dtype):
    maps, masks = random_case(3, levels)
    maps = maps.astype(dtype)
    metrics = localization_metrics(maps, masks)
    truth, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert metrics["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), rel=1e-9)
    assert metrics["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), rel=1e-9)
    assert metrics["pixel_f1_max"] == pytest.approx((2 * precision * recall / (precision + recall + 1e-300)).max(), rel=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_maps_of_unsigned_grey_levels_score_as_floats_do(dtype):
    maps, masks = random_case(0, levels=10)
    levels = (maps - maps.min()).astype(dtype)
    assert localization_metrics(levels, masks) == pytest.approx(localization_metrics(levels.astype(float), masks))


def test_only_the_order_of_the_scores_matters():
    maps, masks = random_case(1, levels=10)
    expected = localization_metrics(maps, masks)
    for transformed in (maps - 1e3, np.exp(maps), maps * 1e-30, maps * 1e30):
        assert localization_metrics(transformed, masks) == pytest.approx(expected, rel=1e-12)


def test_every_metric_lies_between_zero_and_one():
    rng = np.random.default_rng(0)
    for _ in range(300):
        masks = rng.random((rng.integers(1, 4), *rng.integers(2, 9, size=2))) < rng.uniform(0.05, 0.95)
        masks.ravel()[:2] = [False, True]
        maps = rng.normal(size=masks.shape) + rng.choice([-5, 0, 5]) * masks
        metrics = localization_metrics(np.round(maps, rng.integers(0, 3)), masks, (0.01, 0.3, 1.0))
        assert all(0 <= value <= 1 for value in metrics.values()), metrics


def test_area_is_cut_at_the_limit_by_interpolation():
    x, y = np.array([0, 0.1, 0.1, 0.5, 1.0]), np.array([0, 0.2, 0.4, 0.8, 1.0])
    assert area_under_curve(x, y, 0.1) == pytest.approx(0.1)
    assert area_under_curve(x, y, 0.3) == pytest.approx((0.01 + 0.2 * 0.5) / 0.3)
    assert area_under_curve(x, y, 1.0) == pytest.approx(0.01 + 0.4 * 0.6 + 0.5 * 0.9)


def test_metrics_are_named_by_their_limit_in_percent():
    maps, masks = random_case(0)
    assert list(localization_metrics(maps, masks)) == ["pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05"]
    assert list(localization_metrics(maps, masks, (0.01,)))[-1] == "aupro_01"


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (np.zeros((1, 2, 2)), np.eye(3)[None], "must both be"),
        (np.zeros((2, 2)), np.eye(2), "must both be"),
        (np.full((1, 2, 2), np.nan), np.eye(2)[None], "NaN or infinity"),
        (np.array([[[0, np.inf], [0, 0]]]), np.eye(2)[None], "NaN or infinity"),
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), "both normal and anomalous"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2)), "both normal and anomalous"),
    ],
)
def test_localization_refuses_what_has_no_curve(maps, masks, message):
    with pytest.raises(ValueError, match=message):
        localization_metrics(maps, masks)


@pytest.mark.parametrize("levels", [1, 3, None])
@pytest.mark.parametrize("seed", range(4))
def test_detection_metrics_match_naive_loops(seed, levels):
    rng = np.random.default_rng(seed)
    labels = np.arange(25) % 3 == 0
    scores = rng.normal(size=25) + labels
    scores = scores if levels is None else np.round(scores * levels)
    good, bad = scores[~labels], scores[labels]

    wins = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)
    average_precision, f1, previous_recall = 0.0, [], 0.0
    for threshold in sorted(set(scores), reverse=True):
        hits = sum(bad >= threshold)
        precision, recall = hits / sum(scores >= threshold), hits / len(bad)
        average_precision += (recall - previous_recall) * precision
        previous_recall = recall
        f1.append(2 * hits / (sum(scores >= threshold) + len(bad)))
    expected = {"image_auroc": wins / (len(good) * len(bad)), "image_ap": average_precision, "image_f1_max": max(f1)}
    assert detection_metrics(scores, labels) == pytest.approx(expected, rel=1e-9)
    assert detection_metrics(scores, labels.astype(int)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("levels", [1, 4, None])
def test_detection_metrics_match_sklearn(levels):
    rng = np.random.default_rng(5)
    truth = rng.random(200) < 0.3
    scores = rng.normal(size=200) + truth
    scores = scores if levels is None else np.round(scores * levels)
    metrics = detection_metrics(scores, truth)
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(truth, scores), rel=1e-9)
    assert metrics["image_ap"] == pytest.approx(average_precision_score(truth, scores), rel=1e-9)
    assert metrics["image_f1_max"] == pytest.approx((2 * precision * recall / (precision + recall + 1e-300)).max(), rel=1e-9)


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([0, 1, 2], [0, 0, 0], "got 0 defective of 3"),
        ([0, 1, 2], [1, 1, 1], "got 3 defective of 3"),
        ([0, 1], [0, 1, 1], "must both be"),
        ([0, 1, np.nan], [0, 1, 1], "NaN or infinity"),
    ],
)
def test_detection_refuses_what_has_no_curve(scores, truth, message):
    with pytest.raises(ValueError, match=message):
        detection_metrics(np.array(scores), np.array(truth))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_f1_of_masks_is_that_of_sklearn_over_all_pixels(share):
    rng = np.random.default_rng(0)
    masks, called = rng.random((4, 12, 15)) < 0.1, rng.random((4, 12, 15)) < share
    masks[1] = False
    metrics = mask_metrics(called, masks, 0.4)
    expected = f1_score(masks.ravel(), called.ravel(), zero_division=0)
    assert metrics == pytest.approx({"seg_f1": expected, "seg_f1_share": expected / 0.4})
    assert mask_metrics(masks, masks, 1.0) == {"seg_f1": 1.0, "seg_f1_share": 1.0}


def test_one_threshold_reaches_the_best_f1_and_no_more():
    rng = np.random.default_rng(1)
    maps, masks = rng.normal(size=(3, 20, 20)), rng.random((3, 20, 20)) < 0.2
    maps += masks
    best = localization_metrics(maps, masks)["pixel_f1_max"]
    shares = [mask_metrics(maps >= threshold, masks, best)["seg_f1_share"] for threshold in np.unique(maps)]
    assert max(shares) == pytest.approx(1) and min(shares) < 0.1


@pytest.mark.parametrize(("called", "masks"), [(np.ones((1, 2, 2)), np.ones((1, 2, 3))), (np.ones((2, 2)), np.zeros((2, 2)))])
def test_f1_of_masks_refuses_what_has_none(called, masks):
    with pytest.raises(ValueError, match="one shape and a defective pixel"):
        mask_metrics(called, masks, 0.5)
