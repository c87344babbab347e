"""What was called otherwise before 0.2 works on for one release, and says how it is called now."""

import copy
import warnings

import numpy as np
import pytest
import torch
from diffad import Calibration, DiffADOutput, LinearDiscriminant, detection_metrics
from diffad.jobs.predict import PredictionSettings
from tiny_pipeline import SIZE, category_images, smooth_images, tiny_pipeline

NAMES = ("nut", "bolt")


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(NAMES, smoothing_sigma=1.0)
    pipe.calibrate([*category_images(21, 4, 0), *category_images(21, 4, 1)], categories=["nut"] * 21 + ["bolt"] * 21)
    return pipe


@pytest.fixture(scope="module")
def images():
    return [*category_images(1, 9, 0), *category_images(1, 9, 1)]


def warned(former: str, present: str):
    """Checks that exactly these names are warned of, once, and that the warning points at this file."""

    class Check:
        def __enter__(self):
            self.catcher = warnings.catch_warnings(record=True)
            self.caught = self.catcher.__enter__()
            warnings.simplefilter("always")

        def __exit__(self, kind, *rest):
            self.catcher.__exit__(kind, *rest)
            if kind is not None:
                return
            caught = [warning for warning in self.caught if warning.category is FutureWarning]
            assert [warning.filename for warning in caught] == [__file__]
            assert str(caught[0].message).startswith(f"{former} is now called {present}; the former name goes after")

    return Check()


def test_arguments_of_a_call(pipe, images):
    expected = pipe(images, categories=["nut", "bolt"], return_term_maps=True)
    with warned("class_labels", "categories"):
        output = pipe(images, class_labels=["nut", "bolt"], return_term_maps=True)
    with warned("return_partial_maps", "return_term_maps"):
        other = pipe(images, categories=["nut", "bolt"], return_partial_maps=True)
    for same in (output, other):
        np.testing.assert_array_equal(same.image_scores, expected.image_scores)
        np.testing.assert_array_equal(same.term_maps[1]["kl@20"], expected.term_maps[1]["kl@20"])


def test_argument_of_reconstruct(pipe, images):
    options = {"timesteps": (50,), "false_alarm_rate": 0.9}
    expected = pipe.reconstruct(images, categories=[0, 1], **options)
    with warned("class_labels", "categories"):
        output = pipe.reconstruct(images, class_labels=[0, 1], **options)
    assert all(np.array_equal(a, b) for a, b in zip(output.images, expected.images, strict=True))


def test_arguments_of_calibrate():
    pipe, images = tiny_pipeline(), smooth_images(4, seed=0)
    expected = pipe.calibrate(images).calibration_scores
    with warned("normal_images", "calibration_images"):
        calibration = pipe.calibrate(normal_images=images)
    assert torch.equal(calibration.calibration_scores, expected)
    with pytest.raises(TypeError, match="calibration_images"):
        pipe.calibrate()


def test_one_name_at_a_time_and_no_unknown_ones(pipe, images):
    with pytest.raises(ValueError, match="class_labels is the former name of categories: give one of them"):
        pipe(images, class_labels=[0, 1], categories=[0, 1])
    with pytest.raises(TypeError, match="classes"):
        pipe(images, classes=[0, 1])


def test_fields_of_the_output(pipe, images):
    output = pipe(images, return_term_maps=True)
    for former, present in (("labels", "is_defective"), ("partial_maps", "term_maps"), ("class_labels", "categories")):
        with warned(former, present):
            assert getattr(output, former) is getattr(output, present)
        with warned(former, present):
            assert output[former] is output[present]
        assert former not in output
        values = dict(output)
        with warned(former, present):
            same = DiffADOutput(**{former: values.pop(present)}, **values)
        assert same.keys() == output.keys() and same[present] is output[present]
    assert output[:2] == output.to_tuple()[:2]


def test_attributes_of_the_pipeline(pipe):
    with warned("class_names", "category_names"):
        assert pipe.class_names == list(NAMES)
    with warned("class_indices", "category_indices"):
        assert pipe.class_indices("bolt", 2) == [1, 1]


