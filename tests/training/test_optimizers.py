"""Muon against timm's and float64 singular values, and which weights AdamW updates beside it."""

import copy
import functools
import importlib

import pytest
import timm.optim
import torch
from diffad import FeatureDenoiser, JointUNet2DModel
from diffad_training.muon import COEFFICIENTS, Muon, orthogonalized
from diffad_training.optimizers import build_optimizer
from tiny_training import TINY_UNET

RATE, DECAY = 1e-3, 0.1


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 5)])
def test_singular_values_become_about_one_and_their_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    actual = orthogonalized(matrix, torch.float32).double()
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    assert ((values > 0.8) & (values < 1.2)).all()
    torch.testing.assert_close(actual, left @ values.diag() @ right, rtol=0, atol=1e-4)


def test_nothing_moves_where_gradients_are_zero():
    assert torch.equal(orthogonalized(torch.zeros(3, 4), torch.float32), torch.zeros(3, 4))


def _stepped(build, gradients):
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, values.numel()).view_as(values)) for values in gradients[0]]
    optimizer = build(weights)
    for step in gradients:
        for weight, values in zip(weights, step, strict=True):
            weight.grad = values.clone()
        optimizer.step()
        assert all(torch.equal(weight.grad, values) for weight, values in zip(weights, step, strict=True))
    return weights


@pytest.mark.skipif(not hasattr(timm.optim, "Muon"), reason="timm below 1.0.21 has no Muon")
def test_steps_are_those_of_timm(monkeypatch):
    module = importlib.import_module("timm.optim.muon")
    in_float32 = functools.partial(module.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(module, "zeropower_via_newtonschulz", in_float32)
    generator = torch.Generator().manual_seed(0)
    shapes = (8, 4, 3, 3), (16, 6), (5, 7), (7,)
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(4)]
    ours = _stepped(lambda w: Muon(w[:2], w[2:], RATE, 0.3 * RATE, DECAY, torch.float32), gradients)

    def timms(weights):
        groups = [{"params": weights[:2], "use_muon": True}, {"params": weights[2:], "use_muon": False, "lr": 0.3 * RATE}]
        return timm.optim.Muon(groups, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.999))

    for weight, expected in zip(ours, _stepped(timms, gradients), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-3 * RATE)


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    generator = torch.Generator().manual_seed(0)
    gradients = [[torch.randn(4, 6, generator=generator), torch.randn(6, generator=generator)] for _ in range(3)]

    def build(weights):
        return Muon(weights[:1], weights[1:], RATE, RATE, DECAY, torch.float32)

    expected = _stepped(build, gradients)
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, values.numel()).view_as(values)) for values in gradients[0]]
    optimizer = build(weights)
    for step in gradients:
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = build(weights)
        optimizer.load_state_dict(state)
        for weight, values in zip(weights, step, strict=True):
            weight.grad = values
        optimizer.step()
    assert all(map(torch.equal, weights, expected))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("no", torch.float32), ("fp16", torch.float32)])
def test_muon_is_for_weights_between_hidden_layers(precision, dtype):
    unet = JointUNet2DModel(**TINY_UNET, num_class_embeds=2)
    optimizer = build_optimizer("muon", unet, RATE, DECAY, precision)
    names = {id(weight): name for name, weight in unet.named_parameters()}
    hidden, others = ([names[id(weight)] for weight in group["params"]] for group in optimizer.param_groups)
    assert sorted(hidden + others) == sorted(names.values()) and optimizer.dtype == dtype
    assert "down_blocks.0.resnets.0.conv1.weight" in hidden and all(name.endswith("weight") for name in hidden)
    ends = {"conv_in", "conv_out", "feature_head", "time_embedding", "class_embedding"}
    assert ends.isdisjoint(name.split(".")[0] for name in hidden) and ends <= {name.split(".")[0] for name in others}
    assert [group["lr"] for group in optimizer.param_groups] == [RATE, RATE / 2]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {DECAY}


def test_ends_of_the_feature_denoiser_are_left_to_adamw():
    denoiser = FeatureDenoiser(3, (4, 4), width=16, num_blocks=1, num_classes=2)
    optimizer = build_optimizer("muon", denoiser, RATE, DECAY, "no")
    hidden = {id(weight) for weight in optimizer.param_groups[0]["params"]}
    found = {name.split(".")[0] for name, weight in denoiser.named_parameters() if id(weight) in hidden}
    assert found == {"resnets"}


def test_adamw_is_that_of_torch():
    unet = JointUNet2DModel(**TINY_UNET)
    optimizer = build_optimizer("adamw", unet, RATE, DECAY, "no")
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (RATE, DECAY)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(unet.parameters()))
