"""checkpoints.py: a resumed run equals an uninterrupted one bit for bit; only complete checkpoints of the same run count."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffad.data import DataError
from diffad.models.half_precision import SMALLEST
from diffad_training import checkpoints, train
from diffad_training.checkpoints import AVERAGED, Checkpoint, find_checkpoint, load_checkpoint
from diffad_training.run_folder import RunFolder
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tiny_training import TINY_UNET, assert_equal_models, tiny_config, unet_weights


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the trained run's folder, as it was before the model was finished."""
    folder = tmp_path / "copied"
    for name in ("checkpoint-20", "checkpoint-30"):
        shutil.copytree(trained.folder / name, folder / name)
    record = json.loads((trained.folder / "training_run.json").read_text())
    (folder / "training_run.json").write_text(json.dumps({**record, "finished": False}))
    return dataclasses.replace(trained.config, output_dir=str(folder), resume_from_checkpoint="latest", report_to=None)


def test_resumed_run_equals_an_uninterrupted_one(trained, copied, tmp_path, capsys):
    shutil.rmtree(tmp_path / "copied" / "checkpoint-30")
    train.main(copied)
    assert "checkpoint-20, the newest complete checkpoint" in capsys.readouterr().out
    assert_equal_models(tmp_path / "copied", trained.folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},  # 2 steps in an epoch: the 3rd is in the middle of one
        {"unet": {**TINY_UNET, "dropout": 0.2}, "augmentations": ["hflip", "rot90"]},
    ],
    ids=["accumulation", "dropout"],
)
def test_resumed_in_the_middle_of_an_epoch(changes, good_images, tmp_path):
    config = tiny_config(good_images, tmp_path / "whole", checkpointing_steps=3, keep_checkpoints=True, **changes)
    train.main(config)
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    train.main(dataclasses.replace(config, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=checkpoint))
    assert_equal_models(tmp_path / "resumed", tmp_path / "whole")


