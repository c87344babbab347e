"""Fixtures shared by the tests: tiny images and folders in `tmp_path`, and a machine without network."""

import os
import socket

# Workers have one thread each, and all but the last a core of their own: threads of several processes on the same cores wait
# for each other far longer than they compute. Set before torch is imported; processes that tests start inherit it.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if (number := int(worker.removeprefix("gw"))) < len(cores):
            os.sched_setaffinity(0, {cores[number]})

# Set before any Hugging Face library is imported: a download that a test needs by mistake then fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
from PIL import Image

# Files whose tests share what takes long to make: in this order before all others, so that none is left to a single worker at
# the end. With `--dist loadfile` a worker takes the next file when it is done with its own.
LONGEST = (
    "test_commands_of_documents.py",
    "test_parity.py",
    "test_push.py",
    "test_training_processes.py",
    "test_page.py",
    "test_benchmark_speed.py",
    "test_checkpoints.py",
    "test_two_nodes.py",
    "test_training_kills.py",
    "test_serve_command.py",
    "test_atomic.py",
    "test_serving.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: some tests wait for processes, servers and pages, and leave their core to the last worker."""
    return len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())) + 1


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Saving waits for the disk thousands of times, for the sake of a power failure, which no test has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def pixels() -> np.ndarray:
    """A `(20, 30, 3)` uint8 image without symmetry, in which every grey level can occur."""
    return np.random.default_rng(0).integers(0, 256, size=(20, 30, 3), dtype=np.uint8)


@pytest.fixture
def save_image(tmp_path):
    """Function that writes an array or PIL image below `tmp_path` and returns the path."""

    def save(image: np.ndarray | Image.Image, name: str, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        return path

    return save


@pytest.fixture
def mvtec_folder(tmp_path, save_image):
    """MVTec-layout folder: 6 good images to train, 2 good and 3 defective ones of two types with masks to test."""
    rng = np.random.default_rng(1)

    def image(name: str) -> None:
        save_image(rng.integers(0, 256, size=(16, 24, 3), dtype=np.uint8), f"part/{name}")

    for i in range(6):
        image(f"train/good/{i:03d}.png")
    for name in ("good/000", "good/001", "hole/000", "scratch/000", "scratch/001"):
        image(f"test/{name}.png")
    for i, name in enumerate(("hole/000", "scratch/000", "scratch/001")):
        mask = np.zeros((16, 24), dtype=np.uint8)
        mask[4 : 8 + i, 6:12] = 255
        save_image(mask, f"part/ground_truth/{name}_mask.png")
    return tmp_path / "part"


@pytest.fixture
def no_network(monkeypatch):
    """Fails the test when anything opens a connection, even if the error is swallowed."""
    attempts = []

    def refuse(self, address):
        attempts.append(address)
        raise OSError(f"no network in tests: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: refuse(None, host))
    yield
    assert not attempts, f"connections were attempted: {attempts}"
