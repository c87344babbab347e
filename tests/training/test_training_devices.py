"""What training asks of a device, tested without one: precision, no waiting in a step, copies beside the computation."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffad.diffusion.denoiser import Denoiser
from diffad.jobs.model_summary import is_unfinished
from diffad_training import train
from diffad_training.batch_losses import training_loss
from diffad_training.components import build_extractor, build_scheduler, build_unet, choose_precision
from diffad_training.config import TrainingConfig
from diffad_training.progress import FiniteLoss
from diffusers.training_utils import EMAModel
from tiny_training import tiny_config

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ({"cuda": "Ampere"}, "bf16"),
        ({"cuda": "Turing"}, "fp16"),
        ({"cpu": "avx512_bf16"}, "bf16"),
        ({"cpu": "amx"}, "bf16"),
        ({"cpu": "plain"}, "no"),
    ],
)
def test_bf16_only_where_the_hardware_has_it(device, precision, monkeypatch):
    gpu, cpu = device.get("cuda"), device.get("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    # Older GPUs claim it by default, because they emulate it.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu == "Ampere" or including_emulation
    )
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu == "avx512_bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: cpu == "amx")
    assert choose_precision(TrainingConfig(data="x")) == precision
    assert choose_precision(TrainingConfig(data="x", mixed_precision="fp16")) == "fp16"


@pytest.mark.parametrize("changes", [{}, {"augmentations": ["hflip", "vflip", "rot90"]}, {"categories": ["a", "b"]}])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_no_step_waits_for_the_device(changes, prediction_type):
    """On the device of no memory whatever would wait for a value fails: there are none."""
    config = tiny_config("x", "y", prediction_type=prediction_type, **changes)
    extractor, scheduler = build_extractor(config), build_scheduler(config)
    unet = build_unet(config, extractor.config.channels)
    denoiser = Denoiser(unet, scheduler, device="cpu").to("meta")
    extractor.to("meta")
    optimizer = torch.optim.AdamW(unet.parameters())
    ema, finite = EMAModel(unet.parameters(), foreach=True), FiniteLoss(torch.device("meta"))
    batch = {
        "images": torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="meta"),
        "features": torch.zeros(4, extractor.config.channels, 4, 4, dtype=torch.float16, device="meta"),
        "categories": torch.zeros(4, dtype=torch.int64, device="meta"),
    }
    for step in (1, 2):
        loss = training_loss(denoiser, extractor, batch, config)
        loss.total.backward()
        finite.note(loss.total, step)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):
        finite.check(0)  # waits, which is noticed here


def test_copies_to_a_gpu_are_pinned_and_run_beside_the_computation(monkeypatch):
    made = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(train, "Accelerator", lambda **options: made.update(options) or SimpleNamespace(device=GPU))
    train.build_accelerator(tiny_config("x", "y", mixed_precision="auto"))
    assert made["dataloader_config"].non_blocking and made["mixed_precision"] == "bf16" and not made["cpu"]
    for device in ("cuda", "cpu"):
        loader = train.training_loader(tiny_config("x", "y"), [0, 1, 2], [[0, 2]], torch.device(device))
        assert loader.pin_memory == (device == "cuda")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_is_named(bad):
    finite = FiniteLoss(torch.device("cpu"))
    for step, value in enumerate([1.0, 2.0, bad, 1.0, bad], start=1):
        finite.check(0)
        finite.note(torch.tensor(value), step)
        if step == 3:
            break
    finite.note(torch.tensor(bad), 4)
    with pytest.raises(ValueError, match="step 3: the loss is not finite; there is no checkpoint yet"):
        finite.check(0)
    with pytest.raises(ValueError, match="step 3: .*the last checkpoint is that of step 2"):
        finite.check(2)


def test_training_stops_at_a_loss_that_is_not_finite_and_keeps_the_last_good_checkpoint(good_images, tmp_path, monkeypatch):
    losses = []

    def exploding(*args):
        losses.append(training_loss(*args))
        return dataclasses.replace(losses[-1], simple=losses[-1].simple * (torch.nan if len(losses) == 4 else 1))

    monkeypatch.setattr(train, "training_loss", exploding)
    settings = {"max_train_steps": 40, "checkpointing_steps": 3, "checkpoints_total_limit": 5, "profiles": ["gaussian"]}
    config = tiny_config(good_images, tmp_path, **settings)
    with pytest.raises(ValueError, match="step 4: the loss is not finite; the last checkpoint is that of step 3") as error:
        train.main(config)
    assert "\n" not in str(error.value) and len(losses) == 6  # where the next checkpoint would have been
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert is_unfinished(tmp_path)  # the first model, of before the UNet was trained
