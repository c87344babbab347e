"""Tiles of large images, their seams, and the region of interest: functions, pipeline and training cache."""

import numpy as np
import pytest
import torch
from diffad import Calibration, DiffADPipeline, ImageError
from diffad.data import training_samples
from diffad.imaging.maps import smooth_map
from diffad.imaging.preprocessing import to_model_range
from diffad.scoring.tiling import add_tiles, blend_weights, cut, tile_corners, tile_starts, window, working_size
from diffad_training.config import TrainingConfig
from diffad_training.dataset import CachedDataset, build_cache
from PIL import Image
from tiny_pipeline import SIZE, smooth_images, tiled_pipeline, tiny_extractor, tiny_pipeline

SIZES = [(32, 32), (32, 33), (45, 32), (64, 64), (70, 131)]
TILE = (32, 32)


def blend(images: torch.Tensor, score, overlap: float) -> torch.Tensor:
    """Map of the first image, put together from the scores of its tiles."""
    size = tuple(images.shape[-2:])
    corners = tile_corners(size, TILE, overlap)
    canvas = torch.zeros(size)
    add_tiles(canvas, score(cut(images[:1], corners, TILE)), blend_weights(size, corners, TILE), corners)
    return canvas


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("length", [32, 33, 63, 64, 65, 200])
def test_tiles_cover_the_image_evenly_with_the_overlap_and_no_more_tiles_than_needed(length, overlap):
    starts = tile_starts(length, 32, overlap)
    assert starts[0] == 0 and starts[-1] == length - 32
    steps = np.diff(starts)
    longest = max(1, int(32 * (1 - overlap)))
    assert (steps > 0).all() and (steps <= longest).all()
    assert len(starts) == 1 or (len(starts) - 2) * longest < length - 32
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"), [((31, 32, 0.2), "larger than"), ((64, 32, 1.0), "overlap"), ((64, 32, -0.1), "overlap")]
)
def test_impossible_tiles_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tile_starts(*arguments)


@pytest.mark.parametrize(("size", "expected"), [((100, 100), (64, 64)), ((100, 250), (64, 160)), ((333, 100), (213, 64))])
def test_working_size_keeps_the_aspect(size, expected):
    assert working_size(size, 64) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("size", SIZES)
def test_weights_sum_to_one_so_that_a_constant_stays_constant(size, overlap):
    blended = blend(torch.zeros(1, 3, *size), lambda tiles: torch.full((len(tiles), *TILE), 7.5), overlap)
    torch.testing.assert_close(blended, torch.full(size, 7.5))


@pytest.mark.parametrize("size", SIZES)
def test_score_of_single_pixels_is_the_same_in_tiles_as_on_the_whole(size):
    images = torch.rand(1, 3, *size)
    torch.testing.assert_close(blend(images, lambda x: x.square().mean(1), 0.25), images.square().mean(1)[0])


def test_one_tile_is_left_bit_for_bit():
    images = torch.rand(1, 3, *TILE)
    assert torch.equal(blend(images, lambda x: x[:, 0], 0.25), images[0, 0])


def test_blending_hides_what_a_score_gets_wrong_at_the_border_of_tiles():
    """A score that is 1 at borders of tiles and 0 inside: butted tiles have full seams, blended ones hardly any."""
    border = torch.ones(TILE)
    border[1:-1, 1:-1] = 0
    blended = blend(torch.zeros(1, 3, 96, 96), lambda tiles: border.expand(len(tiles), *TILE), 0.5)
    assert blended[1:-1, 1:-1].max() < 0.02
    butted = blend(torch.zeros(1, 3, 96, 96), lambda tiles: border.expand(len(tiles), *TILE), 0.0)
    assert butted[1:-1, 1:-1].max() == 1


