"""DiffADPipeline: inputs, scores against a reference, determinism, calibration, saving and loading."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline, ImageError
from diffad.diffusion.noise import timestep_noise
from diffad.scoring.statistics import split_for_statistics
from diffusers import DDPMScheduler
from diffusers.pipelines import pipeline_utils
from PIL import Image
from tiny_pipeline import SIZE, smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))  # two for the statistics, 19 for thresholds at 5 %
    return pipe


@pytest.fixture(scope="module")
def images():
    return smooth_images(5, seed=5)


def test_output_has_one_entry_per_image_at_its_own_size(pipe):
    images = smooth_images(1, seed=0, size=(50, 30)) + smooth_images(1, seed=1, size=(24, 40))
    output = pipe(images, return_term_maps=True)
    assert output.image_scores.shape == output.p_values.shape == output.is_defective.shape == (2,)
    assert [m.shape for m in output.anomaly_maps] == [m.shape for m in output.masks] == [(30, 50), (40, 24)]
    assert list(output.term_maps[0]) == pipe.calibration.term_map_names
    assert output.masks[0].dtype == bool and np.isfinite(output.anomaly_maps[0]).all()
    assert pipe(images, map_size=(16, 20)).anomaly_maps[1].shape == (16, 20)
    assert len(pipe(images, return_dict=False)) == 8


def test_every_input_type_gets_the_same_score(pipe, images, tmp_path):
    image = images[0]
    image.save(tmp_path / "image.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = pipe(image).image_scores
    for same in (tmp_path / "image.png", str(tmp_path / "image.png"), array, array / 255.0, tensor, tensor / 255.0, [image]):
        np.testing.assert_array_equal(pipe(same).image_scores, expected)
    np.testing.assert_array_equal(pipe(array[None]).image_scores, expected)


def test_score_does_not_depend_on_batch_order_or_neighbours(pipe, images):
    alone = np.concatenate([pipe(image).image_scores for image in images])
    for batch_size in (2, 5):
        np.testing.assert_allclose(pipe(images, batch_size=batch_size).image_scores, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pipe(images[::-1]).image_scores[::-1], alone, rtol=1e-4, atol=1e-5)


def test_repeated_call_is_bit_equal_whatever_the_global_seed(pipe, images):
    torch.manual_seed(0)
    first = pipe(images)
    torch.manual_seed(1)
    second = pipe(images)
    np.testing.assert_array_equal(first.image_scores, second.image_scores)
    np.testing.assert_array_equal(first.anomaly_maps, second.anomaly_maps)


def test_scoring_leaves_no_gradients_and_draws_nothing_from_the_global_generator(pipe, images):
    state = torch.get_rng_state()
    pipe(images[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_term_maps_agree_with_a_float64_reference(images):
    pipe = tiny_pipeline(smoothing_sigma=0.0, standardized_terms=())
    pipe.calibrate(images[:2])
    term_maps = pipe(images[2], return_term_maps=True).term_maps[0]

    x0 = torch.from_numpy(np.array(images[2])).permute(2, 0, 1)[None].double() / 127.5 - 1
    features = pipe.feature_extractor(x0.float()).double()
    chain = torch.from_numpy(np.linspace(0, 999, 250).round().astype(int))
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for t in (20, 201, 401):
        previous = alpha_bar[chain[chain < t].max()]
        alpha = alpha_bar[t] / previous
        noise = timestep_noise((3, SIZE, SIZE), t, seed=0).double()
        xt = alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * noise
        with torch.no_grad():
            output = pipe.unet(xt.float(), t)
        epsilon, v = output.sample.double().chunk(2, dim=1)
        x0_predicted = ((xt - (1 - alpha_bar[t]).sqrt() * epsilon) / alpha_bar[t].sqrt()).clamp(-1, 1)

        def posterior(x, xt=xt, t=t, previous=previous, alpha=alpha):
            left = previous.sqrt() * (1 - alpha) / (1 - alpha_bar[t])
            return left * x + alpha.sqrt() * (1 - previous) / (1 - alpha_bar[t]) * xt

        variance = (1 - previous) / (1 - alpha_bar[t]) * (1 - alpha)
        u = (v.clamp(-1, 1) + 1) / 2
        model_variance = torch.exp(u * (1 - alpha).log() + (1 - u) * variance.log())
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(posterior(x0), variance.sqrt()),
            torch.distributions.Normal(posterior(x0_predicted), model_variance.sqrt()),
        )
        np.testing.assert_allclose(term_maps[f"kl@{t}"], (kl / math.log(2)).mean(1)[0], rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(term_maps[f"rgb@{t}"], (x0 - x0_predicted).square().mean(1)[0].sqrt(), rtol=1e-3, atol=1e-5)
        error = (features - output.features.double()).square().mean(1, keepdim=True)
        error = torch.nn.functional.interpolate(error, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(term_maps[f"feature@{t}"], error[0, 0].detach(), rtol=1e-4, atol=1e-5)


def test_anomaly_map_is_the_weighted_mean_of_the_term_maps(pipe, images):
    output = pipe(images[0], return_term_maps=True)
    weights = pipe.calibration.config.weights
    expected = sum(
        weights[term] * np.mean([m for name, m in output.term_maps[0].items() if name.split("@")[0] == term], axis=0)
        for term in weights
    )
    np.testing.assert_allclose(output.anomaly_maps[0], expected, rtol=1e-5, atol=1e-5)
    assert output.image_scores[0] == pytest.approx(expected.max(), rel=1e-5)


def test_term_maps_do_not_change_the_scores(pipe, images):
    np.testing.assert_array_equal(pipe(images).image_scores, pipe(images, return_term_maps=True).image_scores)


def test_one_unet_pass_per_timestep_and_none_for_the_gaussian_alone(images):
    calls = []
    for weights, expected in (({"kl": 0.5, "feature": 0.5}, 3), ({"mahalanobis": 1.0}, 0)):
        pipe = tiny_pipeline(weights=weights)
        pipe.calibrate(images[:2])
        handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
        calls.clear()
        pipe(images[3])
        handle.remove()
        assert len(calls) == expected


def test_calibration_standardises_the_images_of_its_statistics(images):
    images = smooth_images(6, seed=7)
    of_statistics, of_thresholds = split_for_statistics(np.arange(6), seed=0, share=0.1)
    pipe = tiny_pipeline(smoothing_sigma=0.5)
    pipe.calibrate(images, batch_size=4)
    term_maps = pipe([images[i] for i in of_statistics], return_term_maps=True).term_maps
    for name in pipe.calibration.term_map_names:
        values = np.stack([of_image[name] for of_image in term_maps])
        assert values.mean() == pytest.approx(0, abs=1e-3) and values.std() == pytest.approx(1, rel=1e-3)
    scores = pipe([images[i] for i in of_thresholds]).image_scores
    np.testing.assert_allclose(np.sort(scores), pipe.calibration.calibration_scores, rtol=1e-4, atol=1e-5)


def test_thresholds_are_the_ranks_of_the_images_behind_them(pipe):
    images = smooth_images(21, seed=4)
    of_thresholds = split_for_statistics(np.arange(21), seed=0, share=0.1)[1]
    output = pipe([images[i] for i in of_thresholds], false_alarm_rate=0.099)
    # At most one of 20 exchangeable images may exceed the threshold: of these 19 it is the highest itself.
    assert output.is_defective.sum() == 0 and output.p_values.min() == pytest.approx(2 / 20)
    assert pipe([images[i] for i in of_thresholds], false_alarm_rate=0.1).is_defective.sum() == 1


def test_false_alarm_rate_is_reported_and_chosen_or_refused_in_one_place(pipe, images):
    assert pipe(images[0]).false_alarm_rates == [0.05]
    assert pipe(images[0], false_alarm_rate=0.2).false_alarm_rates == [0.2]
    small = tiny_pipeline()
    small.calibrate(smooth_images(4, seed=4))
    with pytest.warns(UserWarning, match="0.25 at best"):
        output = small(images)
    explicit = small(images, false_alarm_rate=0.25)
    assert set(output.false_alarm_rates) == set(explicit.false_alarm_rates) == {0.25}
    np.testing.assert_array_equal(output.is_defective, explicit.is_defective)
    np.testing.assert_array_equal(output.is_defective, output.p_values <= 0.25)
    np.testing.assert_array_equal(output.masks, explicit.masks)
    for call in (small, small.reconstruct):
        with pytest.raises(ValueError, match="0.05 needs 19 .* there are 3: calibrate on 21 .* 0.25$"):
            call(images[0], false_alarm_rate=0.05)


def test_recalibration_changes_the_settings_and_a_failed_one_changes_nothing(images):
    pipe = tiny_pipeline()
    pipe.calibrate(images[:3])
    pipe.calibrate(images[:3], weights={"feature": 1.0}, timesteps=(20,), top_k=4)
    assert pipe.calibration.config.weights == {"feature": 1.0}
    assert pipe.calibration.term_map_names == ["kl@20", "rgb@20", "feature@20", "residual", "mahalanobis"]
    before = pipe.calibration
    with pytest.raises(ImageError, match="missing.png"):
        pipe.calibrate([images[0], "missing.png"])
    assert pipe.calibration is before


def test_per_image_statistics_give_every_map_mean_zero(images):
    pipe = tiny_pipeline(per_image=True, standardized_terms=("kl",), smoothing_sigma=0.0)
    pipe.calibrate(images[:2])
    term_maps = pipe(images[3], return_term_maps=True).term_maps[0]
    assert term_maps["kl@201"].mean() == pytest.approx(0, abs=1e-4)
    assert term_maps["feature@201"].min() >= 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_scores(images, dtype):
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(8, seed=4))
    expected = pipe(images).image_scores
    pipe.to(dtype)
    assert pipe.unet.dtype == dtype and pipe.gaussian.whitening.dtype == torch.float32
    np.testing.assert_allclose(pipe(images).image_scores, expected, rtol=0.05, atol=0.1)


def test_round_trip_through_a_folder_is_bit_equal(pipe, images, tmp_path, no_network):
    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    _assert_same(pipe, loaded, images)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["diffad", "JointUNet2DModel"] and index["calibration"] == ["diffad", "Calibration"]
    weights = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert weights == {".json", ".safetensors"}


def test_round_trip_through_the_hub_code_path_is_bit_equal(pipe, images, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    siblings = [SimpleNamespace(rfilename=name) for name in files]
    # Older diffusers resolve no revision.
    monkeypatch.setattr(pipeline_utils, "_resolve_revision", lambda name, revision=None, **_: revision, raising=False)
    monkeypatch.setattr(pipeline_utils, "model_info", lambda *args, **_: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(pipeline_utils, "hf_hub_download", lambda repo, filename, **_: str(tmp_path / filename))
    monkeypatch.setattr(pipeline_utils, "snapshot_download", lambda *args, **_: str(tmp_path))
    _assert_same(pipe, DiffADPipeline.from_pretrained("someone/a-detector"), images)


def _assert_same(pipe: DiffADPipeline, loaded: DiffADPipeline, images: list[Image.Image]) -> None:
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, DDPMScheduler)
    expected, actual = pipe(images, return_term_maps=True), loaded(images, return_term_maps=True)
    np.testing.assert_array_equal(actual.image_scores, expected.image_scores)
    np.testing.assert_array_equal(actual.is_defective, expected.is_defective)
    np.testing.assert_array_equal(actual.p_values, expected.p_values)
    np.testing.assert_array_equal(actual.anomaly_maps, expected.anomaly_maps)
    for name in pipe.calibration.term_map_names:
        np.testing.assert_array_equal(actual.term_maps[0][name], expected.term_maps[0][name])
