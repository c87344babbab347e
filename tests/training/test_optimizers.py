"""Muon's updates against float64 singular values, and which weights AdamW updates beside it."""

import pytest
import torch
from diffad import JointUNet2DModel
from diffad_training.optimizers import build_optimizer
from tiny_training import TINY_UNET

RATE = 1e-3


@pytest.fixture(scope="module")
def updates():
    """Of each weight of a small UNet after one step of Muon without decay: shape, gradient and update."""
    torch.manual_seed(0)
    unet = JointUNet2DModel(**TINY_UNET)
    optimizer = build_optimizer("muon", unet, RATE, 0.0)
    before, gradients = {}, {}
    for name, values in unet.named_parameters():
        values.grad = torch.randn_like(values)
        before[name], gradients[name] = values.detach().clone(), values.grad.clone()
    optimizer.step()
    return {name: (gradients[name], values.detach() - before[name]) for name, values in unet.named_parameters()}


def _is_hidden(name, gradient):
    ends = ("conv_in", "conv_out", "feature_head", "time_embedding", "class_embedding")
    return gradient.ndim > 1 and not name.startswith(ends)


def test_hidden_weights_move_by_orthogonal_matrices(updates):
    hidden = {name: pair for name, pair in updates.items() if _is_hidden(name, pair[0])}
    assert len(hidden) > 4
    for name, (gradient, update) in hidden.items():
        left, values, right = torch.linalg.svd(gradient.flatten(1).double(), full_matrices=False)
        orthogonal = left @ right
        # Scaled to the root mean square of AdamW's updates, about 0.2
        expected = -RATE * 0.2 * max(orthogonal.shape) ** 0.5 * orthogonal
        agreement = torch.nn.functional.cosine_similarity(update.flatten().double(), expected.flatten(), dim=0)
        # Five Newton-Schulz steps in bfloat16 leave singular values between about 0.7 and 1.2
        assert agreement > 0.95, name
        torch.testing.assert_close(update.double().norm() / expected.norm(), torch.tensor(1.0).double(), rtol=0, atol=0.25)


def test_all_others_move_as_with_adamw_at_half_the_rate(updates):
    others = {name: pair for name, pair in updates.items() if not _is_hidden(name, pair[0])}
    assert {name.split(".")[0] for name in others} >= {"conv_in", "conv_out", "feature_head", "time_embedding"}
    for gradient, update in others.values():
        # Adam's first step has the size of the rate, against the sign of the gradient
        torch.testing.assert_close(update, -0.5 * RATE * gradient.sign(), rtol=0, atol=5e-2 * RATE)


def test_adamw_is_that_of_torch():
    torch.manual_seed(0)
    unet = JointUNet2DModel(**TINY_UNET)
    optimizer = build_optimizer("adamw", unet, RATE, 0.01)
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (RATE, 0.01)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(unet.parameters()))
