"""config.py: settings from presets, files and options; what is wrong is one line that names it, before training."""

import dataclasses
import typing

import pytest
from diffad_training.config import (
    AT_LEAST,
    FORMER_NAMES,
    TrainingConfig,
    load_config,
    parse_config,
    save_config,
    spell_out_switches,
    training_steps,
)
from diffad_training.conversion import SettingsError, as_list


def refused(arguments: list[str], capsys) -> str:
    """The one line that a wrong setting is answered with."""
    with pytest.raises(SystemExit) as end:
        parse_config(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing"),
        (["--data", "x", "--config", "nothing"], "no preset of that name"),
        (["--data", "x", "--max_train_steps", "many"], "max_train_steps: expected int, got 'many'"),
        (["--data", "x", "--max_train_steps", "2.5"], "max_train_steps: expected int, got 2.5"),
        (["--data", "x", "--max_train_steps", "true"], "max_train_steps: expected int, got True"),
        (["--data", "x", "--max_train_steps", "null"], "max_train_steps: expected int, got None"),
        (["--data", "x", "--learning_rate", ".nan"], "learning_rate: expected float, got nan"),
        (["--data", "x", "--unet", "[1]"], "unet: expected dict, got [1]"),
        (["--data", "x", "--levels", "[1"], "--levels [1: not a value: line 1: "),
        (["--data", "x", "--levels", "{a: 1}"], "levels: expected a list"),
        (["--data", "x", "--levels", "[1, 1]"], "levels: must name at least one feature level, and none twice"),
        (["--data", "x", "--levels", "[]"], "levels: must name at least one feature level"),
        (["--data", "x", "--levels", "[two]"], "levels: expected int, got 'two'"),
        (["--data", "x", "--augmentations", "[shear]"], "augmentations: unknown shear; there are hflip, vflip, rot90"),
        (["--data", "x", "--mixed_precision", "fp8"], "mixed_precision: unknown fp8"),
        (["--data", "x", "--prediction_type", "v_prediction"], "prediction_type: unknown v_prediction"),
        (["--data", "x", "--held_out_fraction", "1.5"], "held_out_fraction: must be below 1"),
        (["--data", "x", "--held_out_fraction", "0"], "held_out_fraction: must be above 0"),
        (["--data", "x", "--max_timestep", "1001"], "max_timestep: must be at most 1000"),
        (["--data", "x", "--resolution", "100"], "resolution: must be a multiple of feature_stride 8, got 100"),
        (["--data", "x", "--short_side", "128"], "short_side: must be at least the resolution 256"),
        (["--data", "x", "--short_side", "512"], "short_side: needs shared_gaussian"),
        (["--data", "x", "--categories", "[nut]"], "categories: must name at least two different folders"),
        (["--data", "x", "--categories", "[nut, nut]"], "categories: must name at least two different folders"),
        (["--data", "x", "--overwrite", "true", "--resume_from_checkpoint", "latest"], "give one of them"),
        (["--data", "x", "--score", "{top: 3}"], "score: has no setting top; there are timesteps, "),
        (["--data", "x", "--score", "{seed: 3}"], "score: has no setting seed (a setting of the run)"),
        (["--data", "x", "--score", "{weights: 1}"], "score: weights: expected dict"),
        (["--data", "x", "--score", "{weights: {rgb: -1}}"], "score: weights must be at least 0, and one above 0"),
        (["--data", "x", "--score", "{weights: {rgb: 0}}"], "score: weights must be at least 0, and one above 0"),
        (["--data", "x", "--score", "{weights: {rgb: .inf}}"], "score: weights: rgb: expected float, got inf"),
        (["--data", "x", "--score", "{weights: {hue: 1}}"], "score: unknown score terms ['hue']"),
        (["--data", "x", "--score", "{top_k: 0}"], "score: top_k must be at least 1"),
        (
            ["--data", "x", "--score", "{timesteps: [20, 600]}"],
            "score: timesteps [600] are never trained on; max_timestep is 500",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name_in_one_line(arguments, message, capsys):
    assert message in refused(arguments, capsys)


@pytest.mark.parametrize("name", sorted(AT_LEAST))
def test_numbers_below_their_range_are_refused(name, capsys):
    line = refused(["--data", "x", "--shared_gaussian", "true", f"--{name}", str(AT_LEAST[name] - 1)], capsys)
    assert line.startswith(f"error: {name}: must be at least {AT_LEAST[name]}, got ")


def test_every_number_has_a_range():
    bounded = {entry.name for entry in dataclasses.fields(TrainingConfig) if {int, float} & _types(entry.type)}
    below_or_above = {"held_out_fraction", "regularization", "max_grad_norm", "aspect_ratio"}
    assert bounded == set(AT_LEAST) | below_or_above


def _types(kind) -> set:
    return {kind}.union(*map(_types, typing.get_args(kind)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resolution: 64\n\tlevels: [1]\n", "line 2: a tab, which YAML does not take for indentation; use spaces"),
        ("resolution: 64\nlevels: [1\n", "line 3: "),
        ("- resolution\n", "holds no settings"),
        ("just text", "holds no settings"),
        ("resolutions: 64\nlevel: 1\n", "unknown settings level, resolutions"),
        ("resolution: 64\nposition_free: true\nshared_gaussian: true\n", "position_free is the former name of shared_gaussian"),
    ],
)
def test_wrong_files_are_refused_with_their_name_and_line(text, message, tmp_path, capsys):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    line = refused(["--config", str(path), "--data", "x"], capsys)
    assert message in line and ("former" in line or str(path) in line)


def test_a_file_in_another_encoding_is_named(tmp_path, capsys):
    (tmp_path / "latin.yaml").write_bytes("data: Prüfstücke\n".encode("latin-1"))
    assert "latin.yaml: not text in UTF-8" in refused(["--config", str(tmp_path / "latin.yaml")], capsys)


def test_one_value_is_a_list_of_one_and_names_stay_text(tmp_path):
    config = parse_config(["--data", "x", "--augmentations", "hflip", "--levels", "2", "--categories", "[01, 02]"])
    assert (config.augmentations, config.levels, config.categories) == (["hflip"], [2], ["01", "02"])
    path = tmp_path / "settings.yaml"
    path.write_text("data: 01\ncategories: [1e3, no]\nmixed_precision: no\nscore: {timesteps: 20}\ncache_dir: null\n")
    config = load_config(str(path), {})
    assert (config.data, config.categories, config.mixed_precision) == ("01", ["1e3", "no"], "no")
    assert config.score == {"timesteps": [20]} and config.cache_dir is None
    assert TrainingConfig(data="x", augmentations="vflip", resolution=128.0).augmentations == ["vflip"]
    assert as_list(None) == [] and as_list((1, 2)) == [1, 2]


def test_numbers_are_read_as_they_are_written():
    config = parse_config(["--data", "x", "--learning_rate", "1e-4", "--max_train_steps", "1e3", "--ema_decay", "0"])
    assert (config.learning_rate, config.max_train_steps, config.ema_decay) == (1e-4, 1000, 0.0)
    assert isinstance(config.max_train_steps, int) and isinstance(config.ema_decay, float)


def test_options_override_the_preset_and_survive_saving(tmp_path):
    config = parse_config(["--data", "x", "--config", "paper", "--learning_rate", "3e-4", "--levels", "[1, 2]"])
    assert (config.resolution, config.learning_rate, config.levels) == (256, 3e-4, [1, 2])
    save_config(config, tmp_path / "saved.json")
    assert parse_config(["--config", str(tmp_path / "saved.json")]) == config


@pytest.mark.parametrize(("former", "value"), [("position_free", True), ("recipe", {"top_k": 3})])
def test_former_names_work_on_with_a_warning(former, value, tmp_path):
    present = FORMER_NAMES[former]
    path = tmp_path / "former.yaml"
    path.write_text(f"data: x\n{former}: {str(value).lower() if value is True else value}\n")
    with pytest.warns(FutureWarning, match=f"{former} is now called {present}"):
        assert getattr(load_config(str(path), {}), present) == value
    with pytest.warns(FutureWarning, match=f"{former} is now called {present}"):
        assert getattr(parse_config(["--data", "x", f"--{former}", str(value)]), present) == value


def test_switches_need_no_value():
    config = parse_config(["--all_good", "--data", "x", "--compile", "false", "--overwrite"])
    assert (config.all_good, config.compile, config.overwrite, config.data) == (True, False, True, "x")
    words = ["x", "--all-good", "--seed", "3", "--keep_checkpoints", "yes", "--position-free"]
    assert spell_out_switches(words) == [*words[:2], "true", *words[2:], "true"]


@pytest.mark.parametrize(
    ("epochs", "images", "processes", "steps"), [(None, 20, 1, 1000), (200, 20, 1, 600), (200, 20, 2, 400), (200, 648, 1, 1000)]
)
def test_few_images_are_trained_on_for_fewer_steps(epochs, images, processes, steps):
    assert training_steps(TrainingConfig(max_train_epochs=epochs), images, processes) == steps


def test_errors_are_settings_errors_for_programs_too():
    with pytest.raises(SettingsError, match="max_train_steps: must be at least 1, got -2"):
        TrainingConfig(max_train_steps=-2)
    with pytest.raises(SettingsError, match="compile: expected bool, got 3"):
        TrainingConfig(compile=3)
