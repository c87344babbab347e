"""Saved components whose tensors or settings were damaged are refused, with the folder's and the tensor's name."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffad import Calibration, DiffADPipeline, FeatureExtractor, JointUNet2DModel, PadimGaussian
from diffad.models.saved_state import DIGESTS
from safetensors.torch import load_file, save_file
from tiny_pipeline import save_tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
TENSORS = [
    ("calibration", "term_mean"),
    ("calibration", "term_std"),
    ("calibration", "calibration_scores"),
    ("calibration", "calibration_maxima"),
    ("gaussian", "dims"),
    ("gaussian", "mean"),
    ("gaussian", "whitening"),
    ("residual_gaussian", "whitening"),
    ("feature_extractor", "feature_std"),
    ("feature_extractor", "network.conv_stem.weight"),
    ("unet", "conv_in.weight"),
    ("unet", "feature_head.conv.bias"),
]
CLASSES = {
    "calibration": Calibration,
    "gaussian": PadimGaussian,
    "residual_gaussian": PadimGaussian,
    "feature_extractor": FeatureExtractor,
    "unet": JointUNet2DModel,
}
CHANGES = {
    "not finite": lambda tensor: torch.full_like(tensor, torch.nan),
    "infinite": lambda tensor: torch.full_like(tensor, torch.inf),
    "negated": lambda tensor: -tensor,
    "reversed": lambda tensor: tensor.flip(0),
    "cut": lambda tensor: tensor.flatten()[:-1],
}
# What no number by itself gives away: for these the digests are there.
ONLY_DIGESTS_TELL = {
    ("term_mean", "negated"),
    ("term_mean", "reversed"),
    ("term_std", "reversed"),
    ("dims", "reversed"),
    ("mean", "negated"),
    ("mean", "reversed"),
    ("whitening", "reversed"),
    ("feature_std", "reversed"),
    ("network.conv_stem.weight", "negated"),
    ("network.conv_stem.weight", "reversed"),
    ("conv_in.weight", "negated"),
    ("conv_in.weight", "reversed"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    save_tiny_model(folder)
    return folder


@pytest.fixture
def model(sound, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def damage(component: Path, name: str, change) -> bool:
    """Changes a tensor of a component, or removes it; says whether that made a difference."""
    tensors = load_file(component / WEIGHTS)
    before = tensors.pop(name)
    if change is not None:
        tensors[name] = change(before).contiguous()
        if tensors[name].shape == before.shape and torch.equal(tensors[name], before):
            return False
    save_file(tensors, component / WEIGHTS, metadata={"format": "pt"})
    return True


@pytest.mark.parametrize("change", ["removed", *CHANGES])
@pytest.mark.parametrize(("component", "name"), TENSORS)
def test_damaged_tensor_is_refused_by_its_name(model, component, name, change):
    integers = load_file(model / component / WEIGHTS)[name].dtype == torch.int64
    if integers and change in ("not finite", "infinite"):
        pytest.skip("integers are finite")
    if not damage(model / component, name, CHANGES.get(change)):
        pytest.skip("the change makes no difference")
    load = partial(CLASSES[component].from_pretrained, model / component)
    if change in ("removed", "not finite"):  # all of which the pipeline passes on
        load = partial(DiffADPipeline.from_pretrained, model)
    with pytest.raises(ValueError) as refusal:
        load()
    assert component in str(refusal.value) and name in str(refusal.value) and "\n" not in str(refusal.value)

    # Models saved with diffad 0.1 have no digests.
    (model / component / DIGESTS).unlink()
    (model / "digest.json").unlink()
    if (name, change) in ONLY_DIGESTS_TELL:
        return
    with pytest.raises(ValueError, match=name):
        load()


def test_sound_model_loads(model):
    DiffADPipeline.from_pretrained(model)


@pytest.mark.parametrize(
    ("component", "settings", "reason"),
    [
        ("gaussian", {"grid": [100_000, 100_000]}, "has shape"),
        ("gaussian", {"feature_channels": "many"}, "not the settings of a PadimGaussian"),
        ("calibration", {"weights": {"ssim": 1.0}}, "unknown score terms"),
        ("calibration", {"num_calibration_images": 10**12}, "has shape"),
        ("feature_extractor", {"backbone": "hf-hub:someone/network"}, "names a place to download from"),
        ("unet", {"block_out_channels": [16, 17]}, "not the settings of a JointUNet2DModel|has shape"),
    ],
)
def test_impossible_settings_are_refused_before_memory_is_taken(model, component, settings, reason, no_network):
    path = model / component / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(ValueError, match=reason) as refusal:
        DiffADPipeline.from_pretrained(model)
    assert component in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 100])
def test_damaged_weights_file_is_refused_by_its_name(model, content):
    (model / "gaussian" / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=f"gaussian.{WEIGHTS}: damaged"):
        DiffADPipeline.from_pretrained(model)


def test_weights_that_need_an_unpickler_are_not_read(model):
    weights = model / "unet" / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="unet: no safetensors weights"):
        DiffADPipeline.from_pretrained(model)


def test_file_of_another_save_is_refused(model, sound):
    """A mixture of two models, each of whose components is sound."""
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.03}))
    with pytest.raises(ValueError, match="scheduler_config.json: is not as it was written"):
        DiffADPipeline.from_pretrained(model)