def test_what_is_half_written_is_passed_over_and_said(copied, tmp_path, capsys):
    folder = tmp_path / "copied"
    newest = folder / "checkpoint-30"
    optimizer = newest / "optimizer.bin"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    for name in ("checkpoint-final", "checkpoint-99-backup", "checkpoint-", "checkpoint-40.tmp"):
        (folder / name).mkdir()
    (folder / "checkpoint-50").write_text("no folder")
    (folder / "checkpoint-35").mkdir()
    found, notes = find_checkpoint("latest", RunFolder(folder))
    assert found.folder == folder / "checkpoint-20" and found.step == 20
    assert len(notes) == 3 and "checkpoint-35: no digest.json" in notes[0]
    assert "checkpoint-30/optimizer.bin: is not as it was written" in notes[1] and "checkpoint-20" in notes[2]
    with pytest.raises(DataError, match="checkpoint-30/optimizer.bin: is not as it was written"):
        find_checkpoint(str(newest), RunFolder(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 30, "fingerprint": {}}'])
def test_a_damaged_record_is_one_line(text, copied, tmp_path):
    folder = tmp_path / "copied" / "checkpoint-30"
    (folder / "run.json").write_text(text)
    digest = json.loads((folder / "digest.json").read_text())
    del digest["sha256"]["run.json"]
    (folder / "digest.json").write_text(json.dumps(digest))
    with pytest.raises(DataError, match="checkpoint-30: damaged checkpoint") as error:
        find_checkpoint(str(folder), RunFolder(folder.parent))
    assert "\n" not in str(error.value)


def test_missing_checkpoints(good_images, tmp_path, capsys):
    with pytest.raises(DataError, match="resume_from_checkpoint nowhere: no such folder"):
        train.main(tiny_config(good_images, tmp_path, resume_from_checkpoint="nowhere"))
    assert find_checkpoint("latest", RunFolder(tmp_path)) == (None, [f"no checkpoint in {tmp_path}, starting anew"])
    assert find_checkpoint(None, RunFolder(tmp_path)) == (None, [])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rate": 2e-3}, "learning_rate 0.001 there, 0.002 now"),
        ({"seed": 4}, "seed 0 there, 4 now"),
        ({"score": {"top_k": 3}}, r"score \{\} there, \{'top_k': 3\} now"),
        ({"max_train_steps": 60}, "max_train_steps 30 there, 60 now"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(changes, difference, trained, tmp_path):
    checkpoint = str(trained.folder / "checkpoint-20")
    changes = {**changes, "output_dir": str(tmp_path), "resume_from_checkpoint": checkpoint}
    with pytest.raises(DataError, match=f"checkpoint-20: belongs to another run .{difference}") as error:
        train.main(dataclasses.replace(trained.config, **changes))
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_other_data_is_refused(trained, good_images, tmp_path):
    config = dataclasses.replace(trained.config, resume_from_checkpoint=str(trained.folder / "checkpoint-20"))
    held_out = json.loads((trained.folder / "held_out.json").read_text())["held_out"]
    other = shutil.copytree(good_images, tmp_path / "other")
    config = dataclasses.replace(config, data=str(other), output_dir=str(tmp_path / "a"))
    shutil.copy(other / held_out[0], other / held_out[1])  # another picture under the same name
    with pytest.raises(DataError, match="belongs to another run .other images in the data"):
        train.main(config)
    (other / held_out[0]).unlink()
    with pytest.raises(DataError, match=f"hold.* out .*{held_out[0]}"):
        train.main(config)


def test_an_image_more_changes_the_data_and_not_what_is_held_out(trained, good_images, tmp_path):
    other = shutil.copytree(good_images, tmp_path / "other")
    shutil.copy(other / "000.png", other / "more.png")
    checkpoint = str(trained.folder / "checkpoint-20")
    changes = {"data": str(other), "output_dir": str(tmp_path / "a"), "resume_from_checkpoint": checkpoint}
    with pytest.raises(DataError, match="other images in the data"):
        train.main(dataclasses.replace(trained.config, **changes))


def test_moved_data_is_the_same_data(trained, good_images, tmp_path):
    moved = shutil.copytree(good_images, tmp_path / "moved", copy_function=shutil.copyfile)
    checkpoint = str(trained.folder / "checkpoint-30")
    changes = {"data": str(moved), "output_dir": str(tmp_path / "a"), "resume_from_checkpoint": checkpoint}
    train.main(dataclasses.replace(trained.config, **changes))
    assert_equal_models(tmp_path / "a", trained.folder)


def test_averaged_weights_are_safetensors_and_become_the_model(trained):
    averaged = load_file(trained.folder / "checkpoint-30" / AVERAGED)
    weights = unet_weights(trained.folder)
    assert averaged.keys() == weights.keys()
    for name, tensor in averaged.items():  # large ones rounded to half precision
        expected = tensor.half().float() if tensor.numel() >= SMALLEST else tensor
        assert torch.equal(weights[name].float(), expected), name


def test_averaged_weights_stay_on_the_device_they_are_on(tmp_path):
    """A GPU's part is played by the device of no memory."""
    network = torch.nn.Linear(2, 3)
    save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / AVERAGED)
    ema = EMAModel(network.to("meta").parameters())
    accelerator = SimpleNamespace(load_state=lambda folder: None)
    load_checkpoint(accelerator, ema, ["weight", "bias"], Checkpoint(tmp_path, 7, None))
    assert [tensor.device.type for tensor in ema.shadow_params] == ["meta", "meta"] and ema.optimization_step == 7
    ema.step(network.parameters())  # would fail on two devices


def test_full_disk_is_one_line_and_leaves_no_checkpoint(good_images, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "writing", lambda *args, **options: _refuse(*args, **{**options, "size": 1 << 60}))
    with pytest.raises(OSError, match=r"checkpoint-2: takes .* GiB, and .* are free on its disk") as error:
        train.main(tiny_config(good_images, tmp_path))
    assert "\n" not in str(error.value) and not list(tmp_path.glob("*checkpoint*"))


def test_full_disk_at_the_last_step_costs_no_training(good_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "writing", lambda *args, **options: _refuse(*args, **{**options, "size": 1 << 60}))
    train.main(tiny_config(good_images, tmp_path, max_train_steps=1))
    assert "no last checkpoint: " in capsys.readouterr().out and (tmp_path / "model_index.json").is_file()


def _refuse(*args, writing=checkpoints.writing, **options):
    return writing(*args, **options)
