"""Weights in half the space are loaded as they were saved, bit for bit."""

import torch
from diffad import JointUNet2DModel, PadimGaussian
from diffad.models.half_precision import round_to_half
from safetensors import safe_open
from tiny_pipeline import tiny_unet


def stored_types(folder) -> dict[str, torch.dtype]:
    with safe_open(folder / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118


def test_a_rounded_unet_takes_half_the_space_and_loads_the_same(tmp_path):
    unet = tiny_unet(8)
    unet.save_pretrained(tmp_path / "exact")
    assert set(stored_types(tmp_path / "exact").values()) == {torch.float32}
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    round_to_half(unet)
    for name, tensor in unet.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, before[name], rtol=2**-11, atol=2**-25)
    unet.save_pretrained(tmp_path / "rounded")
    types = stored_types(tmp_path / "rounded")
    assert all((types[name] == torch.float16) == (tensor.numel() >= 1024) for name, tensor in before.items())
    loaded = JointUNet2DModel.from_pretrained(tmp_path / "rounded")
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, unet.state_dict()[name])
    assert JointUNet2DModel.from_pretrained(tmp_path / "rounded", torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_values_beyond_half_precision_stay_and_small_buffers_too(tmp_path):
    gaussian = PadimGaussian(20, (8, 8), rank=4)
    gaussian.components.normal_()
    gaussian.precision.fill_(1 / 3)
    gaussian.mean.fill_(1e6)  # beyond float16
    round_to_half(gaussian)
    assert (gaussian.mean == 1e6).all() and (gaussian.precision == torch.tensor(1 / 3)).all()
    gaussian.save_pretrained(tmp_path)
    types = stored_types(tmp_path)
    assert types["components"] == torch.float16 and types["mean"] == types["precision"] == torch.float32
    loaded = PadimGaussian.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(loaded.buffers(), gaussian.buffers(), strict=True))
