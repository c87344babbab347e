"""Dealing out work, and what becomes of the errors of workers, without Ray."""

import pytest
from diffad.cluster import ray_data
from diffad.cluster.ray_data import Cluster, check_installed, check_reachable, chunk_size, own_error


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

    class TaskErrorOfValues(TaskError, ValueError):
        pass

    own = ValueError("host: another model lies there")
    in_user_code = RuntimeError("in user code")
    in_user_code.__cause__ = own
    assert own_error(TaskErrorOfValues(in_user_code)) is own
    bug = TaskError(TypeError("a bug"))
    assert own_error(bug) is bug


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
