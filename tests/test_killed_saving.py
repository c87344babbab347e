"""Saving that is killed: a short form, and the long one under `-m long`, whose figures stand in model_cards/faults.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def run(kills: int, what: str, folder: Path) -> str:
    """What the harness prints; it fails where a model neither loads nor is one of the two."""
    command = [sys.executable, Path(__file__).with_name("killed_saving.py"), str(kills), what, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_killed_writer_leaves_the_former_model_or_the_new_one(tmp_path):
    printed = run(3, "model,calibration", tmp_path).splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        f"3 kills while saving the {what}" for what in ("model", "calibration")
    ]


@pytest.mark.long
@pytest.mark.parametrize(("what", "kills"), [("model", 40), ("calibration", 60)])
def test_many_killed_writers_leave_the_former_model_or_the_new_one(what, kills, tmp_path):
    printed = run(kills, what, tmp_path)
    print(printed)
    assert printed.startswith(f"{kills} kills while saving the {what}: ")
