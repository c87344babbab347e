"""Tuning on defects that one term sees and the present score doesn't; thresholds stay those of untouched good images."""

import numpy as np
import pytest
import torch
from diffad.data import DataError
from diffad.evaluation.measured_terms import GoodImages, measure
from diffad.evaluation.tuning import AREAS
from diffad.imaging.reading import ImageError
from diffad.jobs.tune import defect_samples, tune
from diffad.scoring.fitting import split_calibration_images
from PIL import Image
from tiny_pipeline import category_images, smooth_images, tiny_pipeline

SCORE = {"fusion": "tails", "statistics_share": 1 / 3, "smoothing_sigma": 1.0}
# The tiny UNet is not trained: its prediction of pixels says nothing, and the features see a chequered block.
BLIND = {**SCORE, "weights": {"kl": 1.0}, "verdict": {"kl": 1.0}}
SEEING = {**SCORE, "weights": {"mahalanobis": 1.0}, "verdict": {"mahalanobis": 1.0}}
GOOD = smooth_images(30, seed=4)


def save_defects(folder, images, size=8):
    """Saves images with a block of `size` and a mask of it each, and returns both folders."""
    for name in ("defects", "masks"):
        (folder / name).mkdir(parents=True)
    for i, image in enumerate(images):
        pixels, mask = np.array(image), np.zeros((32, 32), np.uint8)
        place = np.s_[4 + 2 * i : 4 + 2 * i + size, 8 : 8 + size]
        pixels[place] = np.where(np.indices((size, size)).sum(0) % 4 < 2, 0, 255)[..., None] // (1 + int(pixels.max() < 128))
        mask[place] = 255
        Image.fromarray(pixels).save(folder / f"defects/{i}.png")
        Image.fromarray(mask).save(folder / f"masks/{i}_mask.png")
    return folder / "defects", folder / "masks"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_defects(tmp_path_factory.mktemp("known"), smooth_images(8, seed=21))


def calibrated(settings):
    pipe = tiny_pipeline(**settings)
    pipe.calibrate(GOOD)
    return pipe


@pytest.mark.parametrize("with_masks", [True, False])
def test_the_term_that_sees_the_defects_is_found(folders, with_masks):
    pipe = calibrated(BLIND)
    defects = defect_samples(folders[0], folders[1] if with_masks else None)
    tuning = tune(pipe, GoodImages(GOOD), defects, batch_size=4)
    assert tuning.is_changed and tuning.has_masks == with_masks and tuning.defects == 8 and tuning.good_images == 10
    config = pipe.calibration.score_config
    assert config.weights == tuning.anomaly_map.chosen.weights and config.verdict == tuning.verdict.chosen.weights
    assert config.verdict_area == tuning.verdict.chosen.area
    assert tuning.anomaly_map.is_changed and tuning.anomaly_map.chosen.shares.get("kl", 0) <= 0.5
    assert tuning.anomaly_map.gain > 0.1 and config.smoothing_sigma == 1
    # The thresholds are those of a calibration that knows no defects.
    other = tiny_pipeline(**SCORE, weights=config.weights, verdict=config.verdict, verdict_area=config.verdict_area)
    expected = other.calibrate(GOOD)
    torch.testing.assert_close(pipe.calibration.calibration_scores, expected.calibration_scores)
    torch.testing.assert_close(pipe.calibration.calibration_maxima, expected.calibration_maxima)


def test_a_score_that_sees_the_defects_stays_as_it_is(folders):
    pipe = calibrated(SEEING)
    calibration = pipe.calibration
    tuning = tune(pipe, GoodImages(GOOD), defect_samples(folders[0]))
    assert not tuning.is_changed and pipe.calibration is calibration
    assert tuning.verdict.chosen.weights == tuning.anomaly_map.chosen.weights == {"mahalanobis": 1.0}


