"""Model repositories written to a folder: what they hold, and what is refused."""

import json
import re
import shutil
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline, FeatureExtractor
from diffad.hub.card import DataTerms
from diffad.hub.push import export_repo
from diffad.jobs.history import UPDATE, HistoryEntry, read_history, write_history
from diffad.models.digest import model_digest
from diffad.pipeline_saving import MOMENTS
from diffad.system.atomic import COMPLETE
from diffad_training.config import parse_config
from hub_models import change_metrics, golden_model, write_evaluation
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline


def test_an_exported_folder_loads_without_network(pipe, model, images, tmp_path, no_network):
    export_repo(model, tmp_path / "repo")
    loaded = DiffADPipeline.from_pretrained(tmp_path / "repo")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is DiffADPipeline
    assert np.array_equal(loaded(images).image_scores, pipe(images).image_scores)


def test_export_holds_what_is_needed_and_no_paths_of_the_machine(model, evaluation, tmp_path, no_network):
    repo = tmp_path / "repo"
    export_repo(model, repo, [evaluation], DataTerms(license="apache-2.0"), "me/gear")
    assert not (repo / "checkpoint-30").exists()
    settings = [
        "--config",
        str(repo / "training_config.json"),
        "--data",
        str(model.parent / "gear"),
        "--output_dir",
        str(model),
    ]
    assert parse_config(settings) == parse_config(["--config", str(model / "training_config.json")])
    for path in repo.rglob("*"):
        if path.suffix in (".json", ".md", ".py"):
            assert str(tmp_path.parent) not in path.read_text(), path
    assert (repo / "unet/diffusion_pytorch_model.safetensors").read_bytes() == (
        model / "unet/diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_an_exported_folder_can_be_exported_again(model, tmp_path):
    export_repo(model, tmp_path / "first")
    export_repo(tmp_path / "first", tmp_path / "second", repo_id="first")
    for path in (tmp_path / "first").rglob("*"):
        if path.is_file() and path.name not in ("README.md",):
            assert (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes() == path.read_bytes(), path


def test_a_loaded_pipeline_keeps_the_settings_it_was_trained_with(model, tmp_path):
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate(smooth_images(9, seed=31))
    export_repo(pipe, tmp_path / "repo")
    assert json.loads((tmp_path / "repo/training_config.json").read_text())["seed"] == 7
    assert json.loads((tmp_path / "repo/calibration/config.json").read_text())["num_calibration_images"] == 8


def test_names_of_the_held_out_images_travel_with_the_model(model, tmp_path):
    names = {"held_out": ["train/good/003.png", "train/good/017.png"]}
    source = shutil.copytree(model, tmp_path / "model")
    (source / "held_out.json").write_text(json.dumps(names))
    export_repo(source, tmp_path / "repo")
    assert json.loads((tmp_path / "repo/held_out.json").read_text()) == names
    assert "held_out.json" in (tmp_path / "repo/digest.json").read_text()


def test_evaluations_on_folders_of_one_name_keep_their_own_samples(pipe, model, tmp_path):
    colours = ("red", "green", "blue")
    evaluations = [
        write_evaluation(tmp_path / colour, pipe, data) for colour, data in zip(colours, ("my part", "my part-2", "my part"))
    ]
    for colour, folder in zip(colours, evaluations):
        Image.new("RGB", (8, 8), colour).save(folder / "sheet.png")
    export_repo(model, tmp_path / "repo", evaluations)
    places = re.findall(r"^!\[.*\]\((\S+)\)$", (tmp_path / "repo/README.md").read_text(), flags=re.MULTILINE)
    for place, folder in zip(places, evaluations, strict=True):
        assert (tmp_path / "repo" / unquote(place)).read_bytes() == (folder / "sheet.png").read_bytes()


def test_a_pipeline_that_was_never_saved_has_no_settings_of_training(pipe, model, tmp_path, monkeypatch):
    monkeypatch.chdir(model)  # with the training_config.json of another model
    export_repo(pipe, tmp_path / "repo")
    assert not (tmp_path / "repo/training_config.json").exists()
    card = (tmp_path / "repo/README.md").read_text()
    assert "The settings of the training run were not kept." in card and "Not measured." in card


def test_what_can_not_be_exported_is_refused_before_anything_is_written(pipe, model, evaluation, tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        export_repo(tmp_path, tmp_path / "repo")
    with pytest.raises(ValueError, match=r"metrics\.json: no such file"):
        export_repo(model, tmp_path / "repo", [tmp_path])
    with pytest.raises(ValueError, match="not an empty folder"):
        export_repo(model, evaluation)
    with pytest.raises(ValueError, match="not calibrated"):
        export_repo(tiny_pipeline(), tmp_path / "repo")
    broken = tmp_path / "broken"
    pipe.save_pretrained(broken)
    (broken / "gaussian/diffusion_pytorch_model.safetensors").rename(broken / "gaussian/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"gaussian: no \*\.safetensors"):
        export_repo(broken, tmp_path / "repo")
    foreign = write_evaluation(tmp_path / "foreign", pipe)
    (foreign / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="not the output of an evaluation"):
        export_repo(model, tmp_path / "repo", [foreign])
    assert not (tmp_path / "repo").exists()


def test_an_evaluation_of_other_weights_is_refused(pipe, model, evaluation, tmp_path):
    other = DiffADPipeline.from_pretrained(model)
    with torch.no_grad():
        other.unet.conv_in.bias[0] += 1e-3
    for pushed in (other, tmp_path / "other"):
        other.save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match="evaluation of gear was made with another model .*model_digest.*evaluate again"):
            export_repo(pushed, tmp_path / "repo", [evaluation])
    assert not (tmp_path / "repo").exists()
    export_repo(DiffADPipeline.from_pretrained(model), tmp_path / "repo", [evaluation])
    assert "does not say which model" not in (tmp_path / "repo/README.md").read_text()


def test_an_older_evaluation_is_compared_by_its_settings_and_the_card_says_so(pipe, model, evaluation, tmp_path):
    def as_before(metrics: dict, count: int = 18) -> None:
        del metrics["model_digest"], metrics["recipe"]["num_calibration_images"]
        metrics["recipe"]["num_normals"] = count

    assert pipe.calibration.config.num_calibration_images == 18
    export_repo(model, tmp_path / "repo", [change_metrics(evaluation, tmp_path / "older", as_before)])
    assert "evaluation of gear does not say which model it measured" in (tmp_path / "repo/README.md").read_text()
    of_other = change_metrics(evaluation, tmp_path / "of_other", lambda metrics: as_before(metrics, 40))
    with pytest.raises(ValueError, match="num_calibration_images 40, now 18"):
        export_repo(model, tmp_path / "other", [of_other])


def test_a_model_saved_by_an_older_version_is_exported_as_it_is(tmp_path):
    golden_model("categories", tmp_path / "saved")
    export_repo(tmp_path / "saved", tmp_path / "repo")
    for path in tmp_path.glob("saved/*/*"):
        assert (tmp_path / "repo" / path.relative_to(tmp_path / "saved")).read_bytes() == path.read_bytes()
    assert "36 calibration images (bright 18, dark 18)" in (tmp_path / "repo/README.md").read_text()


@pytest.mark.parametrize(
    "name, content",
    [
        ("model_index.json", "{"),
        ("model_index.json", "[" * 100_000),
        ("model_index.json", "[]"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}),
        ("model_index.json", {"_class_name": ["code", "DiffADPipeline", "more"]}),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}),
        ("model_index.json", {"unet": [None, None]}),
        ("model_index.json", {"gaussian": ["diffad", "Calibration"]}),
        ("model_index.json", {"scheduler": ["subprocess", "Popen"]}),
        ("model_index.json", {"calibration": "Calibration"}),
        ("model_index.json", {"safety_checker": ["diffusers", "UNet2DModel"]}),
        ("unet/config.json", "null"),
        ("calibration/config.json", "nothing"),
        ("scheduler/scheduler_config.json", b"\xff"),
        ("training_config.json", "[1]"),
        ("training_config.json", {"data": 1}),
        ("training_config.json", {"seed": None}),
        ("training_summary.json", {"seconds": "600"}),
    ],
)
def test_a_damaged_file_of_a_model_is_named(model, tmp_path, name, content):
    path = shutil.copytree(model, tmp_path / "model") / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        export_repo(tmp_path / "model", tmp_path / "repo")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "repo").exists()
    if name == "model_index.json":
        with pytest.raises(ValueError, match=re.escape(str(path))):
            DiffADPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("key", ["data", "recipe", "scores", "images", "operating_point", "cost"])
