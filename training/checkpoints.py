"""Checkpoints: written whole or not at all, each with the run that it belongs to, and the newest complete one found again.

A checkpoint is what accelerate saves of a run (weights as safetensors; optimizer, schedule and random states as pickles), the
averaged weights as safetensors, and `run.json`: the step and the run's fingerprint. Reading the pickles can run code, so that a
checkpoint must be trusted as code is. A finished model holds none of this.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffad.data import DataError
from diffad.system.atomic import DIGEST, complete, remove_folder, writing
from diffad_training.config import load_config
from diffad_training.run_folder import Fingerprint, RunFolder
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

LATEST = "latest"
AVERAGED = "averaged_weights.safetensors"
RUN = "run.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Args:
        folder: that holds it.
        step: number of finished optimizer steps.
        fingerprint: of the run that it belongs to.
    """

    folder: Path
    step: int
    fingerprint: Fingerprint


def find_checkpoint(named: str | None, folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, and what there is to say about the choice.

    Args:
        named: a checkpoint's folder, `latest` for the newest complete one of the run's folder, or None.

    Raises:
        DataError: if the named folder is no complete checkpoint. Without any `latest` is None.
    """
    if named is None:
        return None, []
    if named != LATEST:
        if not Path(named).is_dir():
            raise DataError(f"--resume_from_checkpoint {named}: no such folder")
        return read_checkpoint(Path(named)), [f"resuming from {named}"]
    notes = []
    for path in reversed(folder.checkpoints()):
        try:
            return read_checkpoint(path), [*notes, f"resuming from {path}, the newest complete checkpoint"]
        except DataError as error:
            notes.append(f"passed over: {error}")
    return None, [*notes, f"no checkpoint in {folder.path}, starting anew"]


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint's step and run, once every file has been compared with the digest.

    Raises:
        DataError: if it is not complete.
    """
    try:
        if not complete(folder):
            raise ValueError(f"{folder}: no {DIGEST}; it was not written to its end, or by an earlier release")
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        return Checkpoint(folder, int(run["step"]), Fingerprint.from_dict(run["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(error if str(folder) in str(error) else f"{folder}: damaged checkpoint ({error!r})") from error


def save_checkpoint(
    accelerator: Accelerator, ema: EMAModel, names: Sequence[str], folder: RunFolder, step: int, fingerprint: Fingerprint
) -> None:
    """Writes `checkpoint-<step>`; to be called by all processes.

    Args:
        ema: averaged weights, updated in every step.
        names: of these weights, in order.

    Raises:
        DiskFullError: if the disk has too little space; nothing is left behind then.
    """
    with ExitStack() as stack:
        scratch = [None]
        if accelerator.is_main_process:
            # Weights, their average and the two moments of AdamW; Muon has one.
            size = 4 * sum(tensor.numel() * tensor.element_size() for tensor in ema.shadow_params)
            scratch = [str(stack.enter_context(writing(folder.path / f"checkpoint-{step}", whole=True, size=size)))]
        broadcast_object_list(scratch)
        accelerator.save_state(scratch[0])
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            averaged = {name: tensor.contiguous() for name, tensor in zip(names, ema.shadow_params, strict=True)}
            save_file(averaged, Path(scratch[0]) / AVERAGED)
            (Path(scratch[0]) / RUN).write_text(json.dumps({"step": step, "fingerprint": fingerprint.to_dict()}) + "\n")
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, ema: EMAModel, names: Sequence[str], checkpoint: Checkpoint) -> None:
    """Sets everything that has a state as it was; the averaged weights stay on the device where they are."""
    accelerator.load_state(str(checkpoint.folder))
    averaged = load_file(checkpoint.folder / AVERAGED)
    with torch.no_grad():
        for name, tensor in zip(names, ema.shadow_params, strict=True):
            tensor.copy_(averaged[name])
    ema.optimization_step = checkpoint.step


def averaged_weights(named: str, model: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint of the run that lies, or will lie, in a model's folder.

    Args:
        named: the checkpoint's folder, or `latest` for the newest complete one in the model's.

    Raises:
        DataError: if there is none, or it is damaged or of another run than the model.
    """
    checkpoint, notes = find_checkpoint(named, RunFolder(model))
    if checkpoint is None:
        raise DataError(notes[-1].removesuffix(", starting anew"))
    run = checkpoint.fingerprint
    of_model = Fingerprint.of_settings(load_config(str(model / "training_config.json"), {}), run.processes)
    if difference := run.difference_of_settings(of_model):
        raise DataError(f"{checkpoint.folder}: belongs to another run than {model} ({difference})")
    return load_file(checkpoint.folder / AVERAGED)


def remove_checkpoints(folder: RunFolder, kept: int = 0) -> None:
    """Removes all checkpoints of a run but the newest ones."""
    for path in folder.checkpoints()[::-1][kept:]:
        remove_folder(path)
