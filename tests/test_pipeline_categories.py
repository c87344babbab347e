"""DiffADPipeline of several categories: the category selects Gaussians and statistics, names are given or recognised."""

import json
import warnings

import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.scoring.inputs import InputReader
from diffad.scoring.statistics import split_for_statistics
from three_products import LABELS, NAMES, mixed_images, three_products
from tiny_pipeline import category_images, smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    return three_products()


def test_unknown_categories_are_recognised_and_named(pipe):
    images = mixed_images()
    images[4] = images[4].copy()
    images[4].paste((255, 0, 0), (4, 4, 12, 12))  # a defect does not change what the part is
    inferred = pipe(images, batch_size=4)
    assert inferred.categories == [NAMES[label] for label in LABELS]
    given = pipe(images, batch_size=4, categories=LABELS)
    np.testing.assert_array_equal(inferred.image_scores, given.image_scores)
    np.testing.assert_array_equal(inferred.anomaly_maps, given.anomaly_maps)


def test_batch_of_mixed_categories_equals_one_by_one(pipe):
    images = mixed_images()
    together = pipe(images, categories=LABELS, false_alarm_rate=0.1, return_term_maps=True)
    for i, label in enumerate(LABELS):
        alone = pipe(images[i], categories=[label], false_alarm_rate=0.1, return_term_maps=True)
        assert together.image_scores[i] == pytest.approx(alone.image_scores[0], rel=1e-4)
        assert together.p_values[i] == alone.p_values[0] and together.is_defective[i] == alone.is_defective[0]
        np.testing.assert_allclose(together.anomaly_maps[i], alone.anomaly_maps[0], rtol=1e-3, atol=1e-4)
        for name, term_map in together.term_maps[i].items():
            np.testing.assert_allclose(term_map, alone.term_maps[0][name], rtol=1e-3, atol=1e-3)


def test_verdicts_follow_the_thresholds_of_each_images_category(pipe):
    images = mixed_images()
    pipe.calibration.calibration_scores[:18] += 1000  # of the first class only
    try:
        output = pipe(images, categories=LABELS, false_alarm_rate=0.1)
    finally:
        pipe.calibration.calibration_scores[:18] -= 1000
    for i, label in enumerate(LABELS):
        assert output.pixel_thresholds[i] == pipe.calibration.pixel_threshold(0.1, label)
        assert output.image_thresholds[i] == pipe.calibration.image_threshold(0.1, label) + 1000 * (label == 0)
        assert output.is_defective[i] == (label > 0 and output.image_scores[i] > pipe.calibration.image_threshold(0.1, label))
        assert (output.masks[i] == (output.anomaly_maps[i] > pipe.calibration.pixel_threshold(0.1, label))).all()
        assert (output.p_values[i] == 1) == (label == 0)


def test_images_are_repaired_by_the_thresholds_of_their_category(pipe):
    images = mixed_images()[:2]
    thresholds = pipe.calibration.calibration_scores.clone()
    for lowered in (0, 1):
        pipe.calibration.calibration_scores[slice(18) if lowered == 0 else slice(18, None)] = -1000
        try:
            output = pipe.reconstruct(images, categories=[0, 1], timesteps=(50,))
        finally:
            pipe.calibration.calibration_scores.copy_(thresholds)
        assert [change.any() for change in output.difference_maps] == [lowered == 0, lowered == 1]