def test_a_damaged_evaluation_is_named(model, evaluation, tmp_path, key):
    for i, value in enumerate((None, {"ensemble": 1}, "../gear", [])):
        if key == "recipe" and isinstance(value, dict):
            continue  # a setting that the model does not have
        damaged = change_metrics(evaluation, tmp_path / str(i), lambda metrics, value=value: metrics.update({key: value}))
        with pytest.raises(ValueError, match=r"metrics\.json: not the output of an evaluation"):
            export_repo(model, tmp_path / "repo", [damaged])
    assert not (tmp_path / "repo").exists()


def test_only_the_pipelines_own_classes_are_written(pipe, tmp_path, monkeypatch):
    class OtherExtractor(FeatureExtractor):
        pass

    monkeypatch.setattr(pipe.feature_extractor, "__class__", OtherExtractor)
    changed = DiffADPipeline(**pipe.components)
    with pytest.raises(ValueError, match="feature_extractor is .*OtherExtractor.*, not the class FeatureExtractor of diffad"):
        export_repo(changed, tmp_path / "repo")


def test_the_card_of_an_exported_folder_can_be_edited_and_its_weights_can_not(model, tmp_path):
    export_repo(model, tmp_path / "repo")
    for path in (tmp_path / "repo").glob("*.md"):
        path.write_text("Edited on the Hub.")
    for path in (tmp_path / "repo").rglob("*.py"):
        path.unlink()
    assert model_digest(DiffADPipeline.from_pretrained(tmp_path / "repo").components) == model_digest(
        DiffADPipeline.from_pretrained(model).components
    )
    path = tmp_path / "repo/scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace("0.02", "0.03"))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        DiffADPipeline.from_pretrained(tmp_path / "repo")


def test_a_model_whose_saving_was_killed_at_its_end_is_exported(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    for name in ("gaussian/config.json", "digest.json"):
        (folder / COMPLETE / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(folder / COMPLETE / name)
    export_repo(folder, tmp_path / "repo")
    assert (tmp_path / "repo/gaussian/config.json").read_bytes() == (model / "gaussian/config.json").read_bytes()


def test_moments_stay_at_home_and_the_history_says_no_path(model, tmp_path):
    trained = shutil.copytree(model, tmp_path / "private" / "part")
    (trained / MOMENTS).write_bytes(b"private")
    entry = HistoryEntry(
        UPDATE, "0.2.0", "a" * 16, "b" * 16, "/data/line 3/good", ["1.png"], ["2.png"], counts={"new images fitted": 7}
    )
    write_history([entry], trained)
    export_repo(trained, tmp_path / "repository")
    assert not list((tmp_path / "repository").rglob("*moments*"))
    assert read_history(tmp_path / "repository") == [replace(entry, folder="good")]
