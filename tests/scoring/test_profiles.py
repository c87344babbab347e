"""Profiles: their settings, their calibrations, and a pipeline that scores by each of them."""

import numpy as np
import pytest
import torch
from diffad import CalibratedProfiles, DiffADPipeline
from diffad.models.digest import model_digest
from diffad.scoring.config import DETAIL_TERMS, SCALE_TERMS, UNET_TERMS, ScoreConfig
from diffad.scoring.fitting import split_calibration_images
from diffad.scoring.presets import DEFAULT, score_settings
from diffad.scoring.profiles import PROFILES, profile_settings, scales_of
from pyramid_pipeline import pyramid_pipeline
from tiny_pipeline import category_images, smooth_images, tiny_pipeline

MAP = {"residual": 1.0, "detail": 1.0}  # as it may have been chosen for a product
GOOD = smooth_images(24, seed=4)
NEW = smooth_images(4, seed=6)


def with_profiles(pipe: DiffADPipeline, names=("fast", "best", "gaussian")) -> DiffADPipeline:
    """Sets the score and its profiles as training would; not calibrated."""
    scales = pipe.scales
    balanced = {"weights": MAP, "scales": ("coarse", "detail", "coarse_detail")} if scales else {"weights": {"residual": 1.0}}
    settings = {**DEFAULT, "scales": (), "verdict": {"residual": 1.0}, "smoothing_sigma": 1.0, **balanced}
    pipe.calibration = pipe.calibration.unfitted(**settings)
    of_profiles = {name: profile_settings(name, pipe.calibration.score_config, scales) for name in names}
    pipe.set_calibrations({name: pipe.calibration.unfitted(**s) for name, s in of_profiles.items() if s is not None})
    return pipe


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    pipe = with_profiles(pyramid_pipeline())
    pipe.calibrate(GOOD, batch_size=5)
    return pipe


# Settings


@pytest.mark.parametrize("name", PROFILES)
def test_settings_of_every_profile_are_those_of_a_score(name):
    balanced = ScoreConfig(**{**DEFAULT, "weights": MAP, "timesteps": (7,), "smoothing_sigma": 2.0})
    settings = profile_settings(name, balanced, SCALE_TERMS)
    config = ScoreConfig(**{**DEFAULT, "timesteps": (7,), "smoothing_sigma": 2.0, **settings})
    assert set(config.scales) == {*config.weights, *config.verdict} & set(SCALE_TERMS)
    assert set(config.scales) <= {*scales_of([name]), *balanced.scales}


def test_what_distinguishes_the_profiles():
    of = {name: profile_settings(name, ScoreConfig(**{**DEFAULT, "weights": MAP}), SCALE_TERMS) for name in PROFILES}
    assert of["balanced"] == {name: DEFAULT[name] for name in ("verdict", "scales")} | {"weights": MAP}
    assert of["best"]["weights"] == {**MAP, "neighbors": 1.0} and of["best"]["verdict"] == DEFAULT["verdict"]
    assert of["fast"]["scales"] == ("coarse", "feature_residual", "pixel_residual")
    chosen = profile_settings("fast", ScoreConfig(**DEFAULT), SCALE_TERMS, ("pixel_residual",))
    assert chosen == {**of["fast"], "weights": {"pixel_residual": 1.0}}
    assert not {*of["fast"]["weights"], *of["fast"]["verdict"]} & {*UNET_TERMS, *DETAIL_TERMS}
    assert {*of["gaussian"]["weights"], *of["gaussian"]["verdict"]} <= set(SCALE_TERMS)


@pytest.mark.parametrize(
    ("scales", "short_side", "expected"),
    [
        (SCALE_TERMS, None, {"fast", "balanced", "best", "gaussian"}),
        (("coarse", "detail", "coarse_detail"), None, {"balanced", "gaussian"}),
        (("feature_residual", "pixel_residual"), None, {"fast", "balanced"}),
        (SCALE_TERMS, 64, {"fast", "balanced"}),
        ((), None, {"balanced"}),
    ],
)
def test_a_profile_of_which_nothing_would_be_left_is_left_out(scales, short_side, expected):
    balanced = ScoreConfig(**score_settings("default", short_side), short_side=short_side)
    settings = {name: profile_settings(name, balanced, scales) for name in PROFILES}
    assert {name for name, found in settings.items() if found is not None} == expected
    for found in filter(None, settings.values()):
        assert {*found["weights"], *found["verdict"]} & set(SCALE_TERMS) <= set(scales)
        assert short_side is None or not set(found["scales"]) & set(DETAIL_TERMS)


