"""The served app: limits of what is sent, names under which it answers, no look-ups, and no files left behind."""

import http.client
import json
import os
import signal
import socket
import time
import uuid
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.parse import urlsplit

import new_process
import pytest
from app_images import part
from diffad.app.launch import RequestGuard, launch
from diffad.app.page import build_page
from tiny_pipeline import save_tiny_model

API = "/gradio_api"


@pytest.fixture(scope="module")
def served(pipe):
    """Host and port of the running app, and its blocks."""
    app = build_page(pipe, max_pixels=1_000_000)
    launch(app, prevent_thread_lock=True, quiet=True, max_megabytes=0.1)
    yield urlsplit(app.local_url).netloc, app
    app.close()


def request(address: str, method: str, path: str, body=None, headers=()) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, path, body, dict(headers))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def send_file(address: str, content: bytes, name: str = "part.png") -> tuple[int, bytes]:
    """As the page does."""
    head = f'--limit\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--limit--\r\n"
    return request(address, "POST", f"{API}/upload", body, {"Content-Type": "multipart/form-data; boundary=limit"})


def call(address: str, app, name: str, data: list) -> tuple[str, bool]:
    """What a function of that name answers to the page in text, and whether it ends well."""
    index = next(index for index, function in app.fns.items() if function.name == name)
    session = uuid.uuid4().hex
    body = json.dumps({"data": data, "fn_index": index, "session_hash": session})
    assert request(address, "POST", f"{API}/queue/join", body, {"Content-Type": "application/json"})[0] == 200
    _, stream = request(address, "GET", f"{API}/queue/data?session_hash={session}")
    messages = [json.loads(line.removeprefix(b"data: ")) for line in stream.splitlines() if line.startswith(b"data: ")]
    (completed,) = [message for message in messages if message["msg"] == "process_completed"]
    return stream.decode(), completed["success"]


def uploaded(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_a_file_beyond_the_limit_is_answered_with_413(served):
    address, _ = served
    assert send_file(address, bytes(99_000))[0] == 200
    status, content = send_file(address, bytes(101_000))
    assert status == 413 and b"exceeded" in content


def test_nothing_that_was_inspected_is_kept_for_others(served):
    assert not getattr(served[1], "run_history", False)  # before 6.24 gradio has none


def test_the_limits_are_20_megabytes_and_50_megapixels_by_default(pipe):
    app = build_page(pipe)
    launch(app, prevent_thread_lock=True, quiet=True)
    try:
        assert app.max_file_size == 20_000_000
        assert send_file(urlsplit(app.local_url).netloc, bytes(20_100_000))[0] == 413
    finally:
        app.close()


def test_an_image_beyond_the_limit_is_answered_with_a_sentence(served, files):
    address, app = served
    part(1, size=(1100, 1000)).resize((1100, 1000)).quantize(2).save(files / "large.png")
    (path,) = json.loads(send_file(address, (files / "large.png").read_bytes(), "large.png")[1])
    text, success = call(address, app, "inspect", [uploaded(path), 5])
    assert success and "large.png: 1.1 megapixels, more than the 1 that are taken" in text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:7860", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:7860", 200),
        ("[::1]:7860", 200),
        (socket.gethostname(), 200),
        ("elsewhere.example", 400),
        ("elsewhere.example:7860", 400),
        ("127.0.0.1.elsewhere.example", 400),
        ("localhost.elsewhere.example", 400),
        ("elsewhere.gradio.live", 400),
        ("user@elsewhere.example:80", 400),
        ("[", 400),
        ("", 400),
    ],
)
def test_requests_in_other_names_are_refused(served, host, status):
    for path in ("/", f"{API}/info", "/config"):
        assert request(served[0], "GET", path, headers={"Host": host})[0] == status
    if status != 200:
        assert request(served[0], "POST", f"{API}/upload", b"", {"Host": host})[0] == status


def test_further_names_can_be_allowed():
    guard = RequestGuard(None, ["Inspection.example.com", ".gradio.live"])
    assert guard.is_known("inspection.example.com:443") and guard.is_known("abc.gradio.live")
    assert not guard.is_known("example.com") and not guard.is_known("gradio.live.example.com")


def test_addresses_that_are_posted_are_neither_fetched_nor_looked_up(served, monkeypatch):
    address, app = served
    host = address.partition(":")[0]
    outside = []
    known = socket.getaddrinfo

    def guarded(name, *arguments, **options):
        if name not in (host, "localhost", None):
            outside.append(name)
            raise OSError("no look-ups in tests")
        return known(name, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)
    for url in ("http://elsewhere.example/1.png", "HTTPS://elsewhere.example/1.png"):
        for name, data in (
            ("inspect", [uploaded(url), 5]),
            ("inspect", [None, uploaded(url)]),  # in place of a number
            ("inspect_batch", [[uploaded(url)], 5]),
            ("repair", [{**uploaded("x"), "url": url}, 5]),
        ):
            assert not call(address, app, name, data)[1]
        for path in (f"{API}/file={url}", f"{API}/proxy={url}", f"{API}/file=%20{url}"):
            assert request(address, "GET", path.replace(" ", "%20"))[0] in (403, 404)
    assert not outside


def test_sigterm_ends_the_app_and_leaves_no_files(tmp_path):
    save_tiny_model(tmp_path / "model")
    part(1).save(tmp_path / "part.png")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["app", tmp_path / "model", "--no-browser", "--port", port]
    printed, environment = tmp_path / "printed.txt", {"TMPDIR": str(temporary)}
    process = new_process.start(new_process.module, "diffad.cli", *words, printed=printed, environment=environment)
    address = f"127.0.0.1:{port}"
    try:
        _wait_until_answered(process, printed, address)
        assert b"model" in request(address, "GET", "/")[1]
        (path,) = json.loads(send_file(address, (tmp_path / "part.png").read_bytes())[1])
        assert Path(path).is_relative_to(temporary) and Path(path).is_file()
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    finally:
        process.kill()
    errors = printed.read_text()
    assert process.exitcode == 0, errors
    assert list(temporary.iterdir()) == [] and "Traceback" not in errors


def _wait_until_answered(process: BaseProcess, printed: Path, address: str) -> None:
    stop = time.monotonic() + 120
    while time.monotonic() < stop and process.is_alive():
        try:
            request(address, "GET", "/")
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the app does not answer: {printed.read_text()}")
