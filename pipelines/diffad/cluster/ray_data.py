"""Ray Data as an engine: work is dealt out to processes of one thread, and what they make comes back in order, each once."""

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import pyarrow as pa

from ..system.text import one_line

# Items that a worker takes at once are lost to a kill and made again; few of them cost the driver time.
BATCHES_AT_ONCE = 16
CHUNKS_PER_WORKER = 4  # at least, of a short job, so that all workers end at about the same time
MOST_RETRIES = 20  # of the same items, whose worker died every time: then they are likely why
# Items to blocks of results: a worker's own copy loads what it needs when it is first called.
Work = Callable[[list], Iterator[pa.Table]]


@dataclass(frozen=True)
class Cluster:
    """Where Ray's workers run.

    Args:
        address: of a running cluster that this machine is part of, `auto` or HOST:PORT; None starts one on this machine, which
            ends with the job.
        workers: processes with a thread each; None is one for each CPU that the cluster has.
    """

    address: str | None = None
    workers: int | None = None

    def map(self, work: Work, items: Sequence, batch_size: int) -> Iterator[pa.Table]:
        """What `work` makes of items, in their order, each once, also where workers were killed and others took their place.

        Args:
            work: is sent to every worker, and called with some of the items; has to make the same of the same.
            items: that pyarrow can hold.
            batch_size: a worker gets a multiple of it, but for the last items.

        Raises:
            ValueError: if the cluster has fewer CPUs than workers are asked for.
            OSError: if Ray can't be started, there is no cluster at the address, or workers die again and again.
            Exception: whatever `work` raises.
        """
        if not items:
            return
        with self._connected() as workers:
            import ray

            size = chunk_size(len(items), workers, batch_size)
            chunks = [{"items": items[start : start + size]} for start in range(0, len(items), size)]
            # Made here and not by tasks, which would find no CPU: the workers have them all.
            blocks = ray.data.from_items(chunks, override_num_blocks=len(chunks))
            results = blocks.map_batches(
                RayWorker,
                fn_constructor_args=(work,),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=1,
                max_task_retries=MOST_RETRIES,
            )
            try:
                yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            except ray.exceptions.RayTaskError as error:
                raise own_error(error) from None
            except ray.exceptions.RayError as error:
                raise OSError(f"Ray's workers failed ({one_line(error)}); the same command goes on") from error

    @contextmanager
    def _connected(self) -> Iterator[int]:
        """Within it Ray runs; gives the number of workers."""
        import ray
        import ray.data

        if self.address is None:
            # Nobody else may reach it: whoever reaches Ray's ports can have it run anything.
            place = {"address": "local", "num_cpus": self.workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        else:
            check_reachable(self.address)
            place = {"address": self.address}
        try:
            ray.init(**place, logging_level=logging.WARNING)
        except Exception as error:  # of many kinds, some of them no more than `Exception`
            raise OSError(f"Ray can't be {'started' if self.address is None else 'reached'} ({one_line(error)})") from error
        try:
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            context = ray.data.DataContext.get_current()
            context.execution_options.preserve_order = True
            context.enable_progress_bars = False
            cpus = int(ray.cluster_resources().get("CPU", 0))
            if (self.workers or 1) > cpus:
                raise ValueError(
                    f"--workers {self.workers or 1}: Ray's cluster has {cpus} CPUs; start more nodes or ask for fewer"
                )
            yield self.workers or cpus
        finally:
            ray.shutdown()


def chunk_size(items: int, workers: int, batch_size: int) -> int:
    """How many of all items a worker takes at once, in whole batches."""
    return batch_size * max(1, min(BATCHES_AT_ONCE, items // (batch_size * workers * CHUNKS_PER_WORKER)))


def check_installed() -> None:
    """Raises ValueError unless Ray Data can be imported."""
    for name in ("ray", "pandas"):
        if find_spec(name) is None:
            raise ValueError(f"--engine ray needs the Python package {name}: pip install 'diffad[ray]'")


def check_reachable(address: str) -> None:
    """Raises OSError unless somebody listens at HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not port.isdecimal():
        raise ValueError(f"--address {address}: expected auto, or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise OSError(f"--address {address}: no Ray cluster there ({one_line(error)}); `ray start --head` starts one") from None


class RayWorker:
    """What runs in each of Ray's processes."""

    def __init__(self, work: Work):
        self.work = work

    def __call__(self, chunks: pa.Table) -> Iterator[pa.Table]:
        for items in chunks["items"].to_pylist():
            yield from self.work(items)


def own_error(error: Exception) -> Exception:
    """What a worker raised for its user to see, of the errors that Ray wraps it in; without one the error itself."""
    found, inner = error, error
    while inner is not None:
        if isinstance(inner, (ValueError, OSError)):
            found = inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return found
