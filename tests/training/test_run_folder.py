"""run_folder.py: one run in a folder, and nothing of another run or of a user's is taken, mixed or cleared unasked."""

import dataclasses
import json
import shutil

import pytest
from diffad import DiffADPipeline
from diffad.data import DataError
from diffad_training import train
from diffad_training.run_folder import LOCAL_SETTINGS, LOCK, RECORD, Fingerprint, RunFolder
from filelock import FileLock
from tiny_training import assert_equal_models, tiny_config


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of the trained run's folder, and its settings there; with a file of the user's."""
    folder = shutil.copytree(trained.folder, tmp_path / "finished")
    (folder / "notes.txt").write_text("a user's")
    return dataclasses.replace(trained.config, output_dir=str(folder), report_to=None)


def state(folder) -> dict[str, int]:
    """Every file below the folder with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            "holds this run; --resume_from_checkpoint latest goes on with it, or name another --output_dir, or --over",
        ),
        ({"seed": 5}, "holds another run .seed 0 there, 5 now.; name another --output_dir, or --overwrite it"),
        ({"seed": 5, "resume_from_checkpoint": "latest"}, "holds another run .seed 0 there, 5 now."),
    ],
)
def test_a_folder_that_holds_a_run_is_refused_untouched(changes, message, finished, tmp_path):
    before = state(tmp_path / "finished")
    with pytest.raises(DataError, match=message) as error:
        train.main(dataclasses.replace(finished, **changes))
    assert "\n" not in str(error.value) and state(tmp_path / "finished") == before


@pytest.mark.parametrize("left", ["model_index.json", "training_config.json", "checkpoint-7"])
def test_a_model_or_checkpoint_without_a_record_is_refused(left, good_images, tmp_path):
    (tmp_path / left).mkdir() if left.startswith("checkpoint") else (tmp_path / left).write_text("{}")
    with pytest.raises(DataError, match="holds a model or checkpoints without a record of their run; name another"):
        train.main(tiny_config(good_images, tmp_path, resume_from_checkpoint="latest"))


def test_a_damaged_record_is_one_line(good_images, tmp_path):
    (tmp_path / RECORD).write_text('{"finished": true}')
    with pytest.raises(DataError, match=f"{RECORD}: damaged"):
        train.main(tiny_config(good_images, tmp_path))


def test_a_finished_run_is_not_trained_again_and_its_checkpoints_go(finished, tmp_path, capsys):
    folder = tmp_path / "finished"
    model = {path: time for path, time in state(folder).items() if "checkpoint" not in path}
    changes = {"resume_from_checkpoint": "latest", "keep_checkpoints": False}
    train.main(dataclasses.replace(finished, **changes))
    assert "this run is finished" in capsys.readouterr().out
    assert state(folder) == model


def test_overwriting_replaces_the_run_and_leaves_what_is_the_users(finished, good_images, tmp_path):
    folder = tmp_path / "finished"
    changes = {"max_train_steps": 2, "overwrite": True, "keep_checkpoints": True, "seed": 5}
    train.main(dataclasses.replace(finished, **changes))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (folder / "notes.txt").read_text() == "a user's"
    assert json.loads((folder / "training_config.json").read_text())["seed"] == 5
    alone = tmp_path / "alone"
    train.main(dataclasses.replace(finished, **{**changes, "overwrite": False, "output_dir": str(alone)}))
    assert_equal_models(folder, alone)


def test_the_old_model_stays_until_the_new_one_is_complete(finished, trained, tmp_path, monkeypatch):
    changes = {"max_train_steps": 2, "overwrite": True, "seed": 5}
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "fit_pipeline", lambda *args: 1 / 0)
        train.main(dataclasses.replace(finished, **changes))
    folder = tmp_path / "finished"
    assert_equal_models(folder, trained.folder)
    assert DiffADPipeline.from_pretrained(folder).calibration.is_fitted
    assert (folder / "held_out.json").read_bytes() == (trained.folder / "held_out.json").read_bytes()
    # What was begun is the run that the folder belongs to now: it is not taken for the finished one.
    changes = {**changes, "overwrite": False, "resume_from_checkpoint": "latest"}
    train.main(dataclasses.replace(finished, **changes))
    assert json.loads((folder / "training_config.json").read_text())["seed"] == 5


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(good_images, tmp_path, monkeypatch):
    config = tiny_config(good_images, tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_loss", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(config)
    train.main(dataclasses.replace(config, seed=3))
    assert DiffADPipeline.from_pretrained(tmp_path / "model").calibration.is_fitted


def test_two_trainings_in_one_folder_are_one_too_many(good_images, tmp_path):
    with FileLock(tmp_path / LOCK), pytest.raises(DataError, match="another training is running in it"):
        train.main(tiny_config(good_images, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_another_runs_checkpoints_are_no_business_of_a_new_run_elsewhere(trained, good_images, tmp_path):
    before = state(trained.folder)
    train.main(tiny_config(good_images, tmp_path, max_train_steps=2))
    assert state(trained.folder) == before


def test_differences_are_told_before_the_data_is_read_where_they_can_be():
    config = tiny_config("data", "out")
    kept = Fingerprint.of_settings(config, 2)
    now = Fingerprint.of_settings(dataclasses.replace(config, data="elsewhere", output_dir="other", num_workers=3), 2)
    assert kept.difference(now) is None
    assert kept.difference_of_settings(Fingerprint.of_settings(config, 1)) == "2 process(es) there, 1 now"
    held_out = dataclasses.replace(kept, held_out=["a", "b"])
    assert held_out.difference(dataclasses.replace(kept, held_out=["b"])) == "a held out there only"
    assert held_out.difference(dataclasses.replace(held_out, images="x")) == "other images in the data"
    assert Fingerprint.from_dict(json.loads(json.dumps(held_out.to_dict()))) == held_out


def test_settings_of_other_releases_are_compared_by_their_present_names_and_defaults():
    kept = Fingerprint.of_settings(tiny_config("data", "out"), 1).to_dict()
    kept["settings"]["position_free"] = kept["settings"].pop("shared_gaussian")
    del kept["settings"]["roi"]
    assert Fingerprint.from_dict(kept).difference(Fingerprint.of_settings(tiny_config("data", "out"), 1)) is None


def test_local_settings_are_settings():
    assert set(train.TrainingConfig.__dataclass_fields__) > LOCAL_SETTINGS
    assert RunFolder(train.Path("nowhere")).checkpoints() == []
