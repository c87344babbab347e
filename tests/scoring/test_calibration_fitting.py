"""Fitting a calibration: two passes over streaming images give what all maps in memory would, in flat memory."""

import gc
import tempfile

import numpy as np
import psutil
import pytest
import torch
from diffad import Calibration, ImageError
from diffad.scoring.config import TERMS, ScoreConfig
from diffad.scoring.presets import DEFAULT
from diffad.scoring.scorer import MeasuredMaps
from diffad.scoring.statistics import TermStatistics, split_for_statistics
from fixed_maps import FixedMaps, fit, moments, named, random_maps
from PIL import Image
from tiny_pipeline import SIZE, category_images, smooth_images, tiled_pipeline, tiny_pipeline

# Statistics

WITHOUT_TAILS = {"fusion": "sum", "verdict": {}}


def test_statistics_of_parts_add_up_to_those_of_all():
    maps = torch.randn(6, 5, 5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 10
    inside = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    config = ScoreConfig(timesteps=(20,), **WITHOUT_TAILS)
    parts = [TermStatistics.of(named(config, of_image), inside, config) for of_image in maps]
    in_two = [TermStatistics.sum([parts[i] for i in half]) for half in ((3, 5, 0), (1, 2, 4))]
    for total in (TermStatistics.sum(parts), TermStatistics.sum(in_two)):
        pixels = maps[:, :, inside].double().numpy()  # (6, 5, pixels)
        assert total.count == pixels[:, 0].size
        mean, std = total.mean_and_std
        np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2)), rtol=1e-12)
        np.testing.assert_allclose(std, pixels.std(axis=(0, 2)), rtol=1e-9)


def test_statistics_survive_a_large_mean_and_a_small_spread():
    maps = 1000 + 0.01 * torch.randn(4, 5, 50, 50, generator=torch.Generator().manual_seed(0))
    config = ScoreConfig(timesteps=(20,), **WITHOUT_TAILS)
    everywhere = torch.ones(50, 50, dtype=torch.bool)
    std = TermStatistics.sum([TermStatistics.of(named(config, m), everywhere, config) for m in maps]).mean_and_std[1]
    np.testing.assert_allclose(std, maps.double().transpose(0, 1).flatten(1).std(dim=1, correction=0), rtol=1e-5)


def test_statistics_of_maps_that_are_not_finite_are_refused():
    for broken in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            Calibration().set_statistics(moments(np.array([0.0] * 10 + [broken]), np.zeros(11)))


# What is fitted, against all maps in memory


