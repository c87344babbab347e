"""Dealing out work, and what becomes of the errors of workers, without Ray."""

import pytest
from diffad.cluster import ray_data
from diffad.cluster.ray_data import Cluster, _cause, check_installed, check_reachable, chunk_size


@pytest.mark.parametrize(
    ("items", "workers", "expected"),
    [
        (1, 2, 8),  # a batch at least
        (100, 2, 8),
        (640, 2, 80),
        (100_000, 2, 128),  # no more than can be lost to a kill
        (100_000, 64, 128),
        (10_000, 64, 32),
    ],
)
def test_chunks_are_whole_batches_and_enough_for_all_workers(items, workers, expected):
    assert chunk_size(items, workers, batch_size=8) == expected


def test_nothing_to_do_starts_no_ray(monkeypatch):
    monkeypatch.setattr(Cluster, "_connected", lambda self: pytest.fail("was started"))
    assert list(Cluster().map(print, [], 8)) == []


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ray_data, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--engine ray needs the Python package ray: pip install 'diffad\[ray\]'"):
        check_installed()


def test_of_the_errors_around_it_the_workers_own_is_raised():
    class TaskError(Exception):
        def __init__(self, cause):
            self.cause = cause

    own = ValueError("host: another model lies there")
    wrapped = TaskError(RuntimeError("in user code"))
    wrapped.__cause__ = TaskError(own)
    assert _cause(wrapped) is own
    died = TaskError(None)
    assert _cause(died) is died


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("127.0.0.1:1", OSError, "--address 127.0.0.1:1: no Ray cluster there .*`ray start --head` starts one"),
        ("nowhere", ValueError, "--address nowhere: expected auto, or HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address, error, message):
    with pytest.raises(error, match=message):
        check_reachable(address)
