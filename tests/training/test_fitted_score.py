"""What training fits after the UNet: a chosen map and the scales that it needs, or the paper's score and none of them."""

import json

import pytest
from diffad import DiffADPipeline
from diffad.scoring.config import SCALE_TERMS
from diffad_training import train
from diffad_training.conversion import SettingsError
from diffad_training.map_choice import DEFECTS, candidates, described
from PIL import Image
from tiny_training import COMPLETE, tiny_config

VERDICT = {"residual", "coarse", "detail", "coarse_detail"}


def test_summary_says_how_the_map_was_chosen(trained):
    choice = json.loads((trained.folder / "training_summary.json").read_text())["map_choice"]
    tried = candidates(SCALE_TERMS)
    assert set(choice["average_precision"]) == set(map(described, tried))
    assert all(0 < value <= 1 for value in choice["average_precision"].values())
    # One of the three held-out images gives the statistics.
    assert choice["good_images"] == 1 and 0 < choice["synthetic_defects"] <= DEFECTS
    default = choice["average_precision"][described(tried[0])]
    assert choice["margin"] == pytest.approx(choice["average_precision"][choice["chosen"]] - default, abs=2e-4)
    assert f"anomaly map: {choice['chosen']}\n" in trained.printed
    with Image.open(trained.folder / "synthetic_defects.png") as sheet:
        assert min(sheet.size) > 32


def test_model_has_the_chosen_map_and_only_the_scales_it_needs(trained):
    chosen = json.loads((trained.folder / "training_summary.json").read_text())["map_choice"]["chosen"]
    pipe = DiffADPipeline.from_pretrained(trained.folder)
    score = pipe.calibration.score_config
    assert dict(score.weights) == dict.fromkeys(chosen.split(" + "), 1.0)
    assert set(score.verdict) == VERDICT
    needed = {*score.weights, *VERDICT} - {"rgb", "residual"}
    assert set(score.scales) == needed
    needed -= {"feature_residual"}
    # The profile `best` adds the nearest good images.
    assert set(pipe.multiscale.config.scales) == {*needed, "neighbors"}
    assert {name for name, _ in pipe.multiscale.named_children()} == {*needed, "neighbors"}


def test_papers_score_needs_no_further_scale_and_no_choice(good_images, tmp_path):
    config = tiny_config(good_images, tmp_path, max_train_steps=1, checkpointing_steps=1, validation_steps=1, score="paper")
    assert config.chooses_map is False
    train.main(config)
    pipe = DiffADPipeline.from_pretrained(tmp_path)
    assert pipe.multiscale is None and not (tmp_path / "multiscale").exists()
    assert pipe.profile_names == ["balanced"] and not (tmp_path / "profiles").exists()
    assert "map_choice" not in json.loads((tmp_path / "training_summary.json").read_text())
    assert not (tmp_path / "synthetic_defects.png").exists()
    score = pipe.calibration.score_config
    assert dict(score.weights) == {"kl": 0.5, "feature": 0.5} and tuple(score.standardized_terms) == ("kl",)
    assert score.per_image and score.fusion == "sum" and not score.verdict and not score.scales
    assert score.smoothing_sigma == 0 and score.top_k == 64
    # No image is needed for statistics.
    assert pipe.calibration.config.num_calibration_images == 3


@pytest.mark.parametrize("changes", [{"score": "paper"}, {"score": {"top_k": 2}}, {"short_side": 48, "shared_gaussian": True}])
def test_map_is_chosen_for_the_default_score_of_whole_images_alone(changes, tmp_path):
    assert tiny_config(tmp_path, tmp_path, **COMPLETE).chooses_map is True
    assert tiny_config(tmp_path, tmp_path, **COMPLETE, **changes).chooses_map is False
    with pytest.raises(SettingsError, match=r"^choose_map: .*leave score and short_side"):
        tiny_config(tmp_path, tmp_path, **changes, choose_map=True)


def test_default_map_without_a_choice(good_images, tmp_path):
    one_step = {"max_train_steps": 1, "checkpointing_steps": 1, "validation_steps": 1}
    train.main(tiny_config(good_images, tmp_path, **one_step, choose_map=False, profiles=["fast"]))
    pipe = DiffADPipeline.from_pretrained(tmp_path)
    assert dict(pipe.calibration.score_config.weights) == {"rgb": 1, "residual": 1, "detail": 1}
    assert set(pipe.multiscale.config.scales) == {"coarse", "detail", "coarse_detail"}
    assert "map_choice" not in json.loads((tmp_path / "training_summary.json").read_text())
    assert pipe.profile_names == ["balanced", "fast"]


def test_every_profile_is_calibrated_on_the_held_out_images(trained):
    pipe = DiffADPipeline.from_pretrained(trained.folder)
    assert pipe.profile_names == ["balanced", "fast", "best", "gaussian"]
    best, balanced = (pipe.calibration_of(name).config.weights for name in ("best", "balanced"))
    assert best == {**balanced, "neighbors": 1.0}
    for name in pipe.profile_names:
        assert pipe.calibration_of(name).config.num_calibration_images == 2


def test_tiled_models_have_the_profiles_that_need_no_enlarged_image_and_keep_tiles_for_repair(good_images, tmp_path):
    one_step = {"max_train_steps": 1, "checkpointing_steps": 1, "validation_steps": 1}
    train.main(tiny_config(good_images, tmp_path, **one_step, short_side=48, shared_gaussian=True, **COMPLETE))
    pipe = DiffADPipeline.from_pretrained(tmp_path)
    assert pipe.profile_names == ["balanced", "fast"] and pipe.multiscale.config.scales == ["coarse"]
    assert pipe.references.images.shape == (40, 3, 32, 32)  # four tiles of each of ten images, of 48 at most
