"""Weights in half the space: rounded once, before anything is measured with them, and stored without loss."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SMALLEST = 1024  # elements of a tensor that is worth it


@torch.no_grad()
def round_to_half(module: torch.nn.Module) -> None:
    """Rounds the large float32 tensors of a module to what float16 holds; they stay float32.

    Done before anything of good images is measured, so that the model on the disk is the one that was calibrated. A tensor with
    values beyond float16's range stays as it is.
    """
    for tensor in module.state_dict().values():  # which shares their memory
        if tensor.dtype == torch.float32 and tensor.numel() >= SMALLEST:
            rounded = tensor.half().float()
            if rounded.isfinite().all():
                tensor.copy_(rounded)


def store_in_half(path: Path) -> None:
    """Rewrites a safetensors file with those float32 tensors in float16 whose every value it holds exactly."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kept = {name: _exact_half(tensor) for name, tensor in tensors.items()}
    if any(kept[name].dtype != tensors[name].dtype for name in tensors):
        save_file(kept, path, metadata)


def _exact_half(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype != torch.float32 or tensor.numel() < SMALLEST:
        return tensor
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor
