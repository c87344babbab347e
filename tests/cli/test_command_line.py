"""The command line as such: help, versions, former names, devices; errors in one line."""

import re
import shlex

import pytest
import typer
from cli_runner import run
from diffad import DiffADPipeline, __version__
from diffad.cli import app
from diffad.deprecation import LAST_RELEASE

LAST = f"the former name goes after diffad {LAST_RELEASE}"
COMMANDS = typer.main.get_command(app).commands


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
        ("evaluate {tmp} --model {model} --map-size 256", "--map-size 256: expected HEIGHTxWIDTH in pixels, such as 512x768"),
        ("evaluate {tmp} --model {model} --map-size 0x256", "--map-size 0x256: expected HEIGHTxWIDTH"),
        ("calibrate {model} {tmp} --roi {tmp}/missing.png", "{tmp}: no images found"),
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


@pytest.mark.parametrize(
    "model",
    ["runs/prat", "./prat", "../prat", "~/prat", "/runs/prat", "runs/parts/prat", "runs\\prat", "C:\\runs\\prat", "C:/prat"]
    + ["prat", "prat/", "runs/prat/", "owner//name", "", " ", "model name/v 1"],
)
def test_a_mistyped_path_is_never_looked_up_elsewhere(tmp_path, monkeypatch, model):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DiffADPipeline, "from_pretrained", lambda *_, **__: pytest.fail("was looked up"))
    result = run("predict", tmp_path, "--model", model, "--output", "out.csv")
    assert result.exit_code == 1 and result.stderr.startswith("error: "), result.output
    assert "no such folder" in result.stderr or "is not a trained model" in result.stderr


def test_version():
    result = run("--version")
    assert result.exit_code == 0 and result.stdout == f"diffad {__version__}\n"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"push"}))
def test_every_command_that_computes_takes_a_device(name):
    assert "--device" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_can_not_be_used_is_refused_in_one_line(saved_model, device):
    result = run("info", saved_model, "--device", device)
    assert result.exit_code == 1 and result.stderr.startswith(f"error: --device {device}: can't be used here (")
    assert len(result.stderr.splitlines()) == 1


def test_the_former_name_of_category_works_with_a_word_of_warning(saved_model, tmp_path):
    arguments = ("predict", tmp_path, "--model", saved_model, "--output", tmp_path / "out.csv")
    former, present = (run(*arguments, option, "screw") for option in ("--class_label", "--category"))
    assert former.exit_code == present.exit_code == 1
    assert former.stderr == f"--class-label is now called --category; {LAST}\n" + present.stderr
    assert "trained on one category" in present.stderr
    assert "class-label" not in run("predict", "--help").stdout


def test_a_bug_keeps_its_traceback(monkeypatch, model, parts):
    monkeypatch.setattr("diffad.jobs.model_summary.summarize_model", lambda pipe: 1 / 0)
    assert isinstance(run("info", model).exception, ZeroDivisionError)
