"""diffad reconstruct, evaluate, calibrate and info, on tiny models."""

import json
import re

import new_process
import numpy as np
import pytest
import torch
from cli_runner import run, save_images
from diffad import DiffADPipeline
from diffad.data import describe
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.mark.parametrize(("option", "warning"), [("--trajectory", ""), ("--film", "--film is now called --trajectory")])
def test_reconstruct_shows_the_way_to_what_it_changes(model, parts, tmp_path, option, warning):
    result = run("reconstruct", parts / "test", "--model", model, "--output", tmp_path / "out", option)
    assert result.exit_code == 0 and "5 images, 2 of them changed" in result.stdout
    assert warning in result.stderr and ("--film" in result.stderr) == bool(warning)
    written = tmp_path / "out" / "trajectory"
    pictures = sorted(path.relative_to(written).as_posix() for path in written.rglob("*.*"))
    assert pictures == ["block/0.gif", "block/0.png", "block/1.gif", "block/1.png"]


def test_reconstruct_writes_repaired_images_and_their_changes(model, parts, tmp_path):
    (parts / "test" / "broken.png").write_bytes(b"no image")
    result = run("reconstruct", parts / "test", "--model", model, "--output", tmp_path / "out", "--batch_size", 2)
    assert result.exit_code == 0 and "5 images, 2 of them changed" in result.stdout and "unreadable images: 1" in result.stderr
    expected = DiffADPipeline.from_pretrained(model).reconstruct([parts / "test/good/0.png", parts / "test/block/0.png"])
    for i, name in enumerate(("good/0.png", "block/0.png")):
        repaired = np.asarray(Image.open(tmp_path / "out" / "repaired" / name), dtype=float)
        difference = np.asarray(Image.open(tmp_path / "out" / "difference" / name), dtype=float)
        np.testing.assert_allclose(repaired, np.asarray(expected.images[i], dtype=float), atol=1)
        np.testing.assert_allclose(difference / 255, expected.difference_maps[i], atol=0.01)
        assert difference.any() == (i == 1)


def test_evaluate_writes_metrics(model, parts, tmp_path):
    result = run(
        "evaluate",
        parts,
        "--model",
        model,
        "--output",
        tmp_path / "out",
        "--false-alarm-rate",
        0.1,
        "--map-size",
        "24x48",
        "--no-report",
    )
    assert (
        result.exit_code == 0 and "| ensemble |" in result.stdout and f"wrote {tmp_path / 'out/metrics.json'}" in result.stdout
    )
    assert not (tmp_path / "out/report.html").exists()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["scores"]["ensemble"]["image_auroc"] == 1.0
    assert metrics["operating_point"]["requested_false_alarm_rate"] == 0.1 and metrics["map_size"] == "24x48"


def test_the_command_is_a_module_that_prints_no_progress_into_files(model, parts, tmp_path):
    """As scripts start it."""
    words = ["predict", parts / "test", "--model", model, "--output", tmp_path / "out.csv"]
    printed = new_process.run(new_process.module, "diffad.cli", *words, printed=tmp_path / "printed.txt")
    assert f"{tmp_path / 'out.csv'} written: 5 images, 2 of them called defective\n" in printed
    assert "\r" not in printed and "%|" not in printed


def test_calibrate_changes_the_model_in_place(model, tmp_path):
    good = save_images(tmp_path / "good", smooth_images(24, seed=7))
    expected = DiffADPipeline.from_pretrained(model).calibrate(sorted(good.iterdir()))
    result = run("calibrate", model, good)
    assert result.exit_code == 0 and "calibrated on 24 good images" in result.stdout
    assert f"5.0%: {expected.image_threshold(0.05):.4g} (image)" in result.stdout
    pipe = DiffADPipeline.from_pretrained(model)
    assert pipe.calibration.config.num_calibration_images == 22  # two of them give the statistics
    torch.testing.assert_close(pipe.calibration.calibration_scores, expected.calibration_scores)
    assert not [path for path in model.iterdir() if path.name.startswith(".")]


def test_calibrate_to_another_folder_leaves_the_model(model, tmp_path):
    before = (model / "calibration" / "config.json").read_bytes()
    good = save_images(tmp_path / "good", smooth_images(20, seed=7))
    assert run("calibrate", model, good, "--output", tmp_path / "new").exit_code == 0
    assert DiffADPipeline.from_pretrained(tmp_path / "new").calibration.config.num_calibration_images == 18
    assert (model / "calibration" / "config.json").read_bytes() == before


def test_calibrate_saves_nothing_when_the_rate_is_refused(model, tmp_path):
    before = (model / "calibration" / "config.json").read_bytes()
    good = save_images(tmp_path / "good", smooth_images(4, seed=7))
    result = run("calibrate", model, good, "--false-alarm-rate", 0.01)
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith("error: a false_alarm_rate of 0.01 needs 99 ")
    assert (model / "calibration" / "config.json").read_bytes() == before