@pytest.mark.parametrize("score", ["paper", {"verdict": {}}])
def test_scores_of_another_kind_have_no_profiles(score):
    balanced = ScoreConfig(**score_settings(score))
    assert [profile_settings(name, balanced, SCALE_TERMS) for name in PROFILES] == [None] * len(PROFILES)


# Calibration


def test_profiles_are_calibrated_together_as_each_would_be_alone(pipe):
    alone = pyramid_pipeline()
    for name in pipe.profile_names:
        together = pipe.calibration_of(name)
        alone.calibration = together.unfitted()
        expected = alone.calibrate(GOOD, batch_size=5)
        assert expected.config.num_calibration_images == together.config.num_calibration_images > 10
        found = together.state_dict()
        assert found.keys() == expected.state_dict().keys()
        for key, values in expected.state_dict().items():
            torch.testing.assert_close(found[key], values, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")


def test_every_image_is_read_once_for_all_profiles(monkeypatch):
    pipe, opened, passed = with_profiles(pyramid_pipeline()), [], []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    pipe.calibrate([lambda i=i: opened.append(i) or GOOD[i] for i in range(12)], batch_size=5)
    assert sorted(opened) == list(range(12)) and sum(passed) == 12


@pytest.mark.parametrize("name", PROFILES)
def test_images_of_the_statistics_set_no_threshold(name):
    """Brighter threshold images change no statistics, other statistics images do; all images are one or the other."""
    pipe, images = with_profiles(pyramid_pipeline()), list(GOOD)
    calibration = pipe.calibration_of(name)
    of_statistics, of_groups = split_calibration_images(calibration, np.zeros(len(images), dtype=int))
    of_thresholds = [int(i) for group in of_groups[0] for i in group]
    assert sorted([*of_statistics, *of_thresholds]) == list(range(len(images))) and len(of_statistics)
    # The map is chosen on the images of the default's statistics: no profile may have others behind its thresholds.
    assert np.array_equal(of_statistics, split_calibration_images(pipe.calibration, np.zeros(len(images), dtype=int))[0])
    first = pipe.calibrate(images) and pipe.calibration_of(name).state_dict()
    for i in of_thresholds:
        images[i] = images[i].point(lambda value: value // 2)
    second = pipe.calibrate(images) and pipe.calibration_of(name).state_dict()
    unchanged = {key for key in first if torch.equal(first[key], second[key])}
    of_threshold_images = {"calibration_scores", "calibration_maxima", "calibration_features", "calibration_statistics"}
    assert unchanged == first.keys() - of_threshold_images - {"mean_squares"}


def test_region_groups_and_categories_are_those_of_all_profiles():
    pipe = with_profiles(tiny_pipeline(("nut", "bolt"), timesteps=(20,)), names=())
    pipe.set_calibrations({"fast": pipe.calibration.unfitted(weights={"mahalanobis": 1.0})})
    images = [*category_images(12, 4, 0), *category_images(12, 4, 1)]
    roi = np.zeros((32, 32), dtype=bool)
    roi[8:24, 4:20] = True
    names = ["nut"] * 12 + ["bolt"] * 12
    pipe.calibrate(images, categories=names, roi=roi, groups=[f"part {i // 2}" for i in range(24)])
    assert pipe.profile_names == ["balanced", "fast"]
    for name in pipe.profile_names:
        calibration = pipe.calibration_of(name)
        assert np.array_equal(calibration.roi, roi) and calibration.images_per_category == [5, 5]
    output = pipe(images[:2], profile="fast", categories="nut", false_alarm_rate=0.2)
    assert not any(mask[~roi].any() for mask in output.masks)


def test_settings_change_the_default_alone(pipe):
    changed = with_profiles(pyramid_pipeline())
    changed.calibrate(GOOD)
    before = changed.calibration_of("fast")
    changed.calibrate(GOOD[:16], smoothing_sigma=2.0)
    assert changed.calibration.config.smoothing_sigma == 2.0
    assert changed.calibration_of("fast") is before and before.config.smoothing_sigma == 1.0
    # Those that now need other maps than the default are calibrated in a pass of their own.
    changed.calibrate(GOOD)
    for name in ("fast", "best", "gaussian"):
        torch.testing.assert_close(
            changed.calibration_of(name).calibration_scores, pipe.calibration_of(name).calibration_scores, rtol=1e-5, atol=1e-6
        )


# Scoring


def test_each_profile_scores_and_judges_by_its_own_calibration(pipe):
    outputs = {name: pipe(NEW, profile=name, false_alarm_rate=0.1) for name in pipe.profile_names}
    for name, output in outputs.items():
        calibration = pipe.calibration_of(name)
        assert output.image_thresholds == pytest.approx([calibration.image_threshold(0.1)] * len(NEW))
        np.testing.assert_allclose(output.p_values, calibration.p_values(output.image_scores))
        alone = pipe.with_profile(name)
        assert alone.calibration is calibration
        np.testing.assert_array_equal(alone(NEW, false_alarm_rate=0.1).image_scores, output.image_scores)
        assert all(np.array_equal(a, b) for a, b in zip(alone(NEW).anomaly_maps, output.anomaly_maps))
    assert len({output.image_scores[0] for output in outputs.values()}) == 3  # best has the verdict of balanced
    assert len({output.anomaly_maps[0].max() for output in outputs.values()}) == 4
    np.testing.assert_array_equal(pipe(NEW, false_alarm_rate=0.1).image_scores, outputs["balanced"].image_scores)


def test_gaussian_and_fast_do_less(pipe):
    passes, sizes = [], []
    hooks = [
        pipe.unet.register_forward_pre_hook(lambda *_: passes.append(1)),
        pipe.feature_extractor.network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1])),
    ]
    pipe(NEW[0], profile="gaussian")
    assert not passes and set(sizes) == {32, 64}
    sizes.clear()
    hooks.append(pipe.feature_denoiser.register_forward_pre_hook(lambda *_: passes.append("features")))
    pipe(NEW[0], profile="fast")
    assert passes == ["features"] and set(sizes) == {32}
    for hook in hooks:
        hook.remove()


