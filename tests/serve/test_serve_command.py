"""`diffad serve` as users start it, on real models."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.cli import app
from diffad.runtime.rows import rows_of
from exported_models import whole_images  # noqa: F401 - a fixture
from PIL import Image
from running import TOKEN, form
from test_predictions import pixels_of
from tiny_pipeline import save_tiny_model, smooth_images
from typer.testing import CliRunner

# Shells start background processes with SIGINT ignored, which servers then inherit.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from diffad.cli import app; app()"


@contextmanager
def started(*arguments, token: str | None = None) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    """The command in a process of its own, and a client once it is ready."""
    environment = {**os.environ, **({} if token is None else {"DIFFAD_TOKEN": token})}
    command = [sys.executable, "-c", START, "serve", *map(str, arguments), "--port", str(free_port()), "--threads", "1"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if line.startswith("INFO:     serving "):
                break
        else:
            pytest.fail(f"ended with {process.wait()}")
        address = line.split(" on ")[1].partition(";")[0]
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=address, headers=headers, timeout=300, trust_env=False) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        return other.getsockname()[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, bytes]:
    """PNG files by names; the second one is of a part with a defect."""
    folder = tmp_path_factory.mktemp("images")
    made = smooth_images(2, seed=40, size=(50, 40))
    made[1].paste((255, 0, 0), (5, 5, 25, 25))
    for i, image in enumerate(made):
        image.save(folder / f"{i}.png")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_exported_model_is_served_and_ends_by_a_signal(whole_images, images, tmp_path):  # noqa: F811
    feedback = tmp_path / "feedback.jsonl"
    expected = rows_of(list(images), whole_images.detector()([tmp_path_image(tmp_path, n, d) for n, d in images.items()]))
    with started(whole_images.folder, "--feedback", feedback) as (process, client):
        answer = client.post("/predict?mask=true", files=form(*images.values())).json()
        for found, row in zip(answer["images"], expected, strict=True):
            assert found.pop("score") == pytest.approx(row.pop("score"), abs=1e-5)
            assert pixels_of(found.pop("mask_png")).astype(bool).sum() == row["defect_pixels"]
            assert found.pop("digest") and found.pop("name") == row.pop("path")
            assert found == json.loads(json.dumps(row))
        assert answer["model"]["digest"].endswith("onnxruntime fp32")
        refused = client.post("/repair", files=form(*images.values()))
        assert refused.status_code == 501 and "does not repair" in refused.json()["error"]
        said = {"name": "0.png", "digest": "0" * 64, "verdict": "good", "correct_verdict": "defective"}
        assert client.post("/feedback", json=said).status_code == 201 and "defective" in feedback.read_text()
        workers = children(process.pid)
        # Ctrl+C reaches all processes of the terminal; those that compute leave the end to the server.
        for pid in (*workers, process.pid):
            os.kill(pid, signal.SIGINT)
        assert process.wait(120) == 0
        wait_until_gone(workers)


def tmp_path_image(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    """Waits for the end of processes, of which there must be some."""
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)
    assert pids


def test_a_pipeline_is_served_with_repair_and_leaves_no_process(images, tmp_path):
    save_tiny_model(tmp_path / "model")
    with started(tmp_path / "model", "--device", "cpu", token=TOKEN) as (process, client):
        (found,) = client.post("/predict", content=images["1.png"]).json()["images"]
        (repaired,) = client.post("/repair", content=images["1.png"]).json()["images"]
        assert client.post("/predict", headers={"Authorization": ""}, content=images["1.png"]).status_code == 401
        workers = children(process.pid)
        process.kill()
        process.wait()
        wait_until_gone(workers)  # they see that the server is gone
    pipe = DiffADPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    path = tmp_path_image(tmp_path, "1.png", images["1.png"])
    assert found["label"] == "defective"
    assert found["score"] == pytest.approx(float(pipe(path).image_scores[0]), rel=1e-5)
    expected = np.asarray(pipe.reconstruct(path).images[0], dtype=int)
    assert np.abs(pixels_of(repaired["repaired_png"]) - expected).max() <= 2
    assert repaired["changed_share"] > 0 and Image.open(path).size == (50, 40)


def test_what_can_not_be_served_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFAD_TOKEN", raising=False)
    for arguments, message in (
        ([tmp_path, "--host", "0.0.0.0"], "--host 0.0.0.0: others than this machine can reach it"),
        ([tmp_path, "--token-file", tmp_path / "none"], "No such file"),
        ([tmp_path, "--level", "2"], "--level must lie between 0 and 1"),
        ([tmp_path, "--feedback", tmp_path / "gone/feedback.jsonl"], "its folder does not exist"),
        ([tmp_path, "--host", "192.0.2.1", "--port", "8000"], "needs a token"),
    ):
        result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
        assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", str(port)])
        assert result.exit_code == 1 and f"127.0.0.1:{port}: can't listen there" in result.stderr
