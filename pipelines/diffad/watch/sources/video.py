"""Frames of a video file, and of cameras and streams that OpenCV reads."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .addresses import without_credentials
from .part import Part, PartKey

TIMEOUT = 5000  # milliseconds to open a stream, and to wait for its next frame
SHORT = 0.99  # of the frames that a video says it has: one with fewer is reported


class VideoFile:
    """Frames of a video file in their order, each once, from the first that was not judged.

    Args:
        is_known: whether a frame was judged already.
        interval: seconds of the video between the frames that are taken; 0 takes every frame.
        report: takes lines for the operator.

    Raises:
        ValueError: if the file is no video.
    """

    is_live = False

    def __init__(
        self,
        path: Path,
        is_known: Callable[[PartKey], bool],
        interval: float = 0.0,
        report: Callable[[str], None] = lambda line: None,
    ):
        self.path, self._is_known, self._interval, self._report = path.resolve(), is_known, interval, report
        self.address = str(self.path)
        self._given = -1  # the latest frame
        try:
            self._opened().release()
        except OSError as error:
            raise ValueError(str(error)) from None

    def parts(self, stop: threading.Event) -> Iterator[Part | None]:
        """Frames, named by their numbers from 0 on; see [`Source`].

        Raises:
            OSError: if the file is gone.
        """
        status = os.stat(self.path)
        capture = self._opened()
        try:
            yield None
            rate = capture.get(cv2.CAP_PROP_FPS) or 1.0
            number, taken = 0, 0
            while not stop.is_set() and capture.grab():  # frames that are left out are not decoded
                if number / rate >= taken * self._interval:
                    taken += 1
                    key = PartKey(f"frame {number:09d}", status.st_size, status.st_mtime_ns)
                    if number > self._given and not self._is_known(key):
                        yield Part(key, _image(capture.retrieve(), self.address))
                        self._given = number
                number += 1
            promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            if not stop.is_set() and number < SHORT * promised:
                self._report(f"{self.path}: ends after {number} of {promised:.0f} frames; perhaps it is damaged")
        finally:
            capture.release()

    def _opened(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise OSError(f"{self.path}: not a readable video")
        return capture


class Camera:
    """The newest frame of a live stream whenever the model is ready: MJPEG over HTTP, RTSP, or a camera of this machine.

    Frames of the time in which nobody watches are not made up for.

    Args:
        address: URL, or the path of a device such as `/dev/video0`.
        interval: least number of seconds between two frames that are taken.
    """

    is_live = True

    def __init__(self, address: str, interval: float = 0.0):
        self.address, self._url, self._interval = without_credentials(address), address, interval

    def parts(self, stop: threading.Event) -> Iterator[Part | None]:
        """Frames, named by the time at which they came; see [`Source`].

        Raises:
            OSError: if there is no stream, it ends, or sends nothing for 5 seconds.
        """
        is_url = "://" in self._url
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
        capture = cv2.VideoCapture(self._url, *((cv2.CAP_FFMPEG, timeouts) if is_url else (cv2.CAP_ANY,)))
        try:
            if not capture.isOpened():
                raise OSError(f"{self.address}: no stream")
            yield None
            earliest = time.monotonic()
            while not stop.is_set():
                if not capture.grab():
                    raise OSError(f"{self.address}: the stream has ended")
                if time.monotonic() < earliest:
                    continue
                earliest = time.monotonic() + self._interval
                now = time.time_ns()
                yield Part(PartKey(f"frame {now}", 0, now), _image(capture.retrieve(), self.address))
        finally:
            capture.release()


def _image(retrieved: tuple[bool, np.ndarray | None], address: str) -> Image.Image:
    """The RGB image of OpenCV's BGR frame."""
    is_there, frame = retrieved
    if not is_there:
        raise OSError(f"{address}: a frame can't be decoded")
    return Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