def test_blended_map_of_a_smooth_score_has_no_steps():
    """Tiles that disagree by a constant each: between neighbouring pixels the map changes a little at a time."""
    offsets = torch.arange(9).view(-1, 1, 1) % 2
    steps = []
    for overlap in (0.0, 0.5):
        blended = blend(torch.zeros(1, 3, 64, 64), lambda tiles: offsets[: len(tiles)].expand(-1, *TILE).float(), overlap)
        steps.append(max(blended.diff(dim=0).abs().max(), blended.diff(dim=1).abs().max()))
    assert steps[0] == 1 and steps[1] < 0.12


def test_window_is_symmetric_and_positive():
    weights = window((32, 20))
    assert weights.min() > 0 and torch.equal(weights.argmax() // 20 // 16, torch.tensor(0))
    torch.testing.assert_close(weights, weights.flip(0, 1))


# Pipeline


@pytest.fixture(scope="module")
def normals():
    return smooth_images(3, seed=4, size=(96, 64)) + smooth_images(1, seed=5, size=(64, 64))


@pytest.fixture(scope="module")
def pipe(normals):
    pipe = tiled_pipeline()
    pipe.calibrate(normals, short_side=2 * SIZE)
    return pipe


def test_map_is_made_of_the_maps_of_tiles_and_keeps_the_aspect(pipe):
    image = smooth_images(1, seed=6, size=(96, 64))[0]  # as large as it is scored: 64 pixels high, 96 wide
    output = pipe(image, return_term_maps=True, false_alarm_rate=0.25)
    assert output.anomaly_maps[0].shape == output.masks[0].shape == (64, 96)
    x = to_model_range(torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None])
    corners = tile_corners((64, 96), TILE, 0.25)
    expected = torch.zeros(64, 96)
    with torch.no_grad():
        distances = pipe.gaussian(pipe.feature_extractor(cut(x, corners, TILE))).sqrt()
        distances = torch.nn.functional.interpolate(distances[:, None], size=TILE, mode="bilinear")[:, 0]
    add_tiles(expected, distances, blend_weights((64, 96), corners, TILE), corners)
    expected = pipe.calibration.standardize("mahalanobis", smooth_map(expected[None], 1.0))[0]
    np.testing.assert_allclose(output.term_maps[0]["mahalanobis"], expected, rtol=1e-3, atol=1e-3)
    assert output.image_scores[0] == pytest.approx(output.anomaly_maps[0].max(), rel=1e-5)


def test_passes_are_no_larger_than_the_batch_and_scores_do_not_depend_on_it(pipe, normals):
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    scores = [pipe(normals, batch_size=batch_size, false_alarm_rate=0.5).image_scores for batch_size in (1, 3, 8)]
    handle.remove()
    assert {size[-2:] for size in sizes} == {TILE}
    assert max(size[0] for size in sizes) == 8 and min(size[0] for size in sizes) == 1
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-4, atol=1e-4)


def test_an_image_of_one_tile_scores_as_without_tiling(normals):
    pipe = tiled_pipeline()
    small = smooth_images(4, seed=7)
    pipe.calibrate(small)
    expected = pipe(small, false_alarm_rate=0.5).image_scores
    pipe.calibrate(small, short_side=SIZE)
    np.testing.assert_allclose(pipe(small, false_alarm_rate=0.5).image_scores, expected, rtol=1e-4, atol=1e-4)


def test_thresholds_are_of_whole_images_and_survive_saving(pipe, normals, tmp_path):
    scores = pipe(normals, false_alarm_rate=0.5).image_scores
    assert len(pipe.calibration.calibration_scores) == 3
    for normal_score in pipe.calibration.calibration_scores.numpy():
        assert np.isclose(scores, normal_score, rtol=1e-4, atol=1e-4).any()
    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(normals, false_alarm_rate=0.5).image_scores, scores)


def test_tiles_that_the_model_does_not_fit_are_refused(normals, pipe):
    with pytest.raises(ValueError, match="at least the model's resolution 32, got 16"):
        pipe.calibrate(normals, short_side=16)
    with pytest.raises(ValueError, match="shared_gaussian"):
        tiny_pipeline().calibrate(normals, short_side=64)
    with pytest.raises(ValueError, match="tile_overlap"):
        Calibration(tile_overlap=1.0)
    with pytest.raises(ValueError, match="shared_gaussian"):
        TrainingConfig(short_side=512)
    with pytest.raises(ValueError, match="at least the resolution 256"):
        TrainingConfig(short_side=128, shared_gaussian=True)