def test_a_profile_that_is_not_there_is_refused_with_those_that_are(pipe):
    with pytest.raises(ValueError, match="no profile 'fastest'; it has balanced, fast, best, gaussian$"):
        pipe(NEW, profile="fastest")
    with pytest.raises(ValueError, match="no profile 'fast'; it has balanced$"):
        tiny_pipeline().scorer_of("fast")


def test_scorers_are_kept_until_a_part_changes(pipe):
    assert pipe.scorer_of("fast") is pipe.scorer_of("fast") is not pipe.scorer
    assert pipe.scorer_of("balanced") is pipe.scorer
    changed, former = with_profiles(pyramid_pipeline()), []
    for _ in range(2):
        changed.calibrate(GOOD[:8])
        assert changed.scorer_of("fast") not in former
        assert changed.scorer_of("fast").calibration is changed.calibration_of("fast")
        former.append(changed.scorer_of("fast"))


# On the disk


def test_a_saved_model_has_its_profiles(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert {path.name for path in (tmp_path / "profiles").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "tensors.json",
    }
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.profile_names == pipe.profile_names
    for name in pipe.profile_names:
        kept, found = (one(NEW, profile=name, false_alarm_rate=0.2) for one in (pipe, loaded))
        np.testing.assert_allclose(kept.image_scores, found.image_scores, rtol=1e-6)
        np.testing.assert_array_equal(kept.p_values, found.p_values)
    assert model_digest(loaded.components) == model_digest(pipe.components)
    half = DiffADPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert {t.dtype for t in half.profiles.state_dict().values() if t.is_floating_point()} == {torch.float32}


def test_a_damaged_profile_is_named(pipe, tmp_path):
    settings = {name: dict(pipe.calibration_of(name).config) for name in ("fast", "best")}
    profiles = CalibratedProfiles(settings)
    profiles.calibrations["fast"].term_std.zero_()
    profiles.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="calibrations.fast.term_std is not positive"):
        CalibratedProfiles.from_pretrained(tmp_path)
