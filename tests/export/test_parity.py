"""An exported model says of images what the pipeline says."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
from diffad.export.calibration import calibrate_exported
from diffad.export.folder import stored_scores
from diffad.jobs.monitor import MonitorSettings, monitor
from diffad.monitoring import embedding_test
from diffad.runtime import Detector
from diffad.runtime.calibration import StoredCalibration
from diffad.runtime.description import DetectorDescription, ExportError
from diffad.runtime.reference_file import REFERENCE_FILE
from diffad.scoring.drawn_images import drawn_images
from diffad.system.file_digest import file_digest
from PIL import Image
from three_products import LABELS, mixed_images
from tiny_pipeline import category_images, smooth_images, tiny_pipeline

SIZES = [(32, 32), (90, 61), (20, 45), (200, 180)]


def images_of_all_sizes(count: int = 3) -> list[Image.Image]:
    """Good images, some with a block on them."""
    images = [image for i, size in enumerate(SIZES) for image in smooth_images(count, 50 + i, size)]
    for image in images[::2]:
        image.paste((255, 0, 0), (4, 8, 12, 14))
    return images


def assert_same_verdicts(actual, expected, scale: float, tolerance: float = 1e-4) -> None:
    """Scores and maps within a share of the good scores' standard deviation, everything decided alike."""
    np.testing.assert_allclose(actual.image_scores, expected.image_scores, atol=tolerance * scale)
    np.testing.assert_array_equal(actual.p_values, expected.p_values)
    np.testing.assert_array_equal(actual.is_defective, expected.is_defective)
    for name in ("false_alarm_rates", "image_thresholds", "pixel_thresholds"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
    for mine, theirs in zip(actual.anomaly_maps, expected.anomaly_maps, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, atol=tolerance * max(scale, np.abs(theirs).max()))
    for mine, theirs in zip(actual.masks, expected.masks, strict=True):
        assert (mine != theirs).mean() < 0.002  # pixels at the threshold itself
    assert actual.categories == expected.categories


def spread(pipe) -> float:
    return float(pipe.calibration.calibration_scores.std())


@pytest.mark.parametrize("kind", ["whole_images", pytest.param("openvino", marks=pytest.mark.long)])
def test_whole_images_score_as_in_the_pipeline(kind, request):
    exported, images = request.getfixturevalue(kind), images_of_all_sizes()
    expected = exported.pipe(images, false_alarm_rate=0.1)
    actual = exported.detector()(images, false_alarm_rate=0.1)
    assert_same_verdicts(actual, expected, spread(exported.pipe), 1e-4)
    assert 0 < expected.is_defective.sum() < len(images)
    assert actual.pooled_features is None


def assert_same_features(exported, images) -> None:
    actual, expected = (one(images, false_alarm_rate=0.3, return_features=True) for one in (exported.detector(), exported.pipe))
    np.testing.assert_allclose(actual.pooled_features, expected.pooled_features, atol=1e-4)
    assert_same_parts(exported.detector().calibration, exported.pipe.calibration)


def assert_same_parts(actual, expected, tolerance: float = 0.0) -> None:
    for category in range(len(expected.images_per_category)):
        mine, theirs = actual.reference_parts(category), expected.reference_parts(category)
        for name in ("features", "statistics", "mean_square"):
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), atol=tolerance)


def test_pooled_features_are_those_of_the_pipeline(whole_images):
    assert_same_features(whole_images, images_of_all_sizes(1))


