"""One pipeline for many threads: scores and repairs are bit for bit those of calls alone."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffad.repair.presets import PRESETS
from tiny_pipeline import smooth_images, tiny_pipeline

SHORT, LONG = 8, 50  # calls of each thread
FEW_STEPS = {
    "default": {"timesteps": (50,), "attempts": 1, "spins": 2},
    "mean": {"timesteps": (50,)},
    "samples": {"start": 40, "draws": 1},
    "paper": {"num_steps": 2, "denoise_every": 2, "stochastic": True},
    "algorithm_1": {"num_steps": 2, "denoise_every": 2},
    "gradient_descent": {"num_steps": 2},
    "partial_diffusion": {"timestep": 40, "num_inference_steps": 50, "stochastic": True},
}


@pytest.fixture
def one_torch_thread():
    """Sums over several threads of torch come out in the order in which these end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["short", "long"])
def test_threads_of_scores_and_repairs_give_what_lone_calls_give(count, one_torch_thread):
    pipe = tiny_pipeline(weights={"kl": 0.5, "feature": 0.5}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    image = smooth_images(1, seed=9)[0]

    def score() -> list[np.ndarray]:
        output = pipe(image)
        return [output.image_scores, output.p_values, *output.anomaly_maps, *output.masks]

    def repair(preset: str) -> Callable[[], list[np.ndarray]]:
        def call() -> list[np.ndarray]:
            output = pipe.reconstruct(image, preset, false_alarm_rate=0.9, return_traces=True, **FEW_STEPS[preset])
            return [np.asarray(output.images[0]), *output.difference_maps, *output.traces]

        return call

    assert FEW_STEPS.keys() == PRESETS.keys()
    calls = [score] * 4 + [repair(preset) for preset in FEW_STEPS]
    alone = [call() for call in calls]
    assert all(change.any() for _, change, _ in alone[4:])  # each preset does something
    start, wrong, errors = threading.Barrier(len(calls)), [], []

    def work(number: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        try:
            for _ in range(count):
                now = calls[number]()
                if not all(map(np.array_equal, now, alone[number])):
                    wrong.append(number)
                pipe.scheduler.set_timesteps(100 + number)  # as anybody may who has the pipeline
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not wrong, f"{len(wrong)} of {count * len(calls)} calls differ, in threads {sorted(set(wrong))}"
