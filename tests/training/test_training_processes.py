"""Several processes train one model: their gradients are averaged, and the held-out images dealt out without a copy."""

import dataclasses
import io
import re
from contextlib import redirect_stdout

import new_process
import pytest
import torch
from accelerate.state import AcceleratorState
from diffad import DiffADPipeline
from diffad.data import DataError
from diffad_training import train
from diffad_training.config import save_config
from safetensors.torch import load_file
from tiny_training import assert_equal_models, launch, tiny_config, train_in, unet_weights, use_one_thread


@pytest.fixture(scope="module")
def settings(good_images):
    """Of 2 processes with batches of 1; 10 training images are an epoch of 5 steps."""
    options = {"max_train_steps": 6, "train_batch_size": 1, "checkpointing_steps": 1, "checkpoints_total_limit": 6}
    options["validation_steps"] = 3
    return tiny_config(good_images, "", keep_checkpoints=True, learning_rate=1e-2, **options)


@pytest.fixture(scope="module")
def two_processes(settings, tmp_path_factory):
    """A run launched as the documentation says."""
    folder = tmp_path_factory.mktemp("processes") / "two"
    config = dataclasses.replace(settings, output_dir=str(folder))
    save_config(config, folder.parent / "config.json")
    words = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", train.__file__, "--config", str(folder.parent / "config.json")]
    printed = new_process.run(launch, words, printed=folder.parent / "printed.txt", environment={"OMP_NUM_THREADS": "1"})
    assert "2 process(es)" in printed
    return config, folder, printed


@pytest.fixture(scope="module")
def accumulated(settings, tmp_path_factory):
    """The same in one process, which accumulates what the two have: the same batches under the same noise."""
    folder = tmp_path_factory.mktemp("processes") / "one"
    config = dataclasses.replace(settings, output_dir=str(folder), gradient_accumulation_steps=2)
    with redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        use_one_thread(lambda *args: patch.setattr(*args, raising=False))
        AcceleratorState._reset_state(reset_partial_state=True)
        train.main(config)
    return folder, printed.getvalue()


def test_gradients_of_two_processes_are_averaged(two_processes, accumulated):
    # After one step AdamW's first moment is (1 - 0.9) times the clipped gradient.
    first, second = (_moments(folder / "checkpoint-1") for folder in (two_processes[1], accumulated[0]))
    assert max(moment.abs().max() for moment in first) > 1e-4
    for moment, expected in zip(first, second, strict=True):
        torch.testing.assert_close(moment, expected, rtol=1e-4, atol=1e-8)


def test_two_processes_end_where_one_does(two_processes, accumulated):
    weights, expected = unet_weights(two_processes[1]), unet_weights(accumulated[0])
    start = load_file(accumulated[0] / "checkpoint-1" / "averaged_weights.safetensors")
    moved = max((expected[name] - start[name]).abs().max() for name in expected)
    assert moved > 1e-3
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=0.02 * moved.item(), msg=name)


def test_validation_sees_every_held_out_image_once(two_processes, accumulated):
    """3 held-out images dealt out to 2 processes: with one of them twice, the means would differ."""
    first, second = (
        [float(value) for value in re.findall(r"held_out/\w+ ([\d.]+)", printed)]
        for printed in (two_processes[2], accumulated[1])
    )
    assert len(first) == 6 and first == pytest.approx(second, abs=2e-3)
    assert DiffADPipeline.from_pretrained(two_processes[1]).calibration.config.num_calibration_images == 2


def test_resumed_by_two_processes(two_processes, tmp_path):
    config, folder, _ = two_processes
    changes = {"output_dir": str(tmp_path / "resumed"), "resume_from_checkpoint": str(folder / "checkpoint-4")}
    train_in(2, dataclasses.replace(config, **changes))
    assert_equal_models(tmp_path / "resumed", folder)


def test_another_number_of_processes_is_refused(two_processes, tmp_path):
    config, folder, _ = two_processes
    changes = {"output_dir": str(tmp_path), "resume_from_checkpoint": str(folder / "checkpoint-4")}
    with pytest.raises(DataError, match="belongs to another run .2 process.es. there, 1 now"):
        train.main(dataclasses.replace(config, **changes))


def _moments(checkpoint) -> list[torch.Tensor]:
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return [state[index]["exp_avg"] for index in sorted(state)]
