"""coverage.py: realised false-alarm rates on repeated splits."""

import json

import numpy as np
import pytest
import torch
from diffad import Calibration
from diffad_training.benchmarks import coverage
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline


def random_term_maps(calibration: Calibration, count: int) -> np.ndarray:
    """One-pixel maps of `count` images."""
    rng = np.random.default_rng(0)
    return rng.standard_t(df=3, size=(count, len(calibration.score_config.term_map_names), 1, 1)).astype(np.float32)


def test_mean_over_splits_is_the_expected_rate_and_one_split_is_counted_right():
    calibration = Calibration(timesteps=(20,), weights={"mahalanobis": 1.0}, standardized_terms=())
    term_maps = random_term_maps(calibration, 60)
    results = coverage.coverage(calibration, term_maps, held_out=19, rates=[0.05, 0.3], splits=200, seed=0)
    assert (results["calibrated_on"], results["behind_thresholds"], results["counted_on"]) == (19, 19, 41)
    scores = term_maps[:, -1, 0, 0]
    for row, rank, expected in zip(results["rates"], (19, 14), (0.05, 0.3)):
        assert row["expected"] == pytest.approx(expected)
        assert row["mean"] == np.mean(row["splits"]) == pytest.approx(expected, abs=4 * row["standard_error"])
        assert row["as_it_is"] == (scores[19:] > np.sort(scores[:19])[rank - 1]).mean()
        assert len(row["splits"]) == 200 and row["standard_error"] == pytest.approx(np.std(row["splits"]) / 200**0.5, rel=0.01)


def test_unsupported_rate_is_refused():
    calibration = Calibration(timesteps=(20,))
    with pytest.raises(ValueError, match="0.01 needs 99"):
        coverage.coverage(calibration, random_term_maps(calibration, 30), held_out=20, rates=[0.01], splits=2, seed=0)


OF_TAILS = {"fusion": "tails", "verdict": {"residual": 1.0, "mahalanobis": 2.0}, "statistics_share": 1 / 3}


@pytest.mark.parametrize("score", [{"smoothing_sigma": 1.0}, {"smoothing_sigma": 1.0, **OF_TAILS}])
def test_run_scores_what_the_model_was_not_fitted_on_and_keeps_the_maps(score, tmp_path, capsys):
    images = smooth_images(20, seed=30)
    for name in ("train/good", "test/good", "test/hole"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(tmp_path / "data" / ("train/good" if i < 12 else "test/good") / f"{i:02d}.png")
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(tmp_path / "data/test/hole/0.png")
    pipe = tiny_pipeline(**score)
    pipe.calibrate(images[:3])
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model/training_config.json").write_text(json.dumps({"held_out_fraction": 0.5, "seed": 0}))
    names = [f"train/good/{i:02d}.png" for i in range(0, 12, 2)]
    (tmp_path / "model/held_out.json").write_text(json.dumps({"held_out": names}))
    maps, output = tmp_path / "maps.npy", tmp_path / "out/coverage.json"
    arguments = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--rates", "0.2", "0.5"]
    arguments += ["--splits", "5", "--maps", str(maps), "--output", str(output)]
    coverage.main(arguments)
    results = json.loads(output.read_text())
    assert (results["calibrated_on"], results["counted_on"]) == (6, 8)
    assert "| 20.0% |" in capsys.readouterr().out and output.with_suffix(".png").is_file()

    kept = np.load(maps)
    names = pipe.calibration.score_config.term_map_names
    pixels = torch.from_numpy(np.array(images[12]).transpose(2, 0, 1)[None]).float() / 127.5 - 1
    with torch.no_grad():
        expected = pipe.scorer.raw_term_maps(pixels)
    np.testing.assert_allclose(kept[6], [expected[name][0] for name in names], rtol=1e-3, atol=1e-4)
    # Calibrated anew on the maps, an image scores as by the pipeline that is calibrated anew on the images.
    held_out, _ = coverage.unfitted_samples(tmp_path / "model", str(tmp_path / "data"))
    pipe.calibrate([sample.read for sample in held_out])
    calibration = Calibration(**score)
    statistics = [coverage.statistics_of(calibration, maps) for maps in kept]
    coverage.fit(calibration, kept, statistics, np.arange(6))
    torch.testing.assert_close(calibration.calibration_scores, pipe.calibration.calibration_scores, rtol=1e-3, atol=1e-3)
    assert coverage.scores_of(calibration, kept[6])[0] == pytest.approx(pipe(images[12]).image_scores[0], rel=1e-3)

    coverage.main(arguments)  # from the kept maps
    assert json.loads(output.read_text()) == results
