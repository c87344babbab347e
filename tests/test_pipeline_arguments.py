"""DiffADPipeline: forms of its output, and arguments and parts that it refuses before work starts."""

import numpy as np
import pytest
import torch
from diffad import Calibration, DiffADPipeline, ImageError, JointUNet2DModel
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from PIL import Image
from tiny_pipeline import SIZE, smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    return pipe


@pytest.fixture(scope="module")
def images():
    return smooth_images(3, seed=5, size=(40, 24))


# Output


def as_arrays(value):
    if isinstance(value, list):
        return [as_arrays(item) for item in value]
    if isinstance(value, dict):
        return {name: as_arrays(item) for name, item in value.items()}
    return value.numpy()


def test_tensors_hold_what_arrays_hold(pipe, images):
    arrays, tensors = (pipe(images, return_term_maps=True, output_type=kind) for kind in ("np", "pt"))
    assert arrays.keys() == tensors.keys()
    for name, expected in arrays.items():
        actual, wanted = as_arrays(tensors[name]), expected
        if name == "term_maps":
            actual, wanted = ([of_image[term] for of_image in maps for term in of_image] for maps in (actual, wanted))
        for a, w in zip(actual, wanted, strict=True):
            assert isinstance(w, np.ndarray | np.generic) and a.dtype == w.dtype
            np.testing.assert_array_equal(a, w)
    for kept in (
        tensors.image_scores,
        tensors.p_values,
        tensors.masks[0],
        tensors.anomaly_maps[2],
        tensors.term_maps[1]["residual"],
    ):
        assert isinstance(kept, torch.Tensor) and kept.device == pipe.device


def test_tuples_hold_the_fields_in_order(pipe, images):
    output = pipe(images, return_term_maps=True)
    as_tuple = pipe(images, return_term_maps=True, return_dict=False)
    assert len(as_tuple) == len(output.keys()) == 9
    for value, name in zip(as_tuple, output.keys(), strict=True):
        assert len(value) == 3
        if name != "term_maps":
            np.testing.assert_array_equal(value, output[name])


def test_reconstruct_returns_a_tuple_when_asked(pipe, images):
    options = {"false_alarm_rate": 0.9, "timesteps": (50,), "intermediate_steps": "all"}
    for traces in (False, True):
        output = pipe.reconstruct(images, return_traces=traces, **options)
        as_tuple = pipe.reconstruct(images, return_traces=traces, return_dict=False, **options)
        assert isinstance(as_tuple, tuple) and len(as_tuple) == 4 + traces
        repaired, difference_maps, intermediates, *trace, confident = as_tuple
        np.testing.assert_array_equal(confident, output.confident)
        for i in range(3):
            assert np.array_equal(repaired[i], output.images[i]) and repaired[i].size == (40, 24)
            np.testing.assert_array_equal(difference_maps[i], output.difference_maps[i])
            assert len(intermediates[i]) == len(output.intermediates[i]) > 0
        if traces:
            np.testing.assert_array_equal(trace[0], output.traces)


def test_repairs_come_in_the_type_that_is_asked_for(pipe, images):
    options = {"false_alarm_rate": 0.9, "timesteps": (50,), "intermediate_steps": "all", "return_traces": True}
    expected = pipe.reconstruct(images, **options)
    arrays, tensors = (pipe.reconstruct(images, output_type=kind, **options) for kind in ("np", "pt"))
    assert isinstance(expected.images[0], Image.Image)
    for i, image in enumerate(expected.images):
        for picture, array, tensor in zip(
            [image, *expected.intermediates[i]],
            [arrays.images[i], *arrays.intermediates[i]],
            [tensors.images[i], *tensors.intermediates[i]],
            strict=True,
        ):
            assert array.dtype == np.float32 and tensor.dtype == torch.float32 and tensor.device == pipe.device
            np.testing.assert_array_equal(array, np.asarray(picture, dtype=np.float32) / 255)
            np.testing.assert_array_equal(tensor.permute(1, 2, 0), array)
        for name in ("difference_maps", "traces"):
            np.testing.assert_array_equal(arrays[name][i], expected[name][i])
            np.testing.assert_array_equal(tensors[name][i], expected[name][i])
    assert isinstance(tensors.confident, torch.Tensor)
    np.testing.assert_array_equal(tensors.confident, expected.confident)
    for image in (arrays.images[0], tensors.images[0]):  # which are images to score, too
        assert pipe(image).image_scores == pipe(expected.images[0]).image_scores