def test_calibrate_measures_in_a_region_of_interest(model, tmp_path):
    """The region may be drawn at another size, but not in another aspect, which would mean another place."""
    good = save_images(tmp_path / "good", smooth_images(24, seed=7, size=(64, 48)))
    inside = np.zeros((48, 64), dtype=np.uint8)
    inside[:, 20:] = 255
    region, wrong = tmp_path / "region.png", tmp_path / "wrong.png"
    Image.fromarray(inside).resize((32, 24)).save(region)
    Image.fromarray(inside[:, :48]).save(wrong)
    expected = DiffADPipeline.from_pretrained(model).calibrate(sorted(good.iterdir()), roi=region)
    before = (model / "calibration" / "config.json").read_bytes()
    result = run("calibrate", model, good, "--roi", wrong)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: {wrong}: a region of 48x48 pixels does not fit images of 64x48; draw it on one of them"
    )
    assert (model / "calibration" / "config.json").read_bytes() == before
    assert run("calibrate", model, good, "--roi", region).exit_code == 0
    calibration = DiffADPipeline.from_pretrained(model).calibration
    assert 0 < calibration.roi.float().mean() < 1
    torch.testing.assert_close(calibration.calibration_scores, expected.calibration_scores)


def test_calibrate_leaves_out_what_the_model_was_trained_on(model, tmp_path):
    good = save_images(tmp_path / "good", smooth_images(24, seed=7))
    (model / "training_config.json").write_text(json.dumps({"data": str(good)}))
    held_out = [f"{i:02d}.png" for i in range(0, 24, 4)]
    (model / "held_out.json").write_text(json.dumps({"held_out": held_out}))
    result = run("calibrate", model, good, "--output", tmp_path / "new")
    assert result.exit_code == 0 and "calibrated on 6 good images" in result.stdout
    others = save_images(tmp_path / "others", smooth_images(20, seed=8))
    assert "calibrated on 20 good images" in run("calibrate", model, others, "--output", tmp_path / "other").stdout
    for name in held_out:
        (good / name).unlink()
    result = run("calibrate", model, good)
    assert result.exit_code == 1 and "the model was trained on all 18 images" in result.stderr


def test_calibrate_takes_several_folders_if_they_are_said_to_be_good(model, tmp_path):
    for day, seed in (("monday", 7), ("tuesday", 8)):
        save_images(tmp_path / "good" / day, smooth_images(12, seed=seed))
    result = run("calibrate", model, tmp_path / "good")
    assert result.exit_code == 1 and "--all_good" in result.stderr
    assert "calibrated on 24 good images" in run("calibrate", model, tmp_path / "good", "--all_good").stdout
    assert "24 good images" in run("info", tmp_path / "good", "--all-good").stdout


def test_calibrate_refuses_a_whole_dataset(model, parts):
    result = run("calibrate", model, parts)
    assert result.exit_code == 1 and "such as test/good" in result.stderr


def test_info_of_a_model(model):
    result = run("info", model)
    assert result.exit_code == 0
    lines = dict(re.split(r": +", line, maxsplit=1) for line in result.stdout.splitlines())
    pipe = DiffADPipeline.from_pretrained(model)
    assert lines["image size"].startswith("32 x 32 pixels")
    assert lines["feature extractor"].startswith("test_efficientnet, ")
    assert lines["calibration images"] == "19"
    assert lines["anomaly map"].startswith("mahalanobis, standardised, smoothing ")
    assert lines["image score"] == "mean of the map's highest 1 pixel(s)"
    assert lines["threshold at 5%"].startswith(f"{pipe.calibration.image_threshold(0.05):.4g} (image)")


def test_info_says_why_there_is_no_threshold(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    result = run("info", tmp_path)
    assert re.search(r"threshold at 1%: +none: no calibration scores", result.stdout)


def test_info_of_anything_else_describes_data(parts):
    assert run("info", parts).stdout == f"{describe(parts)}\n"


def test_folders_that_are_all_good_are_taken_when_that_is_said(model, tmp_path):
    for lot in ("monday", "tuesday"):
        save_images(tmp_path / "lots" / lot, smooth_images(12, seed=len(lot)))
    for command in (["info", tmp_path / "lots"], ["calibrate", model, tmp_path / "lots"]):
        refused = run(*command)
        assert refused.exit_code == 1 and "monday (12), tuesday (12)" in refused.stderr and "--all_good" in refused.stderr
        for option in ("--all_good", "--all-good"):
            assert run(*command, option).exit_code == 0
    assert run("info", tmp_path / "lots", "--all_good").stdout.count("24 good images") == 1
