"""A Ray cluster of two nodes of one CPU each on this machine, and what runs on it."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
# Ray's node gives up if these ports are not known 15 seconds after its start, which on a busy machine is soon.
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@contextmanager
def two_nodes() -> Iterator[str]:
    """Starts nodes whose workers find diffad and the modules of the tests; gives the cluster's address."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "pipelines"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"RAY_raylet_start_wait_time_s": "300", "RAY_agent_register_timeout_ms": "300000"}
    cluster = Cluster(initialize_head=True, head_node_args={**node(), "include_dashboard": False})
    try:
        cluster.add_node(**node())
        yield cluster.address
    finally:
        cluster.shutdown()


def node() -> dict[str, int]:
    """Settings of a node with ports of its own."""
    with ExitStack() as probes:
        bound = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        ports = {name: probe.getsockname()[1] for name, probe in zip(PORTS, bound)}
    return {"num_cpus": 1, "object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1", **ports}


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