def test_maps_come_at_the_size_that_is_asked_for(pipe, images):
    for size in ((16, 20), [50, 50], torch.Size([7, 9]), (np.int64(16), np.int64(20))):
        output = pipe(images, map_size=size, return_term_maps=True)
        maps = [*output.anomaly_maps, *output.masks, *output.term_maps[0].values()]
        assert {m.shape for m in maps} == {tuple(size)}


# Refused arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"map_size": 64}, r"map_size must be \(height, width\) in pixels, got 64"),
        ({"map_size": (64,)}, "map_size must be"),
        ({"map_size": (64, 0)}, "map_size must be"),
        ({"map_size": (6.5, 8)}, "map_size must be"),
        ({"map_size": "64"}, "map_size must be"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, got -3"),
        ({"output_type": "jax"}, "output_type must be np or pt, got 'jax'"),
        ({"false_alarm_rate": 0.0}, "false_alarm_rate must lie between 0 and 1"),
        ({"false_alarm_rate": 0.01}, "0.01 needs 99 good images"),
        ({"categories": [0]}, "categories given, but this model was trained on one category"),
    ],
)
def test_wrong_arguments_of_a_call_are_refused_before_any_image_is_read(pipe, arguments, message):
    def read():
        raise AssertionError("an image was read")

    with pytest.raises(ValueError, match=message):
        pipe([read], **arguments)
    if not {"map_size", "output_type"} & set(arguments):
        with pytest.raises(ValueError, match=message):
            pipe.reconstruct([read], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"intermediate_steps": "some"}, "intermediate_steps must be numbers of steps, from 1 on, or \"all\", got 'some'"),
        ({"intermediate_steps": (0,)}, r"intermediate_steps must be numbers of steps, .* got \(0,\)"),
        ({"intermediate_steps": 3}, "intermediate_steps must be numbers of steps"),
        ({"output_type": "jax"}, "output_type must be pil, np or pt, got 'jax'"),
        ({"timesteps": 20}, "timesteps must be whole numbers in a sequence"),
        ({"texture_strength": -3}, "texture_strength must be at least 0, got -3"),
        ({"region_level": -0.1}, "region_level must be at least 0"),
    ],
)
def test_wrong_arguments_of_a_repair_are_refused_before_any_image_is_read(pipe, arguments, message):
    def read():
        raise AssertionError("an image was read")

    with pytest.raises(ValueError, match=message):
        pipe.reconstruct([read], **arguments)


@pytest.mark.parametrize("timestep", [1001, 1000, -5])
def test_partial_diffusion_refuses_noise_that_the_model_does_not_know(pipe, images, timestep):
    with pytest.raises(ValueError, match=f"timestep must lie in 0..999, the model's noise levels, got {timestep}"):
        pipe.reconstruct(images, "partial_diffusion", timestep=timestep)


def test_steps_that_a_repair_has_not_are_refused(pipe, images):
    with pytest.raises(ValueError, match="step 99 was asked for, but this repair has 2 steps"):
        pipe.reconstruct(images, "gradient_descent", num_steps=2, intermediate_steps=(1, 99))


def test_unknown_arguments_are_refused(pipe, images):
    with pytest.raises(TypeError, match="sigma"):
        pipe(images, sigma=3)
    with pytest.raises(ValueError, match="no setting sigma"):
        pipe.reconstruct(images, sigma=3)
    with pytest.raises(ValueError, match="a score has no setting sigma; it has score, timesteps, "):
        pipe.calibrate(images, sigma=3)


def test_nothing_to_score_is_refused(pipe):
    for call in (pipe, pipe.reconstruct):
        with pytest.raises(ValueError, match="no images"):
            call([])
        with pytest.raises(ImageError, match="image 1"):
            call([smooth_images(1, seed=0)[0], np.zeros((4, 4, 7))])


def test_uncalibrated_pipeline_is_refused(images):
    pipe = tiny_pipeline()
    for call in (pipe, pipe.reconstruct):
        with pytest.raises(ValueError, match=r"not calibrated: call pipe.calibrate\(calibration_images\) first"):
            call(images)


INSIDE = np.zeros((SIZE, SIZE), dtype=bool)
INSIDE[:4, :4] = True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 17, "roi": INSIDE}, "region of interest has 16 pixels, but top_k is 17"),
        ({"top_k": SIZE * SIZE + 1}, "top_k must be at most 1024"),
        ({"timesteps": (20, 21)}, r"timesteps \[21\] are not in the chain of 250 steps"),
        ({"timesteps": (1000,), "num_inference_steps": None}, r"timesteps \[1000\] are not in the chain of 1000 steps"),
        ({"timesteps": (-1,), "num_inference_steps": None}, r"timesteps \[-1\] are not in the chain"),
        ({"num_inference_steps": 1}, "num_inference_steps must lie in 2..1000, got 1"),
        ({"num_inference_steps": 1001}, "num_inference_steps must lie in 2..1000, got 1001"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"timesteps": 20}, r"timesteps must be whole numbers in a sequence, such as \(20, 401\), got 20"),
        ({"timesteps": "20"}, "timesteps must be whole numbers in a sequence"),
        ({"timesteps": (20.5,)}, "timesteps must be whole numbers in a sequence"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"short_side": 64}, "shared_gaussian"),
        ({"weights": {"ssim": 1.0}}, "unknown score terms"),
    ],
)
def test_wrong_settings_are_refused_and_the_old_calibration_stays(pipe, images, arguments, message):
    before, state = pipe.calibration, {name: tensor.clone() for name, tensor in pipe.calibration.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        pipe.calibrate(images, **arguments)
    assert pipe.calibration is before
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.state_dict().items())


def test_settings_of_a_calibration_that_do_not_fit_the_chain_are_refused_before_scoring(images):
    pipe = tiny_pipeline()
    pipe.calibrate(images)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with pytest.raises(ValueError, match=r"timesteps \[.*\] are not in the chain of 250 steps"):
        pipe(images, false_alarm_rate=0.5)


def test_one_image_to_calibrate_on_is_too_few(pipe):
    for one in (smooth_images(1, seed=0)[0], np.zeros((8, 8), dtype=np.uint8), [Image.new("RGB", (8, 8))]):
        with pytest.raises(ValueError, match="at least 2 good images, got 1"):
            pipe.calibrate(one)


# Refused parts


def test_plain_unet_is_refused_with_the_remedy(pipe):
    plain = UNet2DModel(sample_size=32, in_channels=3, out_channels=6, block_out_channels=(32, 32), norm_num_groups=8,
                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    with pytest.raises(ValueError, match="a UNet2DModel predicts no features; .*JointUNet2DModel.from_unet"):
        DiffADPipeline(**{**pipe.components, "unet": plain})
    channels = pipe.feature_extractor.config.channels
    wrapped = JointUNet2DModel.from_unet(plain, feature_channels=channels, feature_stride=8)
    DiffADPipeline(**{**pipe.components, "unet": wrapped})


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDPMScheduler(variance_type="learned_range", prediction_type="v_prediction"), "prediction_type 'v_prediction' is not"),
        (DDPMScheduler(variance_type="fixed_small"), "variance_type 'fixed_small' is not"),
        (DDIMScheduler(), "variance_type None is not"),
    ],
)
def test_schedulers_that_the_score_does_not_know_are_refused(pipe, scheduler, message):
    with pytest.raises(ValueError, match=message):
        DiffADPipeline(**{**pipe.components, "scheduler": scheduler})
    present = pipe.scheduler
    try:
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=message):
            pipe(smooth_images(1, seed=0))
    finally:
        pipe.scheduler = present


def test_calibration_of_another_shape_is_not_mistaken_for_fitted():
    assert not Calibration(num_calibration_images=(3, 0)).is_fitted
