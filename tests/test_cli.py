"""The diffad command: every command on tiny models, errors in one line, and examples that parse."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
import typer
import yaml
from accelerate.state import AcceleratorState
from diffad import DiffADPipeline
from diffad.cli import app
from diffad.cli.train import launch_command
from PIL import Image
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline
from typer.testing import CliRunner

COMMANDS = typer.main.get_command(app).commands


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def new_accelerator():
    """Each training is its process's first, as on the command line."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved_model, tmp_path):
    """A copy that the test may change."""
    return shutil.copytree(saved_model, tmp_path / "model")


@pytest.fixture
def parts(tmp_path):
    """Test images: three good ones, two with a block, masks for these."""
    return save_test_images(tmp_path / "parts", defective=2)


def save_images(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:02d}.png")
    return folder


def test_help_lists_the_commands_in_the_order_of_work():
    result = run("--help")
    assert result.exit_code == 0
    places = [
        result.stdout.index(f"│ {name} ") for name in ("train", "evaluate", "predict", "reconstruct", "calibrate", "info")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_the_help_parses(name):
    assert run(name, "--help").exit_code == 0
    examples = re.findall(r"^ *(diffad .*)$", COMMANDS[name].help, re.MULTILINE)
    assert examples
    for example in examples:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("diffad", name)
        COMMANDS[name].make_context(name, arguments, token_normalize_func=app.info.context_settings["token_normalize_func"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_writes_a_report_of_its_table(model, parts, tmp_path, suffix):
    result = run(
        "predict", parts / "test", "--model", model, "--output", tmp_path / f"out{suffix}", "--report", tmp_path / "report.html"
    )
    assert result.exit_code == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/") >= 5 and "called defective" in text


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_report_of_a_finished_table_takes_no_second_scoring(model, parts, tmp_path, monkeypatch, suffix):
    output, report = tmp_path / f"out{suffix}", tmp_path / "pages" / "report.html"
    arguments = ("predict", parts / "test", "--model", model, "--output", output)
    assert run(*arguments).exit_code == 0
    table = output.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("diffad.jobs.predict.rows_of", lambda *_: pytest.fail("was scored again"))
        result = run(*arguments, "--report", report)
    assert result.exit_code == 0 and "5 images, 2 of them called defective" in result.stdout
    assert "was complete already, nothing was scored" in result.stdout
    assert output.read_bytes() == table and report.read_text().count("data:image/") >= 5
    result = run(*arguments, "--false-alarm-rate", 0.1, "--report", report)
    assert result.exit_code == 1 and "of a run that differs: false alarm rate None there, 0.1 now" in result.stderr


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{tmp}", "{tmp}: is a folder; name a file for the report"),
        ("{tmp}/file/report.html", "{tmp}/file/report.html: {tmp}/file is a file, no folder"),
        ("{tmp}/x/../out.jsonl", "{tmp}/x/../out.jsonl: is the table, too"),
    ],
)
def test_a_report_that_can_not_be_written_is_refused_before_anything_is_scored(model, parts, tmp_path, report, message):
    (tmp_path / "file").write_text("kept")
    arguments = ("predict", parts / "test", "--model", model, "--output", tmp_path / "out.jsonl")
    result = run(*arguments, "--report", report.format(tmp=tmp_path))
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(f"error: {message.format(tmp=tmp_path)}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model", "parts"]


def test_a_report_of_several_categories_is_refused_before_anything_is_scored(parts, tmp_path):
    pipe = tiny_pipeline(("nut", "bolt"), weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.save_pretrained(tmp_path / "model")
    result = run(
        *("predict", parts / "test", "--model", tmp_path / "model"),
        *("--output", tmp_path / "out.jsonl", "--report", tmp_path / "report.html"),
    )
    assert result.exit_code == 1 and "name the one to report on with --category" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "parts"]


def test_predict_scores_a_folder(model, parts, tmp_path):
    result = run("predict", parts / "test", "--model", model, "--output", tmp_path / "out.jsonl", "--masks", tmp_path / "masks")
    assert result.exit_code == 0 and "5 images, 2 of them called defective" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["defective"] * 2 + ["good"] * 3
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 5


def test_unreadable_images_are_reported_and_fail_the_run_only_if_asked(model, parts, tmp_path):
    (parts / "test" / "broken.png").write_bytes(b"no image")
    arguments = ("predict", parts / "test", "--model", model)
    result = run(*arguments, "--output", tmp_path / "out.csv")
    assert result.exit_code == 0 and "6 images" in result.stdout
    assert "unreadable images: 1\n" in result.stderr and "broken.png: not a readable image" in result.stderr
    assert run(*arguments, "--output", tmp_path / "strict.csv", "--strict").exit_code == 1
    assert (tmp_path / "strict.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


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
        "evaluate", parts, "--model", model, "--output", tmp_path / "out", "--false-alarm-rate", 0.1, "--map-size", "24x48"
    )
    assert result.exit_code == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["scores"]["ensemble"]["image_auroc"] == 1.0
    assert metrics["operating_point"]["requested_false_alarm_rate"] == 0.1 and metrics["map_size"] == "24x48"


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
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(
        "error: a false_alarm_rate of 0.01 needs 99 normal"
    )
    assert (model / "calibration" / "config.json").read_bytes() == before


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
    assert lines["held-out normals"] == "19"
    assert lines["score"].startswith("1 mahalanobis")
    assert lines["threshold at 5%"].startswith(f"{pipe.calibration.image_threshold(0.05):.4g} (image)")


def test_info_says_why_there_is_no_threshold(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    result = run("info", tmp_path)
    assert re.search(r"threshold at 1%: +none: no normal scores", result.stdout)


def test_info_of_anything_else_describes_data(parts, monkeypatch):
    monkeypatch.setattr("diffad.data.describe", lambda folder: f"data in {folder}", raising=False)
    assert run("info", parts).stdout == f"data in {parts}\n"


def tiny_settings(tmp_path):
    path = tmp_path / "tiny.yaml"
    unet = {
        "patch_size": 2,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "add_attention": False,
    }
    unet.update(down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2)
    settings = {"resolution": 32, "levels": [2], "unet": unet, "max_train_steps": 40, "lr_warmup_steps": 1, "seed": 3}
    path.write_text(yaml.safe_dump({**settings, "held_out_fraction": 0.25, "mixed_precision": "no", "report_to": None}))
    return path


def test_app_serves_the_loaded_model_under_its_name(model, monkeypatch):
    gradio_app = pytest.importorskip("diffad.app.page", reason="needs gradio: pip install 'diffad[app]'")
    served = []
    monkeypatch.setattr(gradio_app, "build_app", lambda pipe, name, examples: (pipe, name, examples))
    monkeypatch.setattr(gradio_app, "launch", lambda app, *options, **more: served.append((app, options)))
    monkeypatch.chdir(model)
    result = run("app", ".", "--device", "cpu", "--port", 8000, "--no-browser")
    assert result.exit_code == 0, result.stderr
    (((pipe, name, examples), options),) = served
    assert type(pipe) is DiffADPipeline and (name, examples, options) == ("model", None, ("127.0.0.1", 8000, False))


def test_train_saves_a_model_and_takes_any_setting(tmp_path):
    good = save_images(tmp_path / "good", smooth_images(10, seed=0))
    options = (
        "--config",
        tiny_settings(tmp_path),
        "--max-train-steps",
        2,
        "--train_batch_size",
        3,
        "--output",
        tmp_path / "out",
    )
    result = run("train", *options, good)
    assert result.exit_code == 0, result.stderr
    assert DiffADPipeline.from_pretrained(tmp_path / "out").calibration.is_fitted
    config = json.loads((tmp_path / "out" / "training_config.json").read_text())
    assert (config["max_train_steps"], config["train_batch_size"], config["seed"]) == (2, 3, 3)


def test_train_says_how_to_use_several_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("diffad_training.train.main", lambda config: None)
    result = run("train", "my parts", "--output", "out", "--seed", 1, "--max-train-steps", 5)
    assert result.exit_code == 0
    command = "accelerate launch --multi_gpu -m diffad_training.train --config cpu-small --data 'my parts' --output_dir out"
    assert f"{command} --seed 1 --max_train_steps 5\n" in result.stderr


def test_launch_command_is_the_same_training():
    from diffad_training.config import load_config, parse_config

    options = {"data": "parts", "output_dir": "out", "unet": '{"patch_size": 2}', "seed": None}
    words = shlex.split(launch_command("paper", options))
    assert parse_config(words[words.index("diffad_training.train") + 1 :]) == load_config("paper", options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train {tmp}/missing --output {tmp}/out", "{tmp}/missing: no such folder"),
        ("train {tmp} --config nowhere", "--config nowhere: no such file, and no preset"),
        ("train {tmp} --max-train-steps many", "max_train_steps: expected int, got 'many'"),
        ("train {tmp} --levels [1", "--levels [1: not a value"),
        ("predict {tmp} --model {tmp} --output {tmp}/out.csv", "{tmp}: is not a trained model"),
        ("predict {tmp} --model {tmp}/missing --output {tmp}/out.csv", "{tmp}/missing: no such folder"),
        ("predict {tmp}/missing --model {model} --output {tmp}/out.csv", "{tmp}/missing: no such folder"),
        ("predict {tmp} --model {model} --output {tmp}/out.xls", "{tmp}/out.xls: a table's name must end in"),
        (
            "predict {tmp} --model {model} --output {tmp}/out.csv --false-alarm-rate 2",
            "false_alarm_rate must lie",
        ),
        ("evaluate {tmp} --model {model}", "{tmp}: no test images"),
        ("reconstruct {tmp} --model {model} --output {tmp}/out", "{tmp}/out: lies in the folder of images"),
        ("calibrate {model} {tmp}/missing", "{tmp}/missing: no such folder"),
        ("app {tmp}", "{tmp}: is not a trained model"),
        ("app {tmp}/missing", "{tmp}/missing: no such folder"),
        ("calibrate owner/name {tmp}", "owner/name: is on the Hub; give a folder"),
    ],
)
def test_known_errors_are_one_line(arguments, message, saved_model, tmp_path):
    places = {"tmp": tmp_path, "model": saved_model}
    result = run(*arguments.format(**places).split())
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {message.format(**places)}")
    assert "Traceback" not in result.output and list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback(monkeypatch, model, parts):
    monkeypatch.setattr("diffad.jobs.summary.summarize_model", lambda pipe: 1 / 0)
    assert isinstance(run("info", model).exception, ZeroDivisionError)