# Region of interest


def region(size: tuple[int, int]) -> np.ndarray:
    """The right half."""
    inside = np.zeros(size, dtype=bool)
    inside[:, size[1] // 2 :] = True
    return inside


def with_spot(image: Image.Image, column: int) -> Image.Image:
    pixels = np.array(image)
    pixels[12:20, column : column + 8] = np.where(np.indices((8, 8)).sum(0) % 2, 0, 255)[..., None]
    return Image.fromarray(pixels)


def test_only_the_region_of_interest_counts(tmp_path):
    images = smooth_images(4, seed=8)
    pipe = tiny_pipeline(smoothing_sigma=0.5, weights={"mahalanobis": 1.0})
    pipe.calibrate(images, roi=region((SIZE, SIZE)))
    inside, outside = pipe([with_spot(images[0], 20), with_spot(images[0], 2)], false_alarm_rate=0.5).image_scores
    assert inside > outside + 1
    output = pipe(with_spot(images[0], 2), false_alarm_rate=0.5, return_term_maps=True)
    partial, anomaly_map = output.term_maps[0]["mahalanobis"], output.anomaly_maps[0]
    assert output.image_scores[0] == partial[:, 16:].max() < partial[:, :16].max()
    np.testing.assert_array_equal(anomaly_map[:, 16:], partial[:, 16:])
    assert (anomaly_map[:, :16] == 0).all() and not output.masks[0][:, :16].any()

    partials = pipe(images, false_alarm_rate=0.5, return_term_maps=True).term_maps
    maxima = [partial["mahalanobis"][:, 16:].max() for partial in partials]
    assert all(np.isclose(maxima, threshold, rtol=1e-4, atol=1e-4).any() for threshold in pipe.calibration.calibration_maxima)
    of_statistics = [
        p["mahalanobis"][:, 16:]
        for p in partials
        if not np.isclose(pipe.calibration.calibration_maxima, p["mahalanobis"][:, 16:].max(), rtol=1e-4).any()
    ]
    assert len(of_statistics) == 1 and of_statistics[0].mean() == pytest.approx(0, abs=1e-3)
    assert of_statistics[0].std() == pytest.approx(1, abs=1e-3)

    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    assert loaded(with_spot(images[0], 2), false_alarm_rate=0.5).image_scores[0] == output.image_scores[0]


def test_nothing_outside_the_region_is_called_defective_where_thresholds_are_negative():
    pipe = tiny_pipeline(smoothing_sigma=0.5, weights={"mahalanobis": 1.0})
    calibration = pipe.calibrate(smooth_images(4, seed=8), roi=region((SIZE, SIZE)))
    shift = calibration.calibration_scores.max() + 3
    calibration.calibration_scores -= shift
    calibration.calibration_maxima -= shift
    output = pipe(with_spot(smooth_images(1, seed=9)[0], 20), false_alarm_rate=0.5)
    threshold = output.pixel_thresholds[0]
    assert threshold < 0 and output.masks[0].any()
    np.testing.assert_array_equal(output.masks[0], output.anomaly_maps[0] > threshold)
    changed = pipe.reconstruct(with_spot(smooth_images(1, seed=9)[0], 20), false_alarm_rate=0.5, margin=0, timesteps=(50,))
    assert changed.difference_maps[0][:, 16:].any() and not changed.difference_maps[0][:, :4].any()


def test_calibration_stays_where_the_maps_are_when_models_are_offloaded(monkeypatch):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0})
    pipe.calibrate(smooth_images(4, seed=8), roi=region((SIZE, SIZE)))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda device: None)
    pipe.enable_model_cpu_offload(device="meta")  # stands for a GPU: it, too, refuses tensors of the CPU
    calibration, maps = pipe.calibration, torch.zeros(2, SIZE, SIZE, device=pipe._execution_device)
    assert maps.is_meta and pipe.unet.device.type == pipe.feature_extractor.device.type == "cpu"
    assert all(buffer.is_meta for buffer in calibration.buffers()) and calibration.roi.is_meta
    assert calibration.standardize("mahalanobis", maps).is_meta


