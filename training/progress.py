"""What a run tells of itself while it trains: speed, losses, and that one of them is no number any more."""

import time
from collections.abc import Mapping

import torch
from tqdm.auto import tqdm

LOG_STEPS = 10


class TrainingError(ValueError):
    """Training can't go on; the message says at which step, and what to change."""


class FiniteLoss:
    """Notes on the device at which step the loss was first not finite, so that no step waits for the answer."""

    def __init__(self, device: torch.device):
        self._first_bad = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Takes the loss of a batch, a scalar, in a step counted from 1."""
        is_bad = ~loss.detach().isfinite() & (self._first_bad == 0)
        self._first_bad = torch.where(is_bad, step, self._first_bad)

    def check(self, saved_at: int) -> None:
        """Raises TrainingError if a loss was not finite; waits for the device.

        Args:
            saved_at: step of the last checkpoint, 0 without any.
        """
        step = int(self._first_bad)
        if step:
            last = f"the last checkpoint is that of step {saved_at}" if saved_at else "there is no checkpoint yet"
            raise TrainingError(
                f"step {step}: the loss is not finite; {last}. Train anew with a lower learning_rate, or mixed_precision no"
            )


class Throughput:
    """Speed between steps, without what validation and checkpoints take.

    Args:
        images_per_step: of all processes.
    """

    def __init__(self, images_per_step: int):
        self.images_per_step = images_per_step
        self.latest: dict[str, float] = {}
        self.restart(0)

    def restart(self, step: int) -> None:
        """Measures from here on."""
        self._step, self._time = step, time.perf_counter()

    def lap(self, step: int) -> dict[str, float]:
        """Images per second and seconds per step since the last call."""
        if step > self._step:
            seconds = (time.perf_counter() - self._time) / (step - self._step)
            self.latest = {"images_per_second": self.images_per_step / seconds, "seconds_per_step": seconds}
        self.restart(step)
        return self.latest


class ProgressBar:
    """A bar in a terminal; elsewhere only the lines that are written.

    Args:
        steps: of the whole run.
        done: of them, by an earlier process.
        is_shown: in this process.
    """

    def __init__(self, steps: int, done: int, is_shown: bool):
        self.is_shown = is_shown
        self._bar = tqdm(total=steps, initial=done, desc="training", disable=None if is_shown else True, mininterval=2)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self) -> None:
        """Notes that a step is done."""
        self._bar.update()

    def show(self, losses: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Puts figures behind the bar."""
        values = {name.partition("/")[2]: f"{value:.3f}" for name, value in losses.items()}
        self._bar.set_postfix({**values, "speed": speed_text(speed)})

    def write(self, step: int, losses: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Prints a line that stays."""
        if self.is_shown:
            text = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            self._bar.write(f"step {step}: {text}" + (f"; {speed_text(speed)}" if speed else ""))


def speed_text(speed: Mapping[str, float]) -> str:
    """`18.6 images/s, 430 ms/step`; empty before the first measurement."""
    if not speed:
        return ""
    return f"{speed['images_per_second']:.1f} images/s, {1000 * speed['seconds_per_step']:.0f} ms/step"
