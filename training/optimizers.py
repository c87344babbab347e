"""Optimizers of the UNet, by name."""

import torch
from timm.optim import Muon

# Layers whose weights are no map between hidden channels: orthogonal updates suit them badly, of the feature head most.
ENDS = ("conv_in.", "conv_out.", "feature_head.", "time_embedding.", "class_embedding.")
SHARE_OF_ENDS = 0.5  # of the learning rate, for what AdamW updates


def build_optimizer(name: str, unet: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer of all weights of a UNet.

    Args:
        name: `adamw`, or `muon`, whose updates of a weight matrix, made orthogonal, have the root mean
            square of AdamW's (Jordan et al. 2024; Liu et al. 2025).
        learning_rate, weight_decay: of the hidden layers.
    """
    if name == "adamw":
        return torch.optim.AdamW(unet.parameters(), lr=learning_rate, weight_decay=weight_decay)
    hidden, others = [], []  # weights between hidden layers, each a matrix of its output channels; all else
    for name, values in unet.named_parameters():
        is_hidden = values.ndim > 1 and not name.startswith(ENDS)
        (hidden if is_hidden else others).append(values)
    groups = [
        {"params": hidden, "use_muon": True},
        {"params": others, "use_muon": False, "lr": SHARE_OF_ENDS * learning_rate},
    ]
    return Muon(groups, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.999))
