"""Several processes train one model: their gradients are averaged, and the held-out images dealt out without a copy."""

import dataclasses
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import new_process
import pytest
import torch
from accelerate.state import AcceleratorState
from diffad import DiffADPipeline
from diffad.data import DataError
from diffad_training import train
from diffad_training.config import save_config
from diffad_training.dataset import cache_mark
from safetensors.torch import load_file
from tiny_training import (
    assert_equal_models,
    free_port,
    launch,
    tiny_config,
    train_in,
    unet_weights,
    use_one_thread,
)


@pytest.fixture(scope="module")
def settings(good_images):
    """Of 2 processes with batches of 1; 10 training images are an epoch of 5 steps."""
    options = {"max_train_steps": 6, "train_batch_size": 1, "checkpointing_steps": 1, "checkpoints_total_limit": 6}
    options["validation_steps"] = 3
    return tiny_config(good_images, "", keep_checkpoints=True, learning_rate=1e-2, **options)


@pytest.fixture(scope="module")
def two_processes(settings, tmp_path_factory):
    """A run of processes that have the environment that a launcher gives them."""
    folder = tmp_path_factory.mktemp("processes") / "two"
    config, printed = dataclasses.replace(settings, output_dir=str(folder)), folder.parent / "printed.txt"
    train_in(2, config, printed=printed)
    assert "2 process(es)" in printed.read_text()
    return config, folder, printed.read_text()


def launched(config, machines):
    """One process on each of several machines, started by `accelerate launch`."""
    folder = Path(config.output_dir).parent
    save_config(config, folder / "config.json")
    words = ["--multi_gpu", "--num_processes", "2", "--num_machines", str(machines), "--main_process_ip", "127.0.0.1"]
    words += ["--main_process_port", str(free_port()), "--mixed_precision", "no", "--dynamo_backend", "no"]
    script = [train.__file__, "--config", str(folder / "config.json")]
    return [
        new_process.start(
            *(launch, [*words, "--machine_rank", str(rank), *script]),
            printed=folder / f"printed-{rank}.txt",
            environment={"OMP_NUM_THREADS": "1"},
        )
        for rank in range(machines)
    ]


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


@pytest.mark.long
def test_two_machines_train_as_two_processes_of_one_do(two_processes, tmp_path):
    """Gloo on loopback; bit for bit, with everything that was fitted afterwards."""
    config = dataclasses.replace(two_processes[0], output_dir=str(tmp_path / "machines"))
    for rank, process in enumerate(launched(config, machines=2)):
        process.join()
        assert process.exitcode == 0, (tmp_path / f"printed-{rank}.txt").read_text()
    assert_equal_models(tmp_path / "machines", two_processes[1])


@pytest.mark.parametrize(("marks", "is_shared"), [([7], True), ([7, 7], True), ([7, 0], False), ([7, 8], False)])
def test_machines_that_see_other_files_are_refused_everywhere(marks, is_shared, tmp_path):
    accelerator = SimpleNamespace(device="cpu", gather=lambda mark: torch.tensor(marks))
    if is_shared:
        train.check_shared(accelerator, tmp_path, 7)
        return
    with pytest.raises(DataError, match="not all machines see the same files there; put --output_dir"):
        train.check_shared(accelerator, tmp_path, 7)


def test_what_a_cache_holds_is_told_by_its_mark(tmp_path):
    marks = [cache_mark(tmp_path)]
    for content in ("a", "b", "a"):
        (tmp_path / "cache.json").write_text(content)
        marks.append(cache_mark(tmp_path))
    assert marks[0] == 0 and marks[1] == marks[3] and len(set(marks)) == 3
    assert torch.tensor(marks).dtype == torch.int64


def test_a_process_takes_its_share_of_its_own_machine(settings, monkeypatch):
    """Of 2 processes on 2 machines each has all cores of one."""
    threads = []
    monkeypatch.setattr(train.os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(train.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(train, "Accelerator", lambda **_: SimpleNamespace(device=torch.device("cpu"), num_processes=2))
    for environment in ({}, {"LOCAL_WORLD_SIZE": "1"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        train.build_accelerator(settings)
    assert threads == [3, 6]


def test_validation_sees_every_held_out_image_once(two_processes, accumulated):
    """3 held-out images dealt out to 2 processes: with one of them twice, the means would differ."""
    first, second = (
        [float(value) for value in re.findall(r"held_out/\w+ ([\d.]+)", printed)]
        for printed in (two_processes[2], accumulated[1])
    )
    assert len(first) == 6 and first == pytest.approx(second, abs=2e-3)
    assert DiffADPipeline.from_pretrained(two_processes[1]).calibration.config.num_calibration_images == 2


def test_resumed_by_two_processes_on_two_machines(two_processes, tmp_path):
    config, folder, _ = two_processes
    changes = {"output_dir": str(tmp_path / "resumed"), "resume_from_checkpoint": str(folder / "checkpoint-4")}
    train_in(2, dataclasses.replace(config, **changes), machines=2)
    assert_equal_models(tmp_path / "resumed", folder)


def test_another_number_of_processes_is_refused(two_processes, tmp_path):
    config, folder, _ = two_processes
    changes = {"output_dir": str(tmp_path), "resume_from_checkpoint": str(folder / "checkpoint-4")}
    with pytest.raises(DataError, match="belongs to another run .2 process.es. there, 1 now"):
        train.main(dataclasses.replace(config, **changes))


@pytest.mark.long
def test_accelerate_launches_the_same(two_processes, tmp_path):
    """As the documentation says, of which a short test parses the options: two more interpreters take 16 seconds to start."""
    save_config(dataclasses.replace(two_processes[0], output_dir=str(tmp_path / "launched")), tmp_path / "config.json")
    words = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", train.__file__, "--config", str(tmp_path / "config.json")]
    printed = new_process.run(launch, words, printed=tmp_path / "printed.txt", environment={"OMP_NUM_THREADS": "1"})
    assert "2 process(es)" in printed
    assert_equal_models(tmp_path / "launched", two_processes[1])


def _moments(checkpoint) -> list[torch.Tensor]:
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return [state[index]["exp_avg"] for index in sorted(state)]
