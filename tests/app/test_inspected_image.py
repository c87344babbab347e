"""What the web app says and shows of one image."""

import numpy as np
import pytest
from app_images import part
from diffad.app import inspected_image
from diffad.app.batch import inspect_files
from diffad.app.inspected_image import InspectedImage
from diffad.app.uploads import uploaded_samples
from PIL import Image
from tiny_pipeline import category_images, smooth_images
from unknown_products import stripes, two_products

RATE = 0.1


def test_inspection_agrees_with_the_pipeline_and_fits_the_screen(pipe):
    image = part(100, size=(2000, 1000), defective=True)
    found = inspected_image.inspect_image(pipe, image, RATE)
    expected = pipe(image, map_size=(8, 8))
    assert found.score == expected.image_scores[0] and found.p_value == expected.p_values[0]
    assert found.image.shape == (800, 1600, 3) and found.anomaly_map.shape == (800, 1600)


def test_verdict_turns_at_the_threshold(pipe):
    threshold = pipe.calibration.image_threshold(RATE)
    blank = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    at, above = (
        inspected_image.verdict(InspectedImage(*blank, score, 0.5), pipe.calibration, RATE)
        for score in (threshold, threshold + 1)
    )
    assert "No defect found" in at and inspected_image.GOOD in at and "10 %" in at
    assert "Defective" in above and inspected_image.DEFECTIVE in above and f"{threshold + 1:.2f}" in above
    # The same score under a stricter rate.
    strict = pipe.calibration.image_threshold(0.05)
    assert strict > threshold
    assert "No defect" in inspected_image.verdict(InspectedImage(*blank, (strict + threshold) / 2, 0.5), pipe.calibration, 0.05)


def test_pictures_follow_the_threshold(pipe):
    found = inspected_image.inspect_image(pipe, part(102, defective=True), RATE)
    loose, strict = (inspected_image.pictures(found, pipe.calibration, rate) for rate in (0.5, 0.05))
    marks = [(picture == inspected_image.MASK_COLOUR).all(axis=2).sum() for picture, _ in (loose, strict)]
    assert marks[0] > 0 and (loose[0] != strict[0]).any()
    assert loose[1].sum() > strict[1].sum()  # a lower threshold is hotter


def test_pictures_outline_the_masks_of_the_pipeline(pipe):
    pipe.calibration.register_to_config(mask_edge=0.9)
    try:
        image = part(102, defective=True)
        found, mask = inspected_image.inspect_image(pipe, image, RATE), pipe(image, false_alarm_rate=RATE).masks[0]
        assert 0 < mask.sum() < (found.anomaly_map > pipe.calibration.pixel_threshold(RATE)).sum()
        picture = inspected_image.pictures(found, pipe.calibration, RATE)[0]
        marks = (picture == inspected_image.MASK_COLOUR).all(axis=2)
        assert marks.any() and not (marks & ~mask).any()
    finally:
        pipe.calibration.register_to_config(mask_edge=None)


@pytest.mark.parametrize("at_least_as_high", [0, 1, 17])
def test_p_value_in_words_counts_the_good_parts(pipe, at_least_as_high):
    normal = pipe.calibration.calibration_scores.numpy()  # ascending
    score = np.append(normal, normal[-1] + 1)[len(normal) - at_least_as_high]
    p_value = pipe.calibration.p_values(np.array([score]))[0]
    text = inspected_image.p_value_in_words(float(p_value), len(normal))
    assert text.startswith(f"{at_least_as_high or 'None'} of the {len(normal)} good parts")
    assert f"{(1 + at_least_as_high) / (len(normal) + 1):.3g}" in text


def test_an_unknown_product_is_found_and_scored_as_the_nearest(tmp_path):
    pipe = two_products()
    found = inspected_image.inspect_image(pipe, Image.fromarray(stripes(1)[0]), RATE)
    assert found.is_unknown and "Unknown product" in inspected_image.verdict(found, pipe.calibration, RATE)
    known = inspected_image.inspect_image(pipe, category_images(1, 6, 1)[0], RATE)
    assert not known.is_unknown and known.category == 1
    Image.fromarray(stripes(1)[0]).save(tmp_path / "stripes.png")
    (row,), _ = inspect_files(pipe, uploaded_samples([tmp_path / "stripes.png"]), RATE, tmp_path / "overlays.zip")
    assert row.label == "unknown"


def test_an_unknown_product_is_never_called_good(pipe):
    blank = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    text = inspected_image.verdict(InspectedImage(*blank, -100.0, 1.0, is_unknown=True), pipe.calibration, RATE)
    assert "Unknown product" in text and inspected_image.GOOD not in text and "No defect" not in text


def test_banner_shows_file_names_as_text():
    assert "<img" not in inspected_image.banner("a", "<img src=x>") and "&lt;img src=x&gt;" in inspected_image.banner(
        "a", "<img src=x>"
    )


def test_repair_shows_before_and_after_and_leaves_good_parts(pipe):
    image = part(102, defective=True)
    assert pipe(image, false_alarm_rate=0.5).is_defective[0]
    (before, after), strip, confident = inspected_image.repair(pipe, image, 0.5)
    assert before.size == after.size == image.size and before.tobytes() == image.tobytes() != after.tobytes()
    assert strip.width > 2 * strip.height
    assert confident == pipe.reconstruct(image, false_alarm_rate=0.5).confident[0]
    calm = next(image for image in smooth_images(30, seed=7) if not pipe(image, false_alarm_rate=0.05).is_defective[0])
    assert inspected_image.repair(pipe, calm, 0.05) is None
