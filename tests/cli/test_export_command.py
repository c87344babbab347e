"""diffad export, and the commands that take its folder."""

import json
import re
import shutil

import pytest
from cli_runner import run, save_images
from diffad import DiffADPipeline
from diffad.app.inspected_image import inspect_image, repair
from diffad.cli.export import _refuse_other_verdicts
from diffad.cli.loading import load_scoring
from diffad.data import Sample
from diffad.jobs.table import read_rows
from diffad.pipeline_saving import MOMENTS
from PIL import Image
from tiny_pipeline import smooth_images

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(saved_model, tmp_path_factory):
    """Of a model with moments, which are of the training images and not to be given away."""
    folder = tmp_path_factory.mktemp("export") / "exported"
    model = shutil.copytree(saved_model, folder.with_name("model"))
    (model / MOMENTS).write_bytes(b"private")
    result = run("export", model, folder)
    assert result.exit_code == 0, result.output
    assert f"wrote {folder}: model.onnx for onnxruntime" in result.stdout
    assert {path.name for path in folder.iterdir()} >= {"model.onnx", "detector.json", "detector.py", "requirements.txt"}
    return folder


def test_predictions_and_report_are_the_pipelines(exported, saved_model, tmp_path):
    images = smooth_images(3, seed=60, size=(50, 40))
    images[1].paste((255, 0, 0), (5, 5, 25, 25))
    folder = save_images(tmp_path / "new", images)
    for name, model in (("mine", exported), ("theirs", saved_model)):
        page = ["--report", tmp_path / f"{name}.html"]
        result = run("predict", folder, "--model", model, "--output", tmp_path / f"{name}.jsonl", *page)
        assert result.exit_code == 0, result.output
    mine, theirs = (list(read_rows(tmp_path / f"{name}.jsonl")) for name in ("mine", "theirs"))
    for row, expected in zip(mine, theirs, strict=True):
        assert row.pop("score") == pytest.approx(expected.pop("score"), abs=1e-4)
        assert row == expected
    assert [row["label"] for row in mine][1] == "defective"
    shown = run("info", exported).stdout
    assert "model.onnx, for onnxruntime, fp32 weights" in shown and "calibrated on 19 images" in shown
    page = (tmp_path / "mine.html").read_text()
    assert "an exported model only scores" in page and "an exported model" not in (tmp_path / "theirs.html").read_text()


def test_moments_are_not_exported(exported):
    assert not list(exported.rglob("*moments*"))


def test_thresholds_are_set_anew_where_the_model_lies(exported, tmp_path):
    copy, good = shutil.copytree(exported, tmp_path / "copy"), save_images(tmp_path / "good", smooth_images(25, seed=70))
    result = run("calibrate", copy, good, "--false-alarm-rate", "0.1")
    assert result.exit_code == 0, result.output
    assert "calibrated in fp32 on 25 good images" in result.stdout and "false-alarm rate of 10.0%" in result.stdout
    assert len(json.loads((copy / "detector.json").read_text())["calibrations"]["fp32"][0]["scores"]) == 25
    for arguments, message in (
        (["--roi", tmp_path / "roi.png"], "--roi: an exported model is calibrated where it lies"),
        (["--false-alarm-rate", "0.01"], "0.01"),
        (["--precision", "bf16"], "computes in fp32"),
    ):
        refused = run("calibrate", copy, good, *arguments)
        assert refused.exit_code != 0 and message in " ".join(refused.stderr.split())


def test_what_an_exported_model_can_not_do_is_refused_in_one_sentence(exported, saved_model, parts, tmp_path):
    for arguments in (
        ["evaluate", parts, "--model", exported, "--output", tmp_path / "evaluation"],
        ["reconstruct", parts, "--model", exported, "--output", tmp_path / "repaired"],
        ["export", exported, tmp_path / "again"],
    ):
        result = run(*arguments)
        assert result.exit_code != 0 and "is an exported model" in " ".join(result.stderr.split()), arguments
    new = ["predict", parts, "--output", tmp_path / "rows.csv", "--model"]
    for arguments, message in (
        ([*new, exported, "--profile", "fast"], "has the profile that it was exported with"),
        ([*new, saved_model, "--precision", "bf16"], "is not an exported model"),
        (["export", saved_model, tmp_path / "x", "--format", "tflite"], "format must be onnx or openvino"),
        (["export", saved_model, tmp_path / "x", "--precision", "fp8"], "--precision must be fp32 or int8"),
        (["export", saved_model, tmp_path / "x", "--precision", "int8"], "needs good images"),
    ):
        result = run(*arguments)
        assert result.exit_code != 0 and message in " ".join(result.stderr.split()), arguments


def test_the_app_inspects_with_it_and_says_that_it_does_not_repair(exported, saved_model):
    image = Image.new("RGB", (40, 30), (200, 10, 10))
    mine = inspect_image(load_scoring(str(exported)), image, 0.1)
    theirs = inspect_image(DiffADPipeline.from_pretrained(saved_model), image, 0.1)
    assert mine.score == pytest.approx(theirs.score, rel=1e-4) and mine.p_value == theirs.p_value
    with pytest.raises(ValueError, match="does not repair them"):
        repair(load_scoring(str(exported)), image, 0.1)


def test_an_export_in_8_bits_that_judges_otherwise_is_removed(exported, saved_model, tmp_path, capsys):
    samples = [Sample(str(i), lambda image=image: image) for i, image in enumerate(smooth_images(4, seed=60))]
    pipe, same = DiffADPipeline.from_pretrained(saved_model), shutil.copytree(exported, tmp_path / "same")
    _refuse_other_verdicts(pipe, same, samples)
    assert re.match(r"0 of \d\d+ verdicts differ", capsys.readouterr().out) and same.is_dir()
    other = shutil.copytree(exported, tmp_path / "other")
    description = json.loads((other / "detector.json").read_text())
    for scores in description["calibrations"]["fp32"]:
        scores["scores"] = [score - 1e3 for score in scores["scores"]]  # all parts are defective
    (other / "detector.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"int8 would change \d+ of \d+ verdicts; .* was removed, export in fp32"):
        _refuse_other_verdicts(pipe, other, samples)
    assert not other.exists()