@pytest.mark.long
def test_pooled_features_of_tiles_are_those_of_the_pipeline(tiles):
    images = [image for label in range(2) for image in category_images(2, 60 + label, label, (100, 61))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_features(tiles, images)


def test_diffad_monitor_compares_an_exported_models_features(whole_images, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (8,))
    reference, new = tmp_path / "good", tmp_path / "new"
    for folder, images in ((reference, smooth_images(30, seed=82)), (new, smooth_images(10, seed=83))):
        folder.mkdir()
        for i, image in enumerate(images):
            image.save(folder / f"{i:02d}.png")
    settings = MonitorSettings(reference=reference, false_alarm_rate=0.1)
    runs = [
        monitor(model, tmp_path / f"{i}.json", settings, folder=new)
        for i, model in enumerate((whole_images.detector(), whole_images.pipe))
    ]
    assert len(runs[0].reference_features) == len(runs[1].reference_features) > 20
    np.testing.assert_allclose(runs[0].reference_features, runs[1].reference_features, atol=1e-4)
    assert runs[0].monitor.state.looks and runs[0].monitor.state.looks == runs[1].monitor.state.looks


def test_a_folder_of_an_earlier_release_scores_as_before(whole_images, tmp_path):
    """Its graph has no pooled features, and no file is of them."""
    import onnx

    folder = shutil.copytree(whole_images.folder, tmp_path / "former")
    graph = onnx.load(folder / "model.onnx")
    (pooled,) = [output for output in graph.graph.output if output.name == "pooled_features"]
    graph.graph.output.remove(pooled)
    onnx.save(graph, folder / "model.onnx")
    (folder / REFERENCE_FILE).unlink()
    description = json.loads((folder / "detector.json").read_text())
    del description["files"][REFERENCE_FILE]
    for of_category in description["calibrations"]["fp32"]:
        del of_category["single_scores"]
    description["files"]["model.onnx"] = file_digest(folder / "model.onnx")
    (folder / "detector.json").write_text(json.dumps(description))
    former, images = Detector(folder, threads=1), images_of_all_sizes(1)
    found = former(images, false_alarm_rate=0.3, return_features=True)
    assert found.pooled_features is None and former.calibration.reference_parts() is None
    expected = whole_images.detector()(images, false_alarm_rate=0.3)
    np.testing.assert_array_equal(found.image_scores, expected.image_scores)
    assert calibrate_exported(folder, smooth_images(8, seed=81)).reference_parts() is None


def test_term_maps_are_those_of_the_pipeline(whole_images):
    images = smooth_images(2, seed=9)
    expected = whole_images.pipe(images, false_alarm_rate=0.1, return_term_maps=True).term_maps
    actual = whole_images.detector()(images, false_alarm_rate=0.1, return_term_maps=True).term_maps
    for mine, theirs in zip(actual, expected, strict=True):
        assert list(mine) == list(theirs)
        for name in theirs:
            np.testing.assert_allclose(mine[name], theirs[name], atol=1e-3 * max(1, np.abs(theirs[name]).max()), err_msg=name)


def test_categories_are_recognised_and_may_be_given(of_categories):
    images = mixed_images()
    images.append(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)))  # of no product
    detector = of_categories.detector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too few calibration images for 5 %
        assert_same_verdicts(detector(images), of_categories.pipe(images), 1.0)
        given = [*LABELS, 0]
        actual, expected = (one(images, categories=given) for one in (detector, of_categories.pipe))
        assert_same_verdicts(actual, expected, 1.0)
    with pytest.raises(ValueError, match="'screw' is none of nut, bolt, washer"):
        detector(images, categories="screw")


