"""The Dockerfile, and the units and settings in the documents."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import typer
from diffad.cli import app
from documents import GUIDE, ROOT
from exported_models import whole_images  # noqa: F401 - a fixture
from lowest_versions import requirements
from running import TOKEN
from test_serve_command import free_port
from tiny_pipeline import smooth_images

COMMANDS = typer.main.get_command(app).commands


def instructions() -> list[tuple[str, str]]:
    """Words and arguments of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [tuple(line.split(" ", 1)) for line in text.splitlines()]


def arguments_of(instruction: str) -> list[str]:
    return json.loads(dict(instructions())[instruction])


def test_the_dockerfile_installs_what_serving_needs():
    words = {word for name, text in instructions() if name == "RUN" for word in shlex.split(text)[2:]}
    installed = {word for word in words if word[0] not in "-."}
    # These run exported models.
    of_export = {line for line in requirements()["export"] if line.startswith(("onnxruntime", "openvino"))}
    needed = {*requirements()["serve"]} | of_export
    assert needed <= installed <= needed | {*requirements()[""]}
    words = [*arguments_of("ENTRYPOINT"), *arguments_of("CMD")]
    assert words[:2] == ["diffad", "serve"]
    COMMANDS["serve"].make_context("serve", words[2:])


def test_the_dockerfile_copies_what_is_there():
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for name, text in instructions() if name == "COPY" for word in text.split()[:-1]}
    assert sent == copied and all((ROOT / name).exists() for name in copied)


@pytest.mark.long
def test_the_steps_of_the_dockerfile_make_a_server(whole_images, tmp_path):  # noqa: F811
    """In a virtual environment and a copy of what the image gets; without torch."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment |= {"PATH": f"{tmp_path / 'venv/bin'}:{environment['PATH']}", "DIFFAD_TOKEN": TOKEN}
    place = tmp_path / "diffad"
    place.mkdir()
    for name, text in instructions():
        if name == "COPY":
            *sources, target = text.split()
            for source in map(ROOT.joinpath, sources):
                ignored = shutil.ignore_patterns("__pycache__", "results", "*.egg-info")
                shutil.copytree(source, place / target, ignore=ignored) if source.is_dir() else shutil.copy(source, place)
        elif name == "RUN":
            subprocess.run(["sh", "-c", text], cwd=place, env=environment, check=True)
    port = free_port()
    command = [*arguments_of("ENTRYPOINT")[:2], str(whole_images.folder), "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as server:
        try:
            client = httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
            )
            deadline = time.monotonic() + 120
            while not answers(client):
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.2)
            image = tmp_path / "image.png"
            smooth_images(1, seed=50)[0].save(image)
            answer = client.post("/predict?mask=true&overlay=true", content=image.read_bytes()).json()
            expected = float(whole_images.detector()(image).image_scores[0])
            assert answer["images"][0]["score"] == pytest.approx(expected, abs=1e-5)
        finally:
            server.terminate()
    missing = subprocess.run(["python", "-c", "import torch"], env=environment, capture_output=True, text=True)
    assert "No module named 'torch'" in missing.stderr


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_the_unit_of_the_guide_is_one(tmp_path):
    (unit,) = [text for _, text in GUIDE.blocks if "[Service]" in text and "diffad serve" in text]
    (start,) = re.findall(r"^ExecStart=(.*)$", unit.replace("\\\n", ""), re.MULTILINE)
    program, command, *words = shlex.split(start)
    assert Path(program).name == "diffad" and command == "serve"
    COMMANDS["serve"].make_context("serve", words)
    if shutil.which("systemd-analyze"):
        present = tmp_path / "diffad.service"
        present.write_text(unit.replace(program, shutil.which("true")))
        checked = subprocess.run(["systemd-analyze", "verify", present], capture_output=True, text=True)
        assert checked.returncode == 0 and "diffad" not in checked.stderr, checked.stderr
