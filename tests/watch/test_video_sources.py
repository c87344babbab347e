"""Video files and an MJPEG stream over HTTP on loopback."""

import io
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from diffad.watch.sources.addresses import without_credentials
from diffad.watch.sources.opening import is_live, open_source, source_address
from diffad.watch.sources.video import Camera, VideoFile
from PIL import Image
from watch_stub import grey

FRAMES = 12


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """12 frames at 4 frames a second, of rising brightness, their upper halves red."""
    path = tmp_path_factory.mktemp("video") / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 4, (64, 48))
    for number in range(FRAMES):
        frame = np.full((48, 64, 3), 20 * number, dtype=np.uint8)
        frame[:24] = (0, 0, 200)  # BGR
        writer.write(frame)
    writer.release()
    return path


def taken(source, most: int = FRAMES + 1) -> list:
    stop, parts = threading.Event(), []
    for part in source.parts(stop):
        if part is not None:
            parts.append(part)
            if len(parts) == most:
                break
    return parts


def test_every_frame_of_a_video_in_rgb(video):
    parts = taken(VideoFile(video, lambda key: False))
    assert [part.key.name for part in parts] == [f"frame {number:09d}" for number in range(FRAMES)]
    pixels = [np.asarray(part.image, dtype=int) for part in parts]
    assert pixels[0].shape == (48, 64, 3)
    assert [int(image[36, 32].mean()) for image in pixels] == pytest.approx([20 * n for n in range(FRAMES)], abs=4)
    assert pixels[3][12, 32] == pytest.approx([200, 0, 0], abs=8)


def test_frames_at_intervals_and_those_that_are_known(video):
    names = [part.key.name for part in taken(VideoFile(video, lambda key: False, interval=1.0))]
    assert names == [f"frame {number:09d}" for number in (0, 4, 8)]
    known = {part.key for part in taken(VideoFile(video, lambda key: False), most=5)}
    source = VideoFile(video, known.__contains__)
    assert [int(part.key.name[-2:]) for part in taken(source, most=3)] == [5, 6, 7]
    assert [int(part.key.name[-2:]) for part in taken(source)] == [7, 8, 9, 10, 11]  # tried again after a failure


def test_what_is_no_video_is_an_error(tmp_path, video):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="not a readable video"):
        VideoFile(tmp_path / "text.mp4", lambda key: False)
    copy = tmp_path / "line.avi"
    copy.write_bytes(video.read_bytes())
    source = VideoFile(copy, lambda key: False)
    copy.write_text("overwritten")
    with pytest.raises(OSError, match="not a readable video"):
        taken(source)


def test_a_video_that_ends_early_is_reported(tmp_path, video):
    lines: list[str] = []
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[: video.stat().st_size * 8 // 10])
    parts = taken(VideoFile(tmp_path / "cut.avi", lambda key: False, report=lines.append))
    assert 0 < len(parts) < FRAMES and len(lines) == 1 and f"of {FRAMES} frames" in lines[0]


@contextmanager
def mjpeg_server(frames: int):
    """Sends that many frames to each client, 50 a second, and closes; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for number in range(frames):
                body = io.BytesIO()
                grey(10 * (number % 20)).resize((64, 48)).save(body, "JPEG")
                part = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {body.tell()}\r\n\r\n".encode()
                try:
                    self.wfile.write(part + body.getvalue() + b"\r\n")
                except OSError:
                    return
                time.sleep(0.02)

        def log_message(self, *arguments) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/video.mjpg"
    finally:
        server.shutdown()
        server.server_close()


def test_an_mjpeg_stream(monkeypatch):
    with mjpeg_server(frames=400) as address:
        camera = Camera(address)
        parts = taken(camera, most=5)
        assert all(part.image.size == (64, 48) for part in parts) and len({part.key for part in parts}) == 5
        started = time.monotonic()
        taken(Camera(address, interval=0.2), most=3)
        assert time.monotonic() - started >= 0.4


def test_a_stream_that_ends_or_is_not_there_is_an_error():
    with mjpeg_server(frames=60) as address, pytest.raises(OSError, match="the stream has ended"):
        taken(Camera(address), most=1000)
    with pytest.raises(OSError, match="no stream"):
        taken(Camera(address))


def test_no_password_of_an_address_is_shown_or_kept():
    assert without_credentials("rtsp://user:pass@word@camera:554/live?a=1") == "rtsp://camera:554/live?a=1"
    assert without_credentials("http://camera/video") == "http://camera/video"
    assert without_credentials("/media/a@b/video.mp4") == "/media/a@b/video.mp4"
    with pytest.raises(OSError, match=r"^http://127\.0\.0\.1:9/video: no stream"):
        taken(Camera("http://user:secret@127.0.0.1:9/video"))


def test_addresses(tmp_path, video):
    assert source_address("http://camera/video") == "http://camera/video"
    assert source_address(f"{tmp_path}/.") == str(tmp_path.resolve())
    assert is_live("rtsp://camera") and is_live("/dev/null") and not is_live(str(tmp_path)) and not is_live(str(video))
    Image.new("L", (9, 9)).save(tmp_path / "one.png")
    for address, message in (
        ("ftp://camera", "streams begin with"),
        (str(tmp_path / "gone"), "no such folder, video file or device"),
        (str(tmp_path / "one.png"), "is one image"),
    ):
        with pytest.raises(ValueError, match=message):
            source_address(address)
    assert open_source("/dev/null", bool).is_live and not open_source(str(video), bool).is_live
    with pytest.raises(ValueError, match="every image of a folder is a part"):
        open_source(str(tmp_path), bool, interval=1.0)
    with pytest.raises(ValueError, match="a stream has no end"):
        open_source("http://camera", bool, once=True)
