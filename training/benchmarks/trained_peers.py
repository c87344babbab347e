"""anomalib's peers that are trained, STFPM and SuperSimpleNet, on EfficientNet-lite0 and on a CPU.

Model, loss, optimizer and schedule are anomalib's. Lightning trains them, as it does for anomalib.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import timm
import torch
from diffad.data import Sample
from diffad_training.benchmarks import peers
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from anomalib.models import AnomalibModule

STEPS = 300
STFPM_BATCH = 8  # its loss is a sum over the batch, so that a smaller batch has the smaller learning rate that goes with it
SUPERSIMPLENET_BATCH = 4  # of which it makes 8 maps
# What anomalib adds around a model: resizing and normalisation, thresholds, metrics, pictures.
WITHOUT_EXTRAS = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)


def stfpm(samples: Sequence[Sample], seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A student of lite0's first blocks that has learned lite0's features of good images, and how it was trained."""
    from anomalib.models import Stfpm

    with without_downloads():
        module = Stfpm(backbone=peers.BACKBONE, layers=["blocks.1", "blocks.2", "blocks.4"], **WITHOUT_EXTRAS)
    peers.load_lite0(module.model.teacher_model.feature_extractor)
    return trained(module, samples, STFPM_BATCH, seed, "32-true")


def supersimplenet(samples: Sequence[Sample], seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Heads that have learned to find noise in lite0's features of good images, and how they were trained.

    The noise has anomalib's deviation of 0.015; lite0's features are larger than those of a ResNet, so they are divided by
    their deviation on the good images.
    """
    from anomalib.models import Supersimplenet

    with without_downloads():
        module = Supersimplenet(backbone=peers.BACKBONE, layers=["blocks.2", "blocks.4"], **WITHOUT_EXTRAS)
    peers.with_lite0_weights(module.model.feature_extractor)
    features = module.model.feature_extractor
    with torch.no_grad():
        seen = torch.cat([features(images) for images in peers.batches(samples[:64], "measuring features")])
    module.model.feature_extractor = Divided(features, seen.std(dim=(0, 2, 3)).mean().item())
    return trained(module, samples, SUPERSIMPLENET_BATCH, seed, "bf16-mixed")


class Divided(torch.nn.Module):
    """An extractor with its features divided by a number."""

    def __init__(self, features: torch.nn.Module, divisor: float):
        super().__init__()
        self.features, self.divisor = features, divisor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images) / self.divisor


def without_downloads() -> Any:
    """Within it timm builds every network without weights."""
    create = timm.create_model
    return patch.object(timm, "create_model", lambda *args, **settings: create(*args, **{**settings, "pretrained": False}))


def trained(
    module: "AnomalibModule", samples: Sequence[Sample], batch: int, seed: int, precision: str
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The module's network after about `STEPS` steps, in whole passes over the images, and how many there were."""
    from anomalib.data import ImageBatch
    from lightning.pytorch import Trainer

    images = torch.cat(list(peers.batches(samples, "reading")))
    loader = DataLoader(
        TensorDataset(images),
        batch_size=batch,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=lambda items: ImageBatch(
            image=torch.stack([image for (image,) in items]), gt_label=torch.zeros(len(items), dtype=torch.long)
        ),
    )
    epochs = max(1, round(STEPS / len(loader)))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", devices=1, precision=precision, max_epochs=epochs, **quiet, **module.trainer_arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader)
    return module.model.eval(), {"steps": trainer.global_step, "batch": batch, "precision": precision}
