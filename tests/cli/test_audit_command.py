"""diffad audit, and training without what it lists."""

import json
import re

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from cli_runner import run, save_images
from PIL import Image
from tiny_pipeline import smooth_images
from tiny_training import TINY_UNET


@pytest.fixture(autouse=True)
def new_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def good(tmp_path):
    """Good images of which two are the same, and one is red."""
    images = [Image.blend(image, smooth_images(1, seed=9)[0], 0.7) for image in smooth_images(30, seed=0)]
    images[4] = Image.fromarray(np.full_like(np.array(images[4]), (255, 0, 0)))
    images[20] = images[10]
    return save_images(tmp_path / "good", images)


def settings(tmp_path):
    values = {"resolution": 32, "levels": [2], "unet": TINY_UNET, "max_train_steps": 1, "profiles": ["balanced"]}
    values |= {"choose_map": False, "held_out_fraction": 0.25, "mixed_precision": "no", "report_to": None}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "tiny.yaml"


def test_what_is_listed_is_not_trained_on(good, tmp_path):
    audited = run("audit", good, "--config", settings(tmp_path), "--output", tmp_path / "audit")
    assert audited.exit_code == 0, audited.stderr
    assert re.search(r"outliers: +\d+, such as 04\.png", audited.stdout)
    assert re.search(r"duplicates: +1, such as 20\.png", audited.stdout) and re.search(r"leaks: +0", audited.stdout)
    page = (tmp_path / "audit/audit.html").read_text()
    assert "04.png" in page and "tabindex" in page and not re.search(r"(src|href)=\"(?!data:)", page)
    options = ["--config", settings(tmp_path), "--output", tmp_path / "model", "--exclude", tmp_path / "audit/audit.csv"]
    trained = run("train", good, *options)
    assert trained.exit_code == 0, trained.stderr
    summary = json.loads((tmp_path / "model/training_summary.json").read_text())
    assert {"04.png", "20.png"} <= set(summary["excluded"])
    held_out = json.loads((tmp_path / "model/held_out.json").read_text())["held_out"]
    assert not set(held_out) & set(summary["excluded"]) and "unlike all others" not in trained.stdout


@pytest.mark.parametrize("robust", [False, True])
def test_training_says_that_an_image_is_unlike_the_others(good, tmp_path, robust):
    options = ["--config", settings(tmp_path), "--output", tmp_path / "model", *["--robust"] * robust]
    trained = run("train", good, *options)
    assert trained.exit_code == 0, trained.stderr
    summary = json.loads((tmp_path / "model/training_summary.json").read_text())
    assert "04.png" in summary["outliers"] and summary["excluded"] == []
    said = "are unlike all others and left out (robust): 04.png" if robust else "are unlike all others: 04.png"
    assert said in " ".join(trained.stdout.split())


def test_a_list_of_other_data_is_refused_before_training(good, tmp_path):
    (tmp_path / "list.txt").write_text("other.png\n")
    trained = run("train", good, "--config", settings(tmp_path), "--output", tmp_path / "m", "--exclude", tmp_path / "list.txt")
    assert trained.exit_code == 1 and "lists other.png, which is not among the good images" in trained.stderr
    assert not (tmp_path / "m").exists()
