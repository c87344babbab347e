"""Optimizers of a diffusion model, by name."""

import torch
from diffad_training.muon import Muon

# Layers whose weights are no map between hidden channels: orthogonal updates suit them badly, of the feature head most.
ENDS = ("conv_in.", "conv_out.", "feature_head.", "time_embedding.", "class_embedding.", "category_embedding.")
SHARE_OF_ENDS = 0.5  # of the learning rate, for what AdamW updates


def build_optimizer(
    name: str, model: torch.nn.Module, learning_rate: float, weight_decay: float, precision: str
) -> torch.optim.Optimizer:
    """An optimizer of all weights of a model.

    Args:
        name: `adamw`, or `muon`, which leaves first and last layers, embeddings and vectors to AdamW at half the rate.
        learning_rate, weight_decay: of the hidden layers.
        precision: of the training; where that is `bf16` Muon's products are, too, and else in float32.
    """
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    hidden, others = [], []
    for weight_name, weight in model.named_parameters():
        is_hidden = weight.ndim > 1 and not weight_name.startswith(ENDS)
        (hidden if is_hidden else others).append(weight)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Muon(hidden, others, learning_rate, SHARE_OF_ENDS * learning_rate, weight_decay, dtype)
