"""Production into a monitor: each part once, from tables that grow and folders that fill, with a state that survives."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from damaged_states import damaged_values, without_digest
from diffad import DiffADPipeline
from diffad.data import DataError
from diffad.jobs.monitor import MonitorRun, MonitorSettings, monitor
from diffad.jobs.monitor_summary import summarize
from diffad.jobs.table import write_table
from diffad.monitoring import embedding_test
from diffad.monitoring.references import GROUPED
from diffad.scoring.conformal import conformal_threshold
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(40, seed=4))
    return pipe


def rows(pipe: DiffADPipeline, scores) -> list[dict]:
    threshold = pipe.calibration.image_threshold(0.05)
    return [
        {
            "path": f"{i}.png",
            "score": float(score),
            "image_threshold": threshold,
            "label": "defective" if score > threshold else "good",
        }
        for i, score in enumerate(scores)
    ]


def drawn(pipe: DiffADPipeline, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(pipe.calibration.calibration_scores_of(), size=count)


def save_images(folder: Path, images, start: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images, start):
        image.save(folder / f"{i:03d}.png")
        os.utime(folder / f"{i:03d}.png", ns=(i, i))
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_growing_table_is_taken_once_and_the_same_as_at_once(pipe, tmp_path, suffix):
    table, all_rows = tmp_path / f"results{suffix}", rows(pipe, drawn(pipe, 60))
    for length in (20, 20, 60):
        write_table(all_rows[:length], table)
        run = monitor(pipe, tmp_path / "state.json", MonitorSettings(), [table])
        assert run.monitor.state.parts == length
    at_once = monitor(pipe, tmp_path / "other.json", MonitorSettings(), [table])
    assert at_once.monitor.to_dict() == run.monitor.to_dict()


def test_rows_that_have_changed_are_refused_and_nothing_is_taken(pipe, tmp_path):
    table, all_rows = tmp_path / "results.jsonl", rows(pipe, drawn(pipe, 30))
    write_table(all_rows[:20], table)
    monitor(pipe, tmp_path / "state.json", MonitorSettings(), [table])
    state = (tmp_path / "state.json").read_bytes()
    for others in (all_rows[:10], [*all_rows[10:20], *all_rows[:15]]):
        write_table(others, table)
        with pytest.raises(ValueError, match="results.jsonl: the 20 rows that .*state.json has taken from it are not there"):
            monitor(pipe, tmp_path / "state.json", MonitorSettings(), [table])
        assert (tmp_path / "state.json").read_bytes() == state


def test_rows_that_are_no_parts_are_counted_apart(pipe, tmp_path):
    all_rows = rows(pipe, drawn(pipe, 5))
    all_rows += [{"path": "broken.png", "error": "not readable"}, {**all_rows[0], "label": "unknown"}]
    all_rows += [{**all_rows[0], "category": "nut"}]
    write_table(all_rows, tmp_path / "results.csv")
    run = monitor(pipe, tmp_path / "state.json", MonitorSettings(), [tmp_path / "results.csv"])
    assert run.monitor.state.parts == 5
    assert run.sources.skipped == {"unreadable": 1, "of an unknown product": 1, "of another category": 1}


def test_a_table_of_another_threshold_is_refused(pipe, tmp_path):
    write_table([{**row, "image_threshold": 1.0} for row in rows(pipe, [0.5])], tmp_path / "results.csv")
    with pytest.raises(ValueError, match=r"results.csv: row 1 was judged by the threshold 1, .* --false-alarm-rate"):
        monitor(pipe, tmp_path / "state.json", MonitorSettings(), [tmp_path / "results.csv"])


def test_a_table_without_scores_is_refused(pipe, tmp_path):
    (tmp_path / "results.csv").write_text("path,label\n1.png,good\n")
    with pytest.raises(ValueError, match="row 1 has no score"):
        monitor(pipe, tmp_path / "state.json", MonitorSettings(), [tmp_path / "results.csv"])
    with pytest.raises(ValueError, match="gone.csv: no such table"):
        monitor(pipe, tmp_path / "state.json", MonitorSettings(), [tmp_path / "gone.csv"])


def test_a_folder_is_taken_once_in_the_order_of_its_files_times(pipe, tmp_path):
    images = smooth_images(12, seed=30)
    folder = save_images(tmp_path / "new", images[:7])
    monitor(pipe, tmp_path / "state.json", MonitorSettings(), folder=folder)
    (folder / "broken.png").write_bytes(b"no image")
    save_images(folder, images[7:], 7)
    run = monitor(pipe, tmp_path / "state.json", MonitorSettings(), folder=folder)
    assert run.monitor.state.parts == 12 and run.sources.skipped["unreadable"] == 1
    assert [Path(path).name for path in run.sources.recent] == [f"{i:03d}.png" for i in range(12)]
    scores = pipe(images).image_scores
    expected = monitor(pipe, tmp_path / "other.json", MonitorSettings(), [])
    for score in scores:
        expected.monitor.update(float(score))
    assert run.monitor.state.evidence == pytest.approx(expected.monitor.state.evidence, rel=1e-6)


def test_reference_images_test_embeddings_and_say_what_changed(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (8,))
    reference = save_images(tmp_path / "good", smooth_images(40, seed=31))
    settings = MonitorSettings(reference=reference)
    folder = save_images(tmp_path / "new", smooth_images(10, seed=32))
    run = monitor(pipe, tmp_path / "state.json", settings, folder=folder)
    summary = summarize(run)
    assert not summary.changed and summary.suggestions == [] and [test.name for test in summary.tests][-1] == "embeddings"
    dark = [image.point(lambda value: value // 2) for image in smooth_images(40, seed=33)]
    save_images(folder, dark, 10)
    run = monitor(pipe, tmp_path / "state.json", settings, folder=folder)
    summary = summarize(run)
    assert summary.changed and "darker" in [suggestion.words for suggestion in summary.suggestions]
    assert summary.recent_images and summary.reference_images
    # The state knows the reference's features, and which images they are of
    again = monitor(pipe, tmp_path / "state.json", MonitorSettings(), folder=folder)
    assert again.monitor.to_dict() == run.monitor.to_dict()
    # Without the folder the calibration images say what changed
    assert "darker" in [suggestion.words for suggestion in summarize(again).suggestions]
    save_images(reference, smooth_images(1, seed=34), 40)
    with pytest.raises(ValueError, match="good: is not as it was when .*state.json was begun"):
        monitor(pipe, tmp_path / "state.json", settings, folder=folder)
    write_table(rows(pipe, [0.1]), tmp_path / "results.csv")
    with pytest.raises(ValueError, match="tests embeddings, which tables lack"):
        monitor(pipe, tmp_path / "state.json", MonitorSettings(), [tmp_path / "results.csv"])


def test_images_of_a_tables_parts_explain_its_alarm(pipe, tmp_path):
    reference = save_images(tmp_path / "good", smooth_images(20, seed=35))
    dark = save_images(tmp_path / "new", [image.point(lambda value: value // 2) for image in smooth_images(20, seed=36)])
    high = pipe.calibration.calibration_scores_of().max() + 1
    write_table([{**row, "path": f"{i:03d}.png"} for i, row in enumerate(rows(pipe, [high] * 20))], tmp_path / "results.csv")
    (tmp_path / "results.csv.run.json").write_text(json.dumps({"run": {"folder": str(dark)}, "table": ""}))
    run = monitor(pipe, tmp_path / "state.json", MonitorSettings(reference=reference), [tmp_path / "results.csv"])
    summary = summarize(run)
    assert summary.changed and summary.rejected == 20 and "darker" in [suggestion.words for suggestion in summary.suggestions]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "state.json: can't be read"),
        ("[]", "state.json: can't be read"),
        ('{"model": 1}', "not the state of a monitor"),
    ],
)
def test_what_is_no_state_is_refused_and_left(pipe, tmp_path, content, message):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        monitor(pipe, tmp_path / "state.json", MonitorSettings())
    assert (tmp_path / "state.json").read_text() == content


def test_a_damaged_state_is_refused_with_the_reason_and_left(pipe, tmp_path):
    state = tmp_path / "state.json"
    settings = MonitorSettings(reference=save_images(tmp_path / "good", smooth_images(40, seed=31)))
    monitor(pipe, state, settings, folder=save_images(tmp_path / "new", smooth_images(3, seed=32)))
    text = state.read_text()
    saved = json.loads(text)
    cut = [text[: len(text) * share // 10] for share in range(10)]
    damaged = [json.dumps(one) for one in islice(damaged_values(saved), 0, None, 17)]
    former = json.loads(text)
    former["monitor"] = without_digest(former["monitor"] | {"parts": None})
    damaged.append(json.dumps(without_digest(former)))
    for changed in ({"tables": "x"}, {"recent": [1]}, {"folders": {"x": 1}}, {"skipped": {}}):
        damaged.append(json.dumps(without_digest(saved | {"sources": saved["sources"] | changed})))
    damaged.append(json.dumps(without_digest(saved | {"reference_features": [[1.0], [1.0, 2.0]]})))
    assert len(damaged) > 30
    for content in cut + damaged:
        state.write_text(content)
        with pytest.raises(ValueError, match=r"state.json: can't (be read|go on from it)"):
            MonitorRun(pipe, state, settings)
        assert state.read_text() == content


def test_a_state_of_another_model_or_of_other_settings_is_refused(pipe, tmp_path):
    monitor(pipe, tmp_path / "state.json", MonitorSettings())
    with pytest.raises(ValueError, match="level 0.05 there, 0.01 now; name another --state"):
        monitor(pipe, tmp_path / "state.json", MonitorSettings(level=0.01))
    other = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    other.calibrate(smooth_images(40, seed=5))
    with pytest.raises(ValueError, match="belongs to another model"):
        monitor(other, tmp_path / "state.json", MonitorSettings())


def test_of_a_model_of_groups_parts_are_compared_with_single_images(tmp_path, pipe):
    grouped = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    grouped.calibrate(smooth_images(80, seed=4), groups=[str(i // 2) for i in range(80)])
    reference = save_images(tmp_path / "good", smooth_images(60, seed=31))
    folder = save_images(tmp_path / "new", smooth_images(10, seed=32))
    settings = MonitorSettings(reference=reference, false_alarm_rate=0.2)
    run = monitor(grouped, tmp_path / "state.json", settings, folder=folder)
    single = grouped.calibration.single_scores_of()
    assert run.monitor.cut == conformal_threshold(single, 0.2) < run.monitor.threshold
    scores = grouped(smooth_images(60, seed=31)).image_scores
    assert len(run.reference_features) == (scores < run.monitor.cut).sum()
    assert GROUPED in summarize(run).notes
    assert GROUPED not in summarize(monitor(pipe, tmp_path / "other.json", MonitorSettings())).notes


def test_a_category_must_be_named(tmp_path):
    pipe = tiny_pipeline(("nut", "bolt"), weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    with pytest.raises(ValueError, match="name the one to monitor of nut, bolt"):
        monitor(pipe, tmp_path / "state.json", MonitorSettings())


def test_an_empty_folder_is_refused(pipe, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match="no images found"):
        monitor(pipe, tmp_path / "state.json", MonitorSettings(), folder=tmp_path / "new")
