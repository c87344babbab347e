"""Saving that is killed: a short form, and the long one under `-m long`, whose figures stand in model_cards/faults.md."""

import os
from pathlib import Path

import new_process
import pytest
from killed_saving import main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def run(kills: int, what: str, folder: Path) -> str:
    """What the harness prints; it fails where a model neither loads nor is one of the two."""
    return new_process.run(main, kills, what, folder, printed=folder / "printed.txt")


@pytest.mark.parametrize("what", ["model", "calibration", "update"])
def test_a_killed_writer_leaves_the_former_model_or_the_new_one(what, tmp_path):
    assert f"3 kills while saving the {what}: " in run(3, what, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("what", "kills"), [("model", 40), ("calibration", 60)])
def test_many_killed_writers_leave_the_former_model_or_the_new_one(what, kills, tmp_path):
    printed = run(kills, what, tmp_path)
    print(printed)
    assert f"{kills} kills while saving the {what}: " in printed
