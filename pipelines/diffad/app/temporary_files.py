"""Files that users send and that the app makes of them: none is left when it ends."""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def temporary_files_removed() -> Iterator[None]:
    """Puts everything that the app, gradio and Python write aside into one folder, which is gone when the app ends.

    To be entered before gradio is imported, which makes a folder of its own. SIGTERM ends the app like Ctrl-C meanwhile.
    """
    former_folder, former_variable = tempfile.tempdir, os.environ.get("GRADIO_TEMP_DIR")
    with _interrupted_by_sigterm(), tempfile.TemporaryDirectory(prefix="diffad-app-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = former_folder
            if former_variable is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = former_variable


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    def interrupt(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield
        return
    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
