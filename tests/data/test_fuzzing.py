"""Whatever chance makes of images, masks and manifests is read or refused with one line, at once and in little memory."""

import sys

import pytest
from fuzzing import run_apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
KINDS = ("images", "masks", "manifests")


def check(result: dict, least: int) -> None:
    assert not result["escaped"], result["escaped"][:10]
    assert result["inputs"] >= least and result["refused"] > 0.2 * result["inputs"] and result["read"] > 0.02 * result["inputs"]
    assert result["slowest"][0] < 10 and result["peak_mib"] < 1000


@pytest.mark.parametrize("kind", KINDS)
def test_short(kind):
    check(run_apart(kind, seed=1, count=2000, seconds=2), least=50)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2, 5))
def test_long(kind, seed):
    check(run_apart(kind, seed, count=100_000, seconds=120), least=5000)
