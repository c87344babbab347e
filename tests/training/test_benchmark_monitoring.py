"""The monitor's benchmark: its vectorised streams are what DriftMonitor says part by part."""

import numpy as np
from diffad.monitoring.drift_monitor import EMBEDDINGS, DriftMonitor
from diffad.scoring.conformal import threshold_rank
from diffad_training.benchmarks import monitoring_folders
from diffad_training.benchmarks.monitoring_images import measure_variant
from diffad_training.benchmarks.monitoring_streams import NEVER, embedding_alarms, monitor_alarms
from tiny_pipeline import smooth_images, tiny_pipeline


def test_alarms_of_streams_are_those_of_a_monitor():
    rng, n, streams, parts = np.random.default_rng(0), 40, 6, 120
    features = rng.normal(size=(streams, n + parts, 3))
    features[3:, n:] *= 1.6  # longer, so that scores rise and embeddings spread
    features[5, n:, 0] += 2
    lengths = np.linalg.norm(features, axis=2)
    calibration, scores = np.sort(lengths[:, :n], axis=1), lengths[:, n:]
    rank = threshold_rank(n, 0.05)
    references = [of[np.argsort(length[:n])[: rank - 1]] for of, length in zip(features, lengths, strict=True)]
    found = monitor_alarms(calibration, scores, 0.05, 0.05, with_embeddings=True)
    rejected = scores > calibration[:, rank - 1 : rank]
    found[EMBEDDINGS] = embedding_alarms(references, features[:, n:], rejected, 0.05)
    for stream in range(streams):
        monitor = DriftMonitor(calibration[stream], 0.05, 0.05, reference_features=references[stream], seed=stream)
        for score, of_part in zip(scores[stream], features[stream, n:], strict=True):
            monitor.update(score, of_part)
        assert monitor.alarms == {test: times[stream] for test, times in found.items() if times[stream] != NEVER}
    assert np.isfinite(found[EMBEDDINGS]).any() and np.isinf(found[EMBEDDINGS]).any()


def test_changed_images_alarm_and_the_change_is_named():
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(40, seed=4))
    dark = [image.point(lambda value: value // 2) for image in smooth_images(60, seed=5)]
    found = measure_variant(pipe, dark, 0)
    assert found["alarmed"] == 1 and found["median"] <= 60 and "darker" in found["suggestions"]
    assert found["images"] == 60 and set(found["by_test"]) == {"scores", "reject rate", "embeddings"}


def test_good_images_are_divided_and_none_is_in_two_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(
        monitoring_folders,
        "DIVISIONS",
        {"grid": (3, 2), "screw": (2, 2), "magnetic_tile": (3, 3), "magnetic_tile-exposure": (2, 1)},
    )
    names = {"grid": [f"{i:03d}.png" for i in range(5)], "screw": [f"{i:03d}.png" for i in range(5)]}
    names["magnetic_tile"] = [f"exp{i % 4 + 1}_num_{i}.jpg" for i in range(12)]
    for category, files in names.items():
        for split in ("train", "test"):
            (tmp_path / category / split / "good").mkdir(parents=True)
            for name in files:
                (tmp_path / category / split / "good" / name).write_text(split)
    monitoring_folders.main([str(tmp_path), str(tmp_path / "divided")])
    counts = {}
    for folder in (tmp_path / "divided").iterdir():
        files = [path.resolve() for path in folder.glob("*/*/*")]
        assert len(set(files)) == len(files)
        counts[folder.name] = {f"{p.parent.name}/{p.name}": len(list(p.iterdir())) for p in folder.glob("*/*")}
    assert counts["grid"] == {"train/good": 3, "validation/good": 2, "test/good": 5}
    assert counts["screw"] == {"train/good": 2, "validation/good": 2, "test/good": 1, "test/published": 5}
    assert counts["magnetic_tile-exposure"] == {
        **{"train/good": 2, "validation/good": 1, "test/good": 3},
        **{"test/exp1": 6, "test/exp2": 6, "test/exp4": 6},
    }
