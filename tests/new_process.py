"""New processes that have everything imported already, which takes as long as many a test does.

They are forked from one process for each worker of the tests, in which nothing but imports has run. What is to be measured or
tested of the imports themselves needs an interpreter of its own.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path


def start(
    target: Callable, *arguments, printed: Path | None = None, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Calls a function of a module in a new process.

    Args:
        printed: file that takes what the process and those that it starts print, errors too.
        environment: variables of it, besides those of the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffad_training.train"])
    process = context.Process(target=_call, args=(target, arguments, printed, dict(environment or {})))
    process.start()
    return process


def run(target: Callable, *arguments, printed: Path, environment: Mapping[str, str] | None = None) -> str:
    """The same until the end, which must be a success; returns what was printed."""
    process = start(target, *arguments, printed=printed, environment=environment)
    process.join()
    assert process.exitcode == 0, printed.read_text()
    return printed.read_text()


def module(name: str, *words: str) -> None:
    """What `python -m NAME WORDS` does."""
    sys.argv = [name, *map(str, words)]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _call(target: Callable, arguments: tuple, printed: Path | None, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None  # is looked up anew, in the environment
    if printed is not None:
        with printed.open("w") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
    target(*arguments)