def naive_map(calibration: Calibration, image: np.ndarray, mean: dict, std: dict) -> np.ndarray:
    """Eq. 11 spelled out for one image `(M, H, W)`."""
    config, names = calibration.config, calibration.term_map_names
    result = 0
    for term, weight in config.weights.items():
        of_term = [name for name in names if name.split("@")[0] == term]
        for name in of_term:
            result = result + weight / len(of_term) * (image[names.index(name)] - mean[name]) / std[name]
    return result


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("standardized_terms", [("kl", "rgb", "feature", "mahalanobis"), ("kl",), ()])
def test_fit_matches_the_formulas_written_out(standardized_terms, batch_size):
    calibration = Calibration(
        timesteps=(20, 401),
        weights={"mahalanobis": 0.5, "kl": 0.3, "rgb": 0.2},
        standardized_terms=standardized_terms,
        top_k=3,
    )
    raw = random_maps(calibration, count=23)
    fit(calibration, raw, batch_size=batch_size)
    of_statistics, of_thresholds = split_for_statistics(np.arange(23), seed=0, share=0.1)
    assert len(of_statistics) == 2
    if not standardized_terms:
        of_thresholds = np.arange(23)
    mean, std = {}, {}
    for i, name in enumerate(calibration.term_map_names):
        chosen = name.split("@")[0] in standardized_terms
        mean[name] = raw[of_statistics, i].astype(float).mean() if chosen else 0.0
        std[name] = raw[of_statistics, i].astype(float).std() if chosen else 1.0
        assert calibration.term_mean[i].item() == pytest.approx(mean[name], rel=1e-6)
        assert calibration.term_std[i].item() == pytest.approx(std[name], rel=1e-6)
    maps = [naive_map(calibration, image, mean, std) for image in raw[of_thresholds]]
    scores = sorted(np.sort(m, axis=None)[-3:].mean() for m in maps)
    np.testing.assert_allclose(calibration.calibration_scores, scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(calibration.calibration_maxima, sorted(m.max() for m in maps), rtol=1e-4, atol=1e-5)
    assert calibration.is_fitted and calibration.config.num_calibration_images == len(of_thresholds)
    assert calibration.image_threshold(0.2) < calibration.pixel_threshold(0.2)


def test_calibration_of_several_categories_is_that_of_each_alone():
    settings = {"timesteps": (20,), "weights": {"kl": 0.3, "mahalanobis": 0.7}}
    together = Calibration(num_calibration_images=(0, 0, 0), **settings)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [7, 4, 12]))
    maps = random_maps(together, count=23, size=(3, 4)) * (1 + labels).reshape(-1, 1, 1, 1)
    fit(together, maps, labels)
    assert together.images_per_category == [6, 3, 11]
    number = len(together.term_map_names)
    for label in range(3):
        alone = Calibration(**settings)
        fit(alone, maps[labels == label])
        own = slice(label * number, (label + 1) * number)
        torch.testing.assert_close(together.term_mean[own], alone.term_mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(together.term_std[own], alone.term_std, rtol=1e-6, atol=0)
        np.testing.assert_allclose(together.calibration_scores_of(label), alone.calibration_scores, rtol=1e-5)
        assert together.pixel_threshold(0.5, label) == pytest.approx(alone.pixel_threshold(0.5), rel=1e-5)
    with pytest.raises(ValueError, match="at least 2 good images of class 1, got 0"):
        fit(together.unfitted(), maps[labels != 1], labels[labels != 1])


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (4, 1), (19, 1), (20, 2), (114, 11)])
def test_one_image_in_ten_gives_the_statistics_and_none_is_lost(count, expected):
    images = np.arange(count) + 1000
    of_statistics, of_thresholds = split_for_statistics(images, seed=3, share=0.1)
    assert len(of_statistics) == expected
    assert sorted([*of_statistics, *of_thresholds]) == images.tolist()
    if count > 4:
        assert not np.array_equal(of_statistics, split_for_statistics(images, seed=4, share=0.1)[0])


def test_statistics_and_thresholds_do_not_share_images():
    """Else the scores behind the thresholds would not be exchangeable with those of new images."""
    calibration = Calibration()
    maps = random_maps(calibration, count=12)
    of_statistics, of_thresholds = split_for_statistics(np.arange(12), seed=0, share=0.1)
    scorer = fit(calibration, maps)
    assert scorer.asked == [*of_statistics, *of_thresholds]
    mean, std = calibration.term_mean.clone(), calibration.term_std.clone()
    maps[of_thresholds] *= 3
    fit(calibration, maps)
    assert torch.equal(mean, calibration.term_mean) and torch.equal(std, calibration.term_std)


def test_scores_of_calibration_images_are_exchangeable_with_new_ones():
    """Terms with outliers of their own: with statistics of the scored images themselves 0.33 in place of 0.2."""
    rng = np.random.default_rng(0)
    draws, alarms = 300, 0
    for _ in range(draws):
        calibration = Calibration(timesteps=(20,), weights=dict.fromkeys(TERMS, 0.2))
        maps = rng.standard_t(df=1, size=(5, len(TERMS), 1, 2)).astype(np.float32)
        fit(calibration, maps[:4])
        raw = zip(calibration.term_map_names, torch.from_numpy(maps[4]), strict=True)
        score = calibration.combine(calibration.standardize({name: of_term[None] for name, of_term in raw})).max()
        level = 1 / (calibration.config.num_calibration_images + 1)
        alarms += score.item() > calibration.image_threshold(level)
    assert alarms / draws == pytest.approx(level, abs=0.05)  # two standard errors


