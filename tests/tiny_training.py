"""Trainings small enough for a test: their settings, and processes that train."""

import os
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path

import new_process
import torch
from diffad.scoring.profiles import PROFILES
from diffad_training import map_choice
from diffad_training.config import TrainingConfig
from safetensors.torch import load_file
from tiny_pipeline import smooth_images

TINY_UNET = {
    "patch_size": 2,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}


COMPLETE = {"choose_map": None, "profiles": list(PROFILES)}  # a map that is chosen, and all there are
# Of synthetic defects, of resamples, and of pixels: they choose a map as well in a twentieth of the time.
QUICK_MAP_CHOICE = {"DEFECTS": 6, "RESAMPLES": 20, "MAP_SIZE": (32, 32)}


def save_images(folder: Path, count: int = 13) -> Path:
    """Writes good images; 13 of them are 10 to train on and 3 held out under `tiny_config`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(smooth_images(count, seed=0)):
        image.save(folder / f"{i:03d}.png")
    return folder


def tiny_config(data: Path, output_dir: Path, **changes) -> TrainingConfig:
    settings = {
        "data": str(data),
        "output_dir": str(output_dir),
        "resolution": 32,
        "levels": [2],
        "unet": TINY_UNET,
        "feature_denoiser": {"width": 16, "num_blocks": 1},
        "feature_denoiser_steps": 3,
        # What takes longest is left to the tests of it, which take COMPLETE
        "choose_map": False,
        "profiles": ["balanced"],
        "max_train_steps": 4,
        "train_batch_size": 3,
        "lr_warmup_steps": 1,
        "learning_rate": 1e-3,
        "held_out_fraction": 0.25,
        "checkpointing_steps": 2,
        "validation_steps": 2,
        "mixed_precision": "no",
        "report_to": None,
    }
    return TrainingConfig(**{**settings, **changes})


def unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def assert_equal_models(first: Path, second: Path) -> None:
    """Bit for bit: the UNet, and all that was fitted after it."""
    components = ["unet", "gaussian", "residual_gaussian", "calibration"]
    for component in ("multiscale", "feature_denoiser"):
        is_there = [(path / component).is_dir() for path in (first, second)]
        assert is_there[0] == is_there[1]
        components += [component] * is_there[0]
    for component in components:
        a, b = (load_file(path / component / "diffusion_pytorch_model.safetensors") for path in (first, second))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), f"{component}: {name}"


def start(
    config: TrainingConfig, processes: int = 1, act=None, machines: int = 1, printed: Path | None = None
) -> list[BaseProcess]:
    """Trains in new processes, one of several in a group.

    Args:
        machines: on which they are told to be, equally many on each.
        act: is called with the configuration in place of `train.main`.
        printed: file that takes what the first one prints.
    """
    port, started = free_port(), []
    for rank in range(processes):
        local = processes // machines
        ranks = {"RANK": rank, "LOCAL_RANK": rank % local, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": local}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in ranks.items()} if processes > 1 else {}
        file = printed if rank == 0 else None
        started.append(new_process.start(_train, config, act, printed=file, environment=environment))
    return started


def train_in(processes: int, config: TrainingConfig, act=None, machines: int = 1, printed: Path | None = None) -> None:
    """Trains in so many new processes, which must succeed; see [`start`]."""
    started = start(config, processes, act, machines, printed)
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * processes


def launch(words: list[str]) -> None:
    """What `accelerate launch` does with the words after it."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    launch_command(launch_command_parser().parse_args(words))


def _train(config: TrainingConfig, act) -> None:
    from diffad_training import train

    use_one_thread()
    (act or train.main)(config)


def choose_maps_quickly(patch=setattr) -> None:
    for name, value in QUICK_MAP_CHOICE.items():
        patch(map_choice, name, value)


def use_one_thread(patch=setattr) -> None:
    """Threads of so small networks would only wait for each other, on a busy machine for minutes."""
    patch(os, "sched_getaffinity", lambda process: {0})


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
