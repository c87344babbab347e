"""Digests that tell whether two runs used the same model and the same images."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline


def model_digest(pipe: DiffusionPipeline) -> str:
    """Of every component's settings and weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if component is None:  # the discriminant of a model of one category
            continue
        settings = {key: value for key, value in component.config.items() if not key.startswith("_")}
        digest.update(json.dumps([name, settings], sort_keys=True).encode())
        if isinstance(component, torch.nn.Module):
            for key, tensor in component.state_dict().items():
                digest.update(key.encode())
                digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def files_digest(folder: Path, names: Sequence[str]) -> str:
    """Of the names, sizes and modification times of files, without reading them."""
    digest = hashlib.sha256()
    for name in names:
        status = os.stat(folder / name)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
