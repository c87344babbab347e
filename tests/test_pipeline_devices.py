"""DiffADPipeline moved, cast, offloaded, or with a part replaced: the scorer is that of the present parts."""

import copy

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffusers import DDPMScheduler
from PIL import Image
from tiny_pipeline import SIZE, smooth_images, tiny_pipeline


def right_half() -> np.ndarray:
    inside = np.zeros((SIZE, SIZE), dtype=bool)
    inside[:, SIZE // 2 :] = True
    return inside


def spotted_image() -> Image.Image:
    pixels = np.array(smooth_images(1, seed=9)[0])
    pixels[12:20, 20:28] = np.where(np.indices((8, 8)).sum(0) % 2, 0, 255)[..., None]
    return Image.fromarray(pixels)


def test_calibration_stays_where_the_maps_are_when_models_are_offloaded(monkeypatch):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0})
    pipe.calibrate(smooth_images(4, seed=8), roi=right_half())
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda device: None)
    pipe.enable_model_cpu_offload(device="meta")  # stands for a GPU: it, too, refuses tensors of the CPU
    calibration, maps = pipe.calibration, torch.zeros(2, SIZE, SIZE, device=pipe._execution_device)
    assert maps.is_meta and pipe.unet.device.type == pipe.feature_extractor.device.type == "cpu"
    assert all(buffer.is_meta for buffer in calibration.buffers()) and calibration.roi.is_meta
    assert calibration.standardize({"mahalanobis": maps})["mahalanobis"].is_meta


def test_offloaded_models_score_calibrate_and_repair_the_same():
    images, spotted = smooth_images(4, seed=8), spotted_image()
    pipe = tiny_pipeline(smoothing_sigma=0.5)

    def everything():
        thresholds = pipe.calibrate(images, roi=right_half()).calibration_maxima
        score = pipe(spotted, false_alarm_rate=0.5).image_scores[0]
        repaired = pipe.reconstruct(spotted, false_alarm_rate=0.5, timesteps=(50,)).images[0]
        return thresholds.numpy(), score, np.asarray(repaired)

    expected = everything()
    pipe.enable_model_cpu_offload(device="cpu")  # the hooks of a GPU, which move models from the CPU to itself
    for actual, value in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(actual, value)


# Parts replaced


@pytest.fixture
def pipe():
    pipe = tiny_pipeline(smoothing_sigma=1.0, weights={"kl": 0.5, "feature": 0.25, "residual": 0.25})
    pipe.calibrate(smooth_images(21, seed=4))
    return pipe


def test_scorer_is_made_once_while_nothing_changes(pipe):
    scorer = pipe.scorer
    pipe(spotted_image())
    pipe.reconstruct(spotted_image(), timesteps=(50,))
    assert pipe.scorer is scorer


def test_nothing_that_is_done_to_the_scheduler_changes_a_score(pipe):
    expected = pipe(spotted_image(), return_term_maps=True)
    for change in (lambda s: s.set_timesteps(10), lambda s: s.betas.fill_(0.3), lambda s: s.alphas_cumprod.fill_(0.3)):
        change(pipe.scheduler)
        output = pipe(spotted_image(), return_term_maps=True)
        np.testing.assert_array_equal(output.image_scores, expected.image_scores)
        for name, term_map in expected.term_maps[0].items():
            np.testing.assert_array_equal(output.term_maps[0][name], term_map)
    anew = pipe.calibrate(smooth_images(21, seed=4))
    np.testing.assert_array_equal(pipe(spotted_image()).image_scores, expected.image_scores)
    assert anew.is_fitted and pipe.scheduler.num_inference_steps == 10


def replaced_unet(pipe: DiffADPipeline) -> None:
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config).eval()


def scheduler_of_other_noise(pipe: DiffADPipeline) -> None:
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, beta_end=0.03)


def replaced_gaussian(pipe: DiffADPipeline) -> None:
    pipe.residual_gaussian = copy.deepcopy(pipe.gaussian)


def replaced_extractor(pipe: DiffADPipeline) -> None:
    pipe.feature_extractor = copy.deepcopy(pipe.feature_extractor)
    pipe.feature_extractor.feature_std.mul_(2)


def other_score_settings(pipe: DiffADPipeline) -> None:
    pipe.calibration = tiny_calibration(pipe, seed=3)


def tiny_calibration(pipe: DiffADPipeline, **settings):
    before, calibration = pipe.calibration, pipe.calibrate(smooth_images(21, seed=4), **settings)
    pipe.calibration = before
    return calibration


@pytest.mark.parametrize(
    "change",
    [
        replaced_unet,
        scheduler_of_other_noise,
        replaced_gaussian,
        replaced_extractor,
        other_score_settings,
    ],
)
def test_a_replaced_part_counts_from_the_next_call_on(pipe, change):
    before = pipe(spotted_image()).image_scores
    scorer = pipe.scorer
    change(pipe)
    after = pipe(spotted_image()).image_scores
    assert pipe.scorer is not scorer and not np.array_equal(before, after)
    # As a pipeline that was made of these parts.
    made_anew = DiffADPipeline(**pipe.components)
    np.testing.assert_array_equal(made_anew(spotted_image()).image_scores, after)


def test_moved_pipeline_has_a_scorer_on_its_device(pipe):
    assert pipe.scorer.noise.device.type == "cpu"
    pipe.to("meta")  # stands for a GPU
    assert {tensor.device.type for tensor in [*pipe.scorer.buffers(), *pipe.scorer.parameters()]} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_pipeline_scores_in_its_type_and_keeps_its_constants(pipe, dtype):
    before = pipe(spotted_image()).image_scores
    constants = {name: values.clone() for name, values in pipe.scorer.denoiser.chain.named_buffers()}
    types = []
    pipe.to(dtype)
    handle = pipe.unet.register_forward_hook(lambda module, inputs, output: types.append((inputs[0].dtype, output[0].dtype)))
    after = pipe(spotted_image()).image_scores
    handle.remove()
    assert set(types) == {(dtype, dtype)} and pipe.gaussian.whitening.dtype == torch.float32
    assert all(torch.equal(values, constants[name]) for name, values in pipe.scorer.denoiser.chain.named_buffers())
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(before, after, rtol=0.1, atol=0.1)
    pipe.to(torch.float32)
    assert pipe(spotted_image()).image_scores.dtype == np.float32