def test_good_images_behind_thresholds_choose_nothing(folders):
    """None of them is even read before the choice is made; calibration takes thresholds from just those, by whole groups."""
    pipe = calibrated(BLIND)
    groups = [f"part {i // 2}" for i in range(len(GOOD))]
    read: list[int] = []

    def reader(i):
        return lambda: read.append(i) or GOOD[i]

    good = GoodImages([reader(i) for i in range(len(GOOD))], groups=groups)
    measured = measure(pipe, good, defect_samples(*folders), AREAS)
    of_statistics, behind = split_calibration_images(pipe.calibration, np.zeros(len(GOOD), int), groups)
    behind = np.concatenate(behind[0])
    assert set(read) == set(of_statistics.tolist()) and not set(read) & set(behind.tolist())
    assert measured.count == len(of_statistics) == 2
    read.clear()
    calibration = pipe.calibrate(good.images, groups=groups)
    assert set(read) == set(range(len(GOOD)))
    assert calibration.config.num_calibration_images == len(set(groups[i] for i in behind))
    assert not {groups[i] for i in behind} & {groups[i] for i in of_statistics}


def test_measured_maps_are_those_of_the_calibrated_score(folders):
    pipe = calibrated({**SCORE, "weights": {"rgb": 1.0, "residual": 2.0}, "verdict": {"residual": 1.0, "feature": 2.0}})
    samples = defect_samples(*folders)
    measured = measure(pipe, GoodImages(GOOD), samples, AREAS)
    output = pipe([sample.read() for sample in samples], map_size=(16, 16))
    fused = (measured.maps["rgb"] + 2 * measured.maps["residual"])[measured.count :]
    np.testing.assert_allclose(fused, np.stack(output.anomaly_maps), atol=1e-4)
    scores = [measured.highest[term, 0.01][measured.count :] for term in ("residual", "feature")]
    expected = (scores[0] + 2 * scores[1]) / 3
    np.testing.assert_allclose(output.image_scores, expected, rtol=1e-3, atol=1e-3)
    assert measured.masks.shape == (8, 16, 16) and measured.masks.sum() == 8 * 16


def test_a_model_of_several_categories_is_tuned_as_one(tmp_path):
    pipe = tiny_pipeline(("bright", "dark"), **BLIND)
    images, categories = [*GOOD[:12], *category_images(12, 4, 1)], [0] * 12 + [1] * 12
    pipe.calibrate(images, categories=categories)
    defects = defect_samples(*save_defects(tmp_path, [*smooth_images(3, seed=21), *category_images(3, 22, 1)]))
    tuning = tune(pipe, GoodImages(images, categories), defects)
    assert tuning.good_images == 2 and tuning.defects == 6 and tuning.anomaly_map.is_changed
    assert pipe.calibration.images_per_category == [11, 11]


def test_a_mask_outside_the_region_of_interest_is_refused(folders):
    pipe = tiny_pipeline(**BLIND)
    roi = np.zeros((32, 32), np.uint8)
    roi[:, 20:] = 255
    pipe.calibrate(GOOD, roi=Image.fromarray(roi))
    with pytest.raises(DataError, match="0_mask.png: marks nothing .in the region of interest.; leave 0.png out"):
        tune(pipe, GoodImages(GOOD), defect_samples(*folders))


@pytest.mark.parametrize("settings", [{"weights": {"kl": 1.0}}, {"weights": {"kl": 1.0}, "fusion": "tails"}])
def test_scores_of_earlier_kinds_are_refused(folders, settings):
    with pytest.raises(ValueError, match="fit the model anew with training/refit.py"):
        tune(calibrated(settings), GoodImages(GOOD), defect_samples(*folders))


def test_wrong_folders_are_refused(tmp_path, folders):
    defects, masks = save_defects(tmp_path, smooth_images(3, seed=21))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        defect_samples(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere: no such folder of masks"):
        defect_samples(defects, tmp_path / "nowhere")
    with pytest.raises(DataError, match="lies in the folder of images"):
        defect_samples(tmp_path, masks)
    (masks / "1_mask.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="1_mask.png"):
        defect_samples(defects, masks)
    (masks / "1_mask.png").unlink()
    with pytest.raises(DataError, match=r"1.png: no mask in .*masks; add it"):
        defect_samples(defects, masks)
    (defects / "1.png").unlink()
    with pytest.raises(DataError, match=r"2 defective image\(s\), and tuning needs 3"):
        defect_samples(defects, masks)