@torch.no_grad()
def test_methods_of_the_pipeline(pipe):
    images, category = torch.rand(2, 3, SIZE, SIZE) * 2 - 1, torch.tensor([0, 1])
    expected = pipe.scorer.raw_term_maps(images, category)
    with warned("pipe.partial_maps", "pipe.scorer.raw_term_maps"):
        maps = dict(pipe.partial_maps(images, category))
    assert maps.keys() == expected.keys() and all(torch.equal(maps[name], expected[name]) for name in maps)
    with warned("pipe.feature_residuals", "pipe.scorer.feature_residuals"):
        residuals = pipe.feature_residuals(images, category)
    assert torch.equal(residuals, pipe.scorer.feature_residuals(images, category))


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("partial_names", "term_map_names"),
        ("normals_per_class", "images_per_category"),
        ("normal_scores", "calibration_scores"),
        ("normal_maxima", "calibration_maxima"),
        ("partial_mean", "term_mean"),
        ("partial_std", "term_std"),
    ],
)
def test_attributes_of_the_calibration(pipe, former, present):
    with warned(former, present):
        value = getattr(pipe.calibration, former)
    expected = getattr(pipe.calibration, present)
    assert value is expected if isinstance(expected, torch.Tensor) else value == expected


def test_methods_of_the_calibration(pipe):
    with warned("normal_scores_of", "calibration_scores_of"):
        scores = pipe.calibration.normal_scores_of(1)
    np.testing.assert_array_equal(scores, pipe.calibration.calibration_scores_of(1))
    for method in (pipe.calibration.image_threshold, pipe.calibration.pixel_threshold, pipe.calibration.supported_rate):
        with warned("class_label", "category"):
            value = method(0.2, class_label=1)
        assert value == method(0.2, category=1)
    with warned("class_labels", "categories"):
        p_values = pipe.calibration.p_values(np.zeros(2), class_labels=[0, 1])
    np.testing.assert_array_equal(p_values, pipe.calibration.p_values(np.zeros(2), categories=[0, 1]))


def test_arguments_of_the_gaussian(pipe):
    features, category = torch.randn(2, pipe.gaussian.config.feature_channels, 4, 4), torch.tensor([0, 1])
    with pytest.warns(FutureWarning, match="class_labels is now called category"):  # from inside torch's __call__
        distances = pipe.gaussian(features, class_labels=category)
    assert torch.equal(distances, pipe.gaussian(features, category=category))
    moments = pipe.gaussian.new_moments()
    pipe.gaussian.accumulate(moments, torch.randn(5, pipe.gaussian.config.feature_channels, 4, 4))
    one, other = copy.deepcopy(pipe.gaussian), copy.deepcopy(pipe.gaussian)
    with warned("class_label", "category"):
        one.fit(moments, class_label=1)
    assert torch.equal(one.whitening, other.fit(moments, category=1).whitening)


def test_arguments_of_constructors():
    with warned("num_normals", "num_calibration_images"):
        calibration = Calibration(num_normals=3)
    with warned("num_normals", "num_calibration_images"):
        same = Calibration.from_config({"num_normals": 3})
    assert calibration.images_per_category == same.images_per_category == [3]
    with warned("class_label", "category"):
        assert PredictionSettings(class_label="nut") == PredictionSettings(category="nut")


def test_saved_models_are_loaded_without_a_warning(tmp_path, recwarn):
    Calibration(num_calibration_images=3).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("num_calibration_images", "num_normals"))
    assert Calibration.from_pretrained(tmp_path).images_per_category == [3] and not recwarn.list


def test_arguments_of_the_discriminant_and_the_metrics():
    pooled, categories = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 0, 0, 1, 1, 1])
    with warned("class_labels", "categories"):
        discriminant = LinearDiscriminant(2, NAMES).fit(pooled, class_labels=categories)
    assert torch.equal(discriminant.weight, LinearDiscriminant(2, NAMES).fit(pooled, categories).weight)
    with warned("labels", "is_defective"):
        metrics = detection_metrics(pooled[:, 0], labels=categories)
    assert metrics == detection_metrics(pooled[:, 0], categories)
