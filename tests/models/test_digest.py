"""The digest of a model: the same wherever it lies and however it was loaded, another one for any other model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.models.digest import model_digest
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from tiny_pipeline import category_images, tiny_pipeline

GOLDEN = Path(__file__).parents[1] / "golden/models"


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(("bright", "dark"), timesteps=(20, 201), smoothing_sigma=1.0)
    images = [image for label in (0, 1) for image in category_images(4, 4, label)]
    pipe.calibrate(images, categories=[0] * 4 + [1] * 4)
    return pipe


@pytest.fixture
def saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_saving_and_loading_keeps_it(pipe, saved, tmp_path):
    digest = model_digest(pipe.components)
    assert len(digest) == 16 and int(digest, 16)
    loaded = DiffADPipeline.from_pretrained(saved)
    assert model_digest(loaded.components) == digest
    loaded.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    shutil.rmtree(saved)
    assert model_digest(DiffADPipeline.from_pretrained(tmp_path / "again").components) == digest


def test_the_memory_format_and_a_wider_type_of_the_same_values_keep_it(pipe, saved):
    loaded = DiffADPipeline.from_pretrained(saved)
    loaded.unet.to(memory_format=torch.channels_last)
    assert model_digest(loaded.components) == model_digest(pipe.components)
    loaded.unet.to(torch.bfloat16)
    rounded = model_digest(loaded.components)
    loaded.unet.to(torch.float32)
    assert model_digest(loaded.components) == rounded != model_digest(pipe.components)


def test_a_model_saved_by_an_older_version_has_the_digest_of_itself_saved_anew(tmp_path):
    loaded = DiffADPipeline.from_pretrained(shutil.copytree(GOLDEN / "one", tmp_path / "old"))
    loaded.save_pretrained(tmp_path / "new")
    assert "num_normals" in (tmp_path / "old/calibration/config.json").read_text()
    assert "num_normals" not in (tmp_path / "new/calibration/config.json").read_text()
    assert model_digest(DiffADPipeline.from_pretrained(tmp_path / "new").components) == model_digest(loaded.components)


def test_any_other_weight_buffer_setting_or_component_changes_it(pipe, saved):
    digests = {model_digest(pipe.components)}
    for i, change in enumerate(
        (
            lambda loaded: loaded.unet.conv_in.bias.data[0].add_(1),
            lambda loaded: loaded.feature_extractor.feature_mean[0].add_(1e-3),
            lambda loaded: loaded.residual_gaussian.whitening[0].add_(1e-3),
            lambda loaded: loaded.calibration.calibration_scores[-1].add_(1e-3),
            lambda loaded: loaded.calibration.register_to_config(seed=1),
            lambda loaded: loaded.calibration.set_roi(torch.ones(32, 32, dtype=torch.bool)),
            lambda loaded: loaded.discriminant.register_to_config(class_names=("dark", "bright")),
            lambda loaded: loaded.register_modules(scheduler=DDPMScheduler(variance_type="learned_range")),
            lambda loaded: loaded.register_modules(discriminant=None),
            lambda loaded: loaded.register_modules(gaussian=loaded.residual_gaussian, residual_gaussian=loaded.gaussian),
        )
    ):
        loaded = DiffADPipeline.from_pretrained(saved)
        with torch.no_grad():
            change(loaded)
        digests.add(model_digest(loaded.components))
        assert len(digests) == i + 2


class Settings(ConfigMixin):
    """A component without weights."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, names: dict | None = None, sizes: tuple[int, ...] = (1, 2)):
        pass


def with_one_setting_more() -> ConfigMixin:
    class Settings(ConfigMixin):
        config_name = "config.json"

        @register_to_config
        def __init__(self, names: dict | None = None, sizes: tuple[int, ...] = (1, 2), new: float = 0.5):
            pass

    return Settings({2: "a", 10: "b"})


def test_settings_count_by_their_saved_value_and_where_they_differ_from_the_default():
    def digest(component) -> str:
        return model_digest({"part": component})

    assert digest(Settings({2: "a", 10: "b"})) == digest(Settings({"10": "b", "2": "a"}, sizes=[1, 2]))
    assert digest(Settings({2: "a", 10: "b"})) == digest(with_one_setting_more())
    assert digest(Settings()) != digest(Settings(sizes=(2, 1)))
    assert model_digest({"part": Settings()}) != model_digest({"other": Settings()})
    assert model_digest({"part": Settings(), "missing": None}) == model_digest({"part": Settings()})


def test_tensors_of_one_content_and_other_shapes_differ():
    class Buffer(torch.nn.Module, ConfigMixin):
        config_name = "config.json"

        @register_to_config
        def __init__(self):
            super().__init__()

    digests = set()
    for values in (np.zeros(6), np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(0), np.array(0), np.zeros(6, dtype=bool)):
        component = Buffer()
        component.register_buffer("values", torch.from_numpy(values))
        digests.add(model_digest({"part": component}))
    assert len(digests) == 6