@pytest.mark.parametrize("image", range(6))
def test_non_finite_maps_are_refused(image):
    calibration = Calibration()
    maps = random_maps(calibration)
    maps[image, -1, 1, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit(calibration, maps)


@pytest.mark.parametrize(("settings", "needed"), [({}, 2), ({"standardized_terms": ()}, 1), ({"per_image": True}, 1)])
def test_fitting_on_too_few_images_is_refused(settings, needed):
    calibration = Calibration(**settings)
    maps = random_maps(calibration, count=needed)
    with pytest.raises(ValueError, match=f"at least {needed} good images, got {needed - 1}"):
        fit(calibration, maps[: needed - 1])
    fit(calibration, maps)
    assert calibration.config.num_calibration_images == 1


# Streaming


def test_pipeline_calibrates_as_all_its_maps_in_memory_would():
    pipe = tiled_pipeline(top_k=5)
    images = smooth_images(11, seed=4, size=(80, 64))
    calibration = pipe.calibrate(images, batch_size=3, short_side=64)
    pixels = torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])).float() / 127.5 - 1
    with torch.no_grad():
        maps = pipe.scorer.raw_term_maps(pixels)
    raw = torch.stack([maps[name] for name in calibration.term_map_names], dim=1).double().numpy()
    of_statistics, of_thresholds = split_for_statistics(np.arange(11), seed=0, share=0.1)
    mean = dict(zip(maps, raw[of_statistics].mean(axis=(0, 2, 3))))
    std = dict(zip(maps, raw[of_statistics].std(axis=(0, 2, 3))))
    naive = [naive_map(calibration, image, mean, std) for image in raw[of_thresholds]]
    expected = sorted(np.sort(m, axis=None)[-5:].mean() for m in naive)
    np.testing.assert_allclose(calibration.calibration_scores, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tiled", [False, True])
def test_every_image_is_read_and_scored_once_and_nothing_goes_to_the_disk(tiled, tmp_path, monkeypatch):
    pipe = tiled_pipeline() if tiled else tiny_pipeline()
    opened, passed = [], []
    images = [lambda i=i: opened.append(i) or smooth_images(1, seed=i)[0] for i in range(13)]
    pipe.unet.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))  # nothing temporary can be made
    pipe.calibrate(images, batch_size=4, short_side=2 * SIZE if tiled else None)
    assert sorted(opened) == list(range(13))
    assert sum(passed) == 13 * 3 * (9 if tiled else 1)  # an image of 64x64 has nine tiles
    assert not list(tmp_path.iterdir())


def test_unreadable_image_is_named_by_its_place_among_all():
    pipe = tiny_pipeline(("nut", "bolt"))
    images = [*category_images(3, 1, 0), *category_images(2, 1, 1), np.zeros((4, 4, 7))]
    with pytest.raises(ImageError, match="image 5"):
        pipe.calibrate(images, categories=["nut"] * 3 + ["bolt"] * 3)


def live_bytes() -> int:
    """Of all tensors and images."""
    alive = gc.get_objects()
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive if type(t) is torch.Tensor}
    return sum(tensors.values()) + sum(3 * i.width * i.height for i in alive if issubclass(type(i), Image.Image))


def test_no_more_is_alive_after_many_images_than_after_few():
    pipe = tiled_pipeline()
    peaks = []
    for count in (2, 6, 12):  # the first makes what is cached for good
        reads, most = 0, 0

        def read(count=count) -> Image.Image:
            nonlocal reads, most
            reads += 1
            if reads > count - 2:
                most = max(most, live_bytes())
            return smooth_images(1, seed=1, size=(2 * SIZE, 2 * SIZE))[0]

        pipe.calibrate([read] * count, batch_size=4, short_side=2 * SIZE)
        peaks.append(most)
    channels = pipe.feature_extractor.config.channels
    assert peaks[2] - peaks[1] <= 12 * (2 * 8 + 4 * channels)  # a score, a maximum and pooled features of each image


@pytest.mark.parametrize("score", [{}, DEFAULT], ids=["standardised sum", "default"])
def test_memory_of_the_process_does_not_grow_with_the_number_of_images(score):
    """Eight maps of 256x256 for each of 200 images are 420 MB, if they were kept."""
    process, used = psutil.Process(), []

    class LargeMaps(FixedMaps):
        def __init__(self, calibration, maps):
            super().__init__(calibration, maps)
            self.image_size = (256, 256)

        def measure(self, images, category=None, terms=None, tiles_per_pass=8, detail=None):
            used.append(process.memory_info().rss)
            maps, _ = super().measure(images)
            large = {name: of_term.expand(-1, 256, 256) + torch.rand(256, 256) for name, of_term in maps.items()}
            return MeasuredMaps(large, None)

    calibration = Calibration(**score)
    maps = random_maps(calibration, count=200, size=(1, 1))
    fit(calibration, maps, batch_size=2, scorer_class=LargeMaps)
    assert len(used) == 100 and calibration.is_fitted
    assert max(used) - max(used[:10]) < 60 * 2**20
