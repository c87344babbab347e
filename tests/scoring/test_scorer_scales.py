"""The scorer with terms of further scales: from the image to the term, the enlarged image, export."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffad import DiffADPipeline, FeatureExtractor
from diffad.diffusion.noise import timestep_noise
from diffad.imaging.maps import resize_map, smooth_map
from diffad.scoring.presets import DEFAULT
from pyramid_pipeline import FURTHER, GRID, pixels_of, pyramid_extractor, pyramid_pipeline
from tiny_pipeline import SIZE, STRIDE, smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    pipe = pyramid_pipeline()
    settings = {**DEFAULT, "scales": FURTHER, "weights": {"rgb": 1.0, "residual": 1.0, "detail": 2.0, "neighbors": 1.0}}
    pipe.calibrate(smooth_images(9, seed=4), **settings, smoothing_sigma=1.0)
    return pipe


@torch.no_grad()
def test_terms_of_scales_are_distances_of_the_pyramids_features(pipe):
    images = smooth_images(3, seed=6)
    small, large = pixels_of(images, SIZE), pixels_of(images, 2 * SIZE)
    maps = pipe.scorer.raw_term_maps(small, detail=large)
    extractor, multiscale = pipe.feature_extractor, pipe.multiscale
    detail = extractor.pyramid(large, GRID)
    features = {"coarse": extractor.pyramid(small).coarse, "detail": detail.fine}
    features |= {"coarse_detail": detail.coarse, "neighbors": detail.fine}
    for name, values in features.items():
        expected = smooth_map(resize_map(multiscale(name, values).sqrt(), (SIZE, SIZE)), 1.0)
        torch.testing.assert_close(maps[name], expected)


@torch.no_grad()
def test_terms_of_the_feature_denoiser_are_distances_of_what_it_gets_wrong(pipe):
    small = pixels_of(smooth_images(3, seed=6), SIZE)
    features, denoiser = pipe.feature_extractor(small), pipe.feature_denoiser
    t = denoiser.config.timestep  # of the full chain: the score's own is respaced, and has other timesteps
    clean = denoiser.clean(features, small)
    noise, alpha_bar = timestep_noise(tuple(clean.shape[1:]), t, seed=0), pipe.scheduler.alphas_cumprod[t]
    errors = clean - denoiser(alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise, torch.tensor([t]))
    count, maps = features.shape[1], pipe.scorer.raw_term_maps(small)
    for term, distance in {
        "feature_residual": denoiser.gaussian(errors[:, :count]),
        "pixel_residual": denoiser.pixel_gaussian(errors[:, count:]),
    }.items():
        expected = smooth_map(resize_map(distance.sqrt(), (SIZE, SIZE)), 1.0)
        torch.testing.assert_close(maps[term], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_an_enlarged_image_the_image_is_enlarged(pipe):
    small = pixels_of(smooth_images(2, seed=6), SIZE)
    enlarged = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(pipe.scorer(small).anomaly_maps, pipe.scorer(small, detail=enlarged).anomaly_maps)


def test_the_pipeline_reads_the_image_at_twice_the_size(pipe):
    images = smooth_images(2, seed=7, size=(2 * SIZE, 2 * SIZE))
    with torch.no_grad():
        expected = pipe.scorer(pixels_of(images, SIZE), detail=pixels_of(images, 2 * SIZE))
    output = pipe(images, map_size=(SIZE, SIZE), output_type="pt")
    torch.testing.assert_close(torch.stack(output.anomaly_maps), expected.anomaly_maps, rtol=1e-3, atol=1e-3)
    blurred = pipe([image.resize((SIZE, SIZE)) for image in images])
    assert not np.allclose(blurred.image_scores, output.image_scores)


def test_scores_do_not_depend_on_the_batch(pipe):
    images = smooth_images(5, seed=8)
    together, alone = pipe(images, batch_size=5), pipe(images, batch_size=1)
    np.testing.assert_allclose(together.image_scores, alone.image_scores, rtol=1e-4)


@torch.no_grad()
def test_exported_scorer_takes_both_sizes(pipe):
    batch = torch.export.Dim("batch", max=63)
    small, large = pixels_of(smooth_images(2, seed=6), SIZE), pixels_of(smooth_images(2, seed=6), 2 * SIZE)
    shapes = {"images": {0: batch}, "detail": {0: batch}}
    exported = torch.export.export(pipe.scorer, (small,), {"detail": large}, dynamic_shapes=shapes).module()
    small, large = pixels_of(smooth_images(5, seed=9), SIZE), pixels_of(smooth_images(5, seed=9), 2 * SIZE)
    actual, expected = exported(small, detail=large), pipe.scorer(small, detail=large)
    torch.testing.assert_close(actual.image_scores, expected.image_scores)
    torch.testing.assert_close(actual.anomaly_maps, expected.anomaly_maps)


def test_saved_pipeline_scores_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = smooth_images(3, seed=8)
    np.testing.assert_allclose(loaded(images).image_scores, pipe(images).image_scores, rtol=1e-5)


def test_a_scale_that_the_model_lacks_is_refused(pipe):
    with pytest.raises(ValueError, match="which the model has nothing fitted for"):
        tiny_pipeline().calibrate(smooth_images(3, seed=4), scales=("coarse",), verdict={"coarse": 1.0})


@torch.no_grad()
def test_pyramid_has_the_raw_features_and_a_coarse_grid_with_the_deeper_level():
    extractor, images = pyramid_extractor(), pixels_of(smooth_images(2, seed=6), SIZE)
    pyramid = extractor.pyramid(images)
    torch.testing.assert_close(pyramid.fine, extractor.raw_features(images))
    assert pyramid.coarse.shape == (2, extractor.coarse_channels, GRID[0] // 2, GRID[1] // 2)
    levels = extractor.network((images + 1) / 2 - torch.tensor(extractor.config.image_mean).view(1, 3, 1, 1))
    assert extractor.coarse_channels == sum(level.shape[1] for level in levels) > extractor.config.channels


def test_context_level_must_be_deeper():
    with pytest.raises(ValueError, match="context_level must be deeper"):
        FeatureExtractor("test_efficientnet", levels=(1, 2), stride=STRIDE, channels=56, context_level=2)