@pytest.mark.long
def test_tiles_are_blended_and_fused_as_in_the_pipeline(tiles):
    images = [image for label in range(2) for image in category_images(3, 60 + label, label, (100 + 40 * label, 61))]
    images[0].paste((255, 255, 0), (30, 20, 45, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, actual = (one(images, batch_size=4) for one in (tiles.pipe, tiles.detector()))
    assert_same_verdicts(actual, expected, spread(tiles.pipe), 1e-3)
    assert set(actual.categories) == {"nut", "bolt"} and actual.is_defective[0]


def test_neighbours_in_a_batch_do_not_matter(whole_images):
    detector, images = whole_images.detector(), images_of_all_sizes(2)
    together = detector(images, batch_size=5, false_alarm_rate=0.1)
    for i, image in enumerate(images):
        alone = detector(image, false_alarm_rate=0.1, map_size=(8, 8))
        np.testing.assert_allclose(alone.image_scores[0], together.image_scores[i], atol=1e-5 * spread(whole_images.pipe))
        assert alone.anomaly_maps[0].shape == (8, 8)


def test_calibrating_in_the_same_precision_gives_the_thresholds_of_the_same_images(whole_images, tmp_path):
    folder = shutil.copytree(whole_images.folder, tmp_path / "exported")
    good = smooth_images(40, seed=80)
    calibration = calibrate_exported(folder, good)
    found = whole_images.detector()(good, false_alarm_rate=0.1)
    np.testing.assert_allclose(calibration.calibration_scores_of(), np.sort(found.image_scores), atol=1e-4)
    order = np.argsort(found.image_scores)
    for kept in (calibration, Detector(folder).calibration):
        features = whole_images.detector()([good[i] for i in order], false_alarm_rate=0.1, return_features=True).pooled_features
        np.testing.assert_allclose(kept.reference_parts().features, features, atol=1e-5)
    again = Detector(folder)(good, false_alarm_rate=0.1)
    assert again.is_defective.sum() == 3  # of 40 the rate of 0.1 leaves those above rank ceil(41 * 0.9) = 37
    np.testing.assert_allclose(again.p_values[np.argsort(again.image_scores)], 1 - np.arange(40) / 41)
    grouped = calibrate_exported(folder, good, groups=[str(i // 2) for i in range(40)])
    assert grouped.images_per_category == [20] and calibration.single_scores_of() is None
    by_name = np.argsort([str(i // 2) for i in range(40)], kind="stable")
    drawn = drawn_images(by_name.reshape(20, 2), grouped.config.seed)
    order = drawn[np.argsort(found.image_scores[drawn])]
    expected = whole_images.detector()([good[i] for i in order], false_alarm_rate=0.1, return_features=True)
    for kept in (grouped, Detector(folder).calibration):
        np.testing.assert_allclose(kept.single_scores_of(), expected.image_scores, atol=1e-4)
        np.testing.assert_allclose(kept.reference_parts().features, expected.pooled_features, atol=1e-5)
    np.testing.assert_allclose(
        grouped.calibration_scores_of(), np.sort(found.image_scores.reshape(20, 2).max(axis=1)), atol=1e-4
    )


@pytest.mark.long
def test_a_precision_without_thresholds_is_refused_with_the_line_that_sets_them(openvino):
    detector = openvino.detector(precision="bf16")
    with pytest.raises(ExportError, match=r"not calibrated in bf16; run: diffad calibrate .* --precision bf16"):
        detector(smooth_images(1, seed=1))
    with pytest.raises(ValueError, match="computes in fp32 or bf16 .*, not in int8"):
        openvino.detector(precision="int8")
    with pytest.raises(ValueError, match="device 'tpu' can't be used here; there are"):
        openvino.detector(device="tpu")


def test_a_damaged_folder_is_refused(of_categories, tmp_path):
    with pytest.raises(ExportError, match="is not an exported model"):
        Detector(tmp_path)
    copy = shutil.copytree(of_categories.folder, tmp_path / "copy")
    (copy / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"model.onnx: is missing or not as it was exported"):
        Detector(copy)
    later = dataclasses.replace(DetectorDescription.read(of_categories.folder), format=99, version="9.0")
    later.write(copy)
    with pytest.raises(ExportError, match="written by diffad 9.0"):
        Detector(copy)
    (copy / "detector.json").write_text("{}")
    with pytest.raises(ExportError, match="is damaged"):
        Detector(copy)


def test_openvino_computes_what_is_float_in_bf16_too(of_categories):
    description = DetectorDescription.read(of_categories.folder)
    assert description.precisions == ("fp32",)
    for weights in ("fp32", "int8"):
        assert dataclasses.replace(description, runtime="openvino", weights=weights).precisions == (weights, "bf16")


def test_arguments_are_refused_as_in_the_pipeline(whole_images):
    detector, image = whole_images.detector(), smooth_images(1, seed=1)
    for arguments, message in (
        ({"images": []}, "no images given"),
        ({"images": image, "batch_size": 0}, "batch_size must be at least 1"),
        ({"images": image, "map_size": 64}, "map_size must be"),
        ({"images": image, "categories": "nut"}, "trained on one category"),
        ({"images": image, "false_alarm_rate": 0.001}, "0.001"),
    ):
        with pytest.raises(ValueError, match=message):
            detector(**arguments)


def test_scores_of_single_images_of_groups_are_exported():
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(24, seed=4), groups=[str(i // 2) for i in range(24)])
    stored = StoredCalibration(pipe.calibration.score_config, stored_scores(pipe.calibration), None)
    for values in ("calibration_scores_of", "calibration_maxima_of", "single_scores_of"):
        np.testing.assert_array_equal(getattr(stored, values)(), getattr(pipe.calibration, values)())