def test_offloaded_models_score_calibrate_and_repair_the_same():
    images, spotted = smooth_images(4, seed=8), with_spot(smooth_images(1, seed=9)[0], 20)
    pipe = tiny_pipeline(smoothing_sigma=0.5)

    def everything():
        thresholds = pipe.calibrate(images, roi=region((SIZE, SIZE))).calibration_maxima
        score = pipe(spotted, false_alarm_rate=0.5).image_scores[0]
        repaired = pipe.reconstruct(spotted, false_alarm_rate=0.5, timesteps=(50,)).images[0]
        return thresholds.numpy(), score, np.asarray(repaired)

    expected = everything()
    pipe.enable_model_cpu_offload(device="cpu")  # the hooks of a GPU, which move models from the CPU to itself
    for actual, value in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(actual, value)


def test_region_is_kept_replaced_and_removed_by_recalibration(tmp_path):
    images = smooth_images(3, seed=8)
    pipe = tiny_pipeline(smoothing_sigma=0.5, weights={"mahalanobis": 1.0})
    whole = pipe.calibrate(images).calibration_scores
    Image.fromarray(region((100, 100))).save(tmp_path / "roi.png")
    from_file = pipe.calibrate(images, roi=tmp_path / "roi.png").calibration_scores
    assert not torch.equal(whole, from_file)
    assert torch.equal(pipe.calibrate(images).calibration_scores, from_file)
    assert torch.equal(pipe.calibrate(images, roi=region((SIZE, SIZE))).calibration_scores, from_file)
    assert torch.equal(pipe.calibrate(images, roi=np.ones((5, 5), dtype=bool)).calibration_scores, whole)


def test_region_of_tiled_images_is_at_their_size(pipe, normals):
    present = pipe.calibration
    pipe.calibrate(normals[:3], roi=region((640, 960)))
    assert pipe.calibration.config.roi_size == (64, 96)
    output = pipe(normals[0], false_alarm_rate=0.5)
    assert not output.masks[0][:, :47].any() and (output.anomaly_maps[0][:, :47] == 0).all()
    pipe.register_modules(calibration=present)


@pytest.mark.parametrize("roi", [np.zeros((8, 8), dtype=bool), np.ones((8, 8)), np.ones((8, 8, 3), dtype=bool)])
def test_unusable_region_is_refused_and_changes_nothing(roi):
    pipe = tiny_pipeline()
    before = pipe.calibration
    with pytest.raises(ImageError, match="region"):
        pipe.calibrate(smooth_images(3, seed=8), roi=roi)
    assert pipe.calibration is before


# Training


def test_cache_holds_the_tiles_of_every_image(tmp_path):
    for i, size in enumerate([(96, 64), (64, 64)]):
        smooth_images(1, seed=i, size=size)[0].save(tmp_path / f"{i}.png")
    samples = training_samples(tmp_path)
    build_cache(samples, tiny_extractor(), SIZE, tmp_path / "cache", short_side=2 * SIZE, tile_overlap=0.25)
    cached = CachedDataset(tmp_path / "cache")
    corners = [tile_corners(size, TILE, 0.25) for size in ((64, 96), (64, 64))]
    assert [cached.entries_of([i]) for i in (0, 1)] == [list(range(12)), list(range(12, 21))]
    assert [len(of_image) for of_image in corners] == [12, 9]
    for entry, (y, x) in enumerate(corners[0]):
        expected = np.asarray(samples[0].read())[y : y + SIZE, x : x + SIZE].transpose(2, 0, 1)
        np.testing.assert_array_equal(cached[entry]["images"], expected)
    assert cached.features.shape[0] == 21