def test_default_rate_is_the_one_that_each_images_category_supports_whatever_is_scored_together():
    pipe = tiny_pipeline(("nut", "bolt"), smoothing_sigma=1.0)
    pipe.calibrate([*category_images(4, 4, 0), *category_images(25, 4, 1)], categories=["nut"] * 4 + ["bolt"] * 25)
    assert pipe.calibration.images_per_category == [3, 23]
    nut, bolt = category_images(1, 9, 0)[0], category_images(1, 9, 1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = pipe(bolt, categories="bolt")
    assert alone.false_alarm_rates == [0.05]
    with pytest.warns(UserWarning, match="3 calibration images of category 0 .* 0.25 at best"):
        together = pipe([nut, bolt], categories=["nut", "bolt"])
    assert together.false_alarm_rates.tolist() == [0.25, 0.05]
    assert together.image_thresholds[0] == pipe.calibration.image_threshold(0.25, 0)
    assert together.image_thresholds[1] == alone.image_thresholds[0] == pipe.calibration.image_threshold(0.05, 1)
    assert pipe.reconstruct([nut, bolt], timesteps=(50,)).images
    for labels in ("nut", None):  # what is recognised may be either
        with pytest.raises(ValueError, match="needs 19 .*there are 3"):
            pipe(bolt, categories=labels, false_alarm_rate=0.05)


def test_good_images_are_standardised_within_their_category(pipe):
    for label in range(3):
        images = category_images(19 + label, 4, label)
        of_statistics, of_thresholds = split_for_statistics(np.arange(19 + label), seed=0, share=0.1)
        assert pipe.calibration.images_per_category[label] == len(of_thresholds)
        images = [images[i] for i in of_statistics]
        term_maps = pipe(images, categories=label, false_alarm_rate=0.1, return_term_maps=True).term_maps
        for name in pipe.calibration.term_map_names:
            values = np.stack([term_map[name] for term_map in term_maps])
            assert values.mean() == pytest.approx(0, abs=1e-3) and values.std() == pytest.approx(1, rel=1e-3)


def test_categories_may_be_names_indices_or_one_for_all(pipe):
    images = mixed_images()[1::3]
    expected = pipe(images, categories=[1, 1])
    assert expected.categories == ["bolt", "bolt"] and pipe.category_names == list(NAMES)
    for labels in ("bolt", 1, ["bolt", 1], np.array([1, 1])):
        np.testing.assert_array_equal(pipe(images, categories=labels).image_scores, expected.image_scores)
    assert not np.allclose(pipe(images, categories="nut").image_scores, expected.image_scores)
    with pytest.raises(ValueError, match="'screw' is none of nut, bolt, washer"):
        pipe(images, categories="screw")
    with pytest.raises(ValueError, match="3 is none of nut"):
        pipe(images, categories=[0, 3])
    with pytest.raises(ValueError, match="1 categories for 2 images"):
        pipe(images, categories=["nut"])


def test_recalibration_needs_every_category(pipe):
    before = pipe.calibration
    with pytest.raises(ValueError, match="at least 2 good images of bolt, got 0"):
        pipe.calibrate(smooth_images(3, seed=1), categories="nut")
    assert pipe.calibration is before


def test_large_image_is_recognised_by_its_tiles():
    pipe = tiny_pipeline(NAMES, smoothing_sigma=1.0)
    pipe.register_modules(calibration=pipe.calibration.unfitted(short_side=64))
    images = [category_images(1, seed, label, size=(96, 64))[0] for seed, label in ((3, 2), (4, 0), (5, 1))]
    for batch_size in (1, 5):
        reader = InputReader(pipe.scorer, pipe.discriminant, pipe.device)
        assert reader.categories(images, None, batch_size).indices == [2, 0, 1]


def test_saved_model_scores_and_names_the_same(pipe, tmp_path, no_network):
    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = mixed_images()
    expected, actual = pipe(images, false_alarm_rate=0.1), loaded(images, false_alarm_rate=0.1)
    assert actual.categories == expected.categories
    np.testing.assert_array_equal(actual.image_scores, expected.image_scores)
    np.testing.assert_array_equal(actual.p_values, expected.p_values)
    np.testing.assert_array_equal(actual.is_defective, expected.is_defective)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_model_of_one_category_saved_before_there_were_several_still_loads(tmp_path):
    pipe = tiny_pipeline(smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4))
    pipe.save_pretrained(tmp_path)
    for file, entry in (("model_index.json", "discriminant"), ("gaussian/config.json", "num_classes")):
        config = json.loads((tmp_path / file).read_text())
        del config[entry]
        (tmp_path / file).write_text(json.dumps(config))
    (tmp_path / "digest.json").unlink()  # nor were there digests
    assert json.loads((tmp_path / "calibration" / "config.json").read_text())["num_calibration_images"] == 18
    assert pipe.gaussian.mean.shape[0] == 16 and pipe.calibration.term_mean.shape == (11,)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    images = smooth_images(3, seed=5)
    np.testing.assert_array_equal(loaded(images).image_scores, pipe(images).image_scores)
    assert loaded(images).categories is None and loaded.category_names is None
