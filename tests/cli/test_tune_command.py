"""diffad tune, on tiny models."""

import json
import re

import numpy as np
import pytest
from cli_runner import run, save_images
from diffad import DiffADPipeline
from PIL import Image
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline


@pytest.fixture
def blind(tmp_path):
    """A model whose score does not see a chequered block, and says where its good images are."""
    good = save_images(tmp_path / "good", smooth_images(24, seed=7))
    pipe = tiny_pipeline(weights={"kl": 1.0}, verdict={"kl": 1.0}, fusion="tails", smoothing_sigma=1.0)
    pipe.calibrate(sorted(good.iterdir()))
    pipe.save_pretrained(tmp_path / "blind")
    (tmp_path / "blind/training_config.json").write_text(json.dumps({"data": str(good)}))
    held_out = [f"{i:02d}.png" for i in range(24)]
    (tmp_path / "blind/held_out.json").write_text(json.dumps({"held_out": held_out}))
    return tmp_path / "blind"


@pytest.fixture
def known(tmp_path):
    return save_test_images(tmp_path / "known", defective=5)


def config_of(model):
    return json.loads((model / "calibration/config.json").read_text())


def test_tune_changes_the_model_in_place(blind, known):
    result = run("tune", blind, known / "test/block", "--masks", known / "ground_truth/block")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "5 defective and 2 good images chose"
    (gain,) = re.findall(r"^anomaly map: .*; \+([\d.]+)% \+- [\d.]+% from [\d.]+% of AP and AUPRO, cross-validated$", lines[1])
    assert float(gain) > 10 and lines[2].startswith("verdict: ")
    assert lines[3] == f"{blind}: calibrated on 24 good images"
    assert config_of(blind)["weights"] != {"kl": 1.0} and config_of(blind)["num_calibration_images"] == 22
    assert (blind / "held_out.json").is_file() and not [path for path in blind.iterdir() if path.name.startswith(".")]
    pipe = DiffADPipeline.from_pretrained(blind)
    assert pipe(known / "test/block/0.png").masks[0].any()


def test_tune_to_another_folder_with_other_good_images(blind, known, tmp_path):
    others = save_images(tmp_path / "others", smooth_images(30, seed=8))
    before = config_of(blind)
    result = run("tune", blind, known / "test/block", "--good", others, "--output", tmp_path / "tuned")
    assert result.exit_code == 0 and f"{tmp_path / 'tuned'}: calibrated on 30 good images" in result.stdout
    assert "of separation" in result.stdout and config_of(blind) == before != config_of(tmp_path / "tuned")


def test_what_gains_nothing_leaves_the_model(blind, tmp_path):
    good = save_images(tmp_path / "no_defects", smooth_images(4, seed=9))
    before = {path: path.read_bytes() for path in blind.rglob("*") if path.is_file()}
    result = run("tune", blind, good)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == f"{blind}: stays as it is"
    assert result.stdout.count("unchanged; others bring ") == 2
    assert {path: path.read_bytes() for path in blind.rglob("*") if path.is_file()} == before


def test_errors_are_one_line(blind, known, tmp_path):
    (tmp_path / "two").mkdir()
    for i in range(2):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"two/{i}.png")
    result = run("tune", blind, tmp_path / "two")
    assert result.stderr == f"error: {tmp_path / 'two'}: 2 defective image(s), and tuning needs 3 at least\n"
    (known / "ground_truth/block/2_mask.png").unlink()
    result = run("tune", blind, known / "test/block", "--masks", known / "ground_truth/block")
    assert result.exit_code == 1 and "2.png: no mask in" in result.stderr
    (blind / "training_config.json").unlink()
    result = run("tune", blind, known / "test/block")
    assert result.exit_code == 1 and "name good images that the model was not trained on with --good" in result.stderr
    result = run("tune", "me/part", known / "test/block")
    assert result.exit_code == 1 and "me/part: is on the Hub; name good images with --good" in result.stderr
    assert len(result.stderr.splitlines()) == 1
