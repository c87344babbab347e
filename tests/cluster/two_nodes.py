"""A Ray cluster of two nodes of one CPU each on this machine, and what runs on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@contextmanager
def two_nodes() -> Iterator[str]:
    """Starts nodes whose workers find diffad and the modules of the tests; gives the cluster's address."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "pipelines"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    cluster = Cluster()
    try:
        try:
            cluster.add_node(**NODE, include_dashboard=False)
            cluster.add_node(**NODE)
        except Exception as error:  # Ray has no other; it gives up if a process of its own is not there after 15 seconds
            pytest.skip(f"Ray's nodes did not start, as on a machine that is too busy: {error}")
        yield cluster.address
    finally:
        cluster.shutdown()


def worker_pids() -> list[int]:
    """Of Ray's processes that work for a job, not of idle ones; below this process, where the nodes were started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:  # it ended in between
            pass
    return found
