"""Times ways to do something in turn, so that they share the machine's mood, and describes the machine."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

PACKAGES = ("torch", "openvino", "onnxruntime", "anomalib")
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Contender:
    """One thing that is timed.

    Args:
        labels: what tells it from the others in the kept results.
        call: does it once.
        images: that one call handles.
    """

    labels: Mapping[str, object]
    call: Callable[[], object]
    images: int = 1


def interleaved(contenders: Sequence[Contender], runs: int, seconds: float) -> list[dict]:
    """Times all contenders in each of several rounds, after one call of each that does not count.

    Args:
        seconds: for which a contender is called in a round, at least once.

    Returns:
        For each contender its labels, `images` of a call, `calls` that were timed, and `seconds` of every round's median call.
    """
    for contender in tqdm(contenders, desc="first calls", mininterval=5):
        contender.call()
    rounds: list[list[list[float]]] = [[] for _ in contenders]
    for run in range(runs):
        for kept, contender in zip(rounds, tqdm(contenders, desc=f"round {run + 1} of {runs}", mininterval=5), strict=True):
            kept.append(timed_calls(contender.call, seconds))
    return [
        {
            **contender.labels,
            "images": contender.images,
            "calls": sum(map(len, kept)),
            "seconds": [float(np.median(calls)) for calls in kept],
        }
        for contender, kept in zip(contenders, rounds, strict=True)
    ]


def timed_calls(call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each of the calls that fill a time; the last one may exceed it."""
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        started = clock()
        call()
        taken.append(clock() - started)
    return taken


def milliseconds(timing: Mapping) -> float:
    """Median over the rounds, per image."""
    return 1000 * float(np.median(timing["seconds"])) / timing["images"]


def flop_rate(timing: Mapping) -> float:
    """FLOP/s of a call whose FLOPs are known."""
    return timing["flops"] / float(np.median(timing["seconds"]))


def counted_flops(call: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions of a call, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_peak(precisions: Sequence[str], side: int) -> list[Contender]:
    """Products of two square matrices in torch, the machine's own peak."""
    contenders = []
    for precision in precisions:
        a, b = torch.randn(2, side, side).to(DTYPES[precision])
        labels = {"group": "matmul", "name": f"torch.matmul of {side}x{side}", "runtime": "eager", "precision": precision}
        contenders.append(Contender({**labels, "flops": 2 * side**3}, lambda a=a, b=b: torch.matmul(a, b)))
    return contenders


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # in which torch computes


def computing_in(precision: str) -> AbstractContextManager:
    """Context in which torch computes in `fp32` or `bf16` on a CPU."""
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", DTYPES[precision])


def native_precisions() -> list[str]:
    """`fp32`, and `bf16` where the CPU has instructions for it."""
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ["fp32", "bf16"] if has_bf16 else ["fp32"]


def machine() -> dict:
    """CPU with the instruction sets that matter, cores that may be used, and versions of what computes."""
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        fields = {name.strip(): value.strip() for name, _, value in lines}
    known = set(fields.get("flags", "").split())
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in known],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions,
    }
