"""Bounds of a server: queue, bodies, time, and who may use it."""

import atexit
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from diffad.serve.auth import BearerToken, check_exposure, is_loopback, read_token
from diffad.serve.settings import ServeSettings
from running import TOKEN, form, png, running
from stub_model import HANGS, load_stub, save_stub


def test_larger_bodies_are_refused(server):
    assert server.client.post("/predict", content=png(60) + b"\0" * 99_000).status_code == 200
    whole = server.client.post("/predict", content=b"\0" * 100_001)
    # Without a stated length it shows while the body is read.
    in_parts = server.client.post("/predict", content=iter([b"\0" * 60_000] * 2))
    in_a_form = server.client.post("/predict", files=form(b"\0" * 100_001))
    of_json = server.client.post("/feedback", json={"name": "x" * 100_001})
    header = {"Content-Type": "application/json"}
    json_in_parts = server.client.post("/feedback", content=iter([b"[" * 60_000] * 2), headers=header)
    for answer in (whole, in_parts, in_a_form, of_json, json_in_parts):
        assert answer.status_code == 413 and answer.json()["error"].startswith("the body has more than 0.1 MB")
        assert not answer.json()["retryable"]


def test_more_images_than_the_queue_holds_are_refused(server):
    assert server.client.post("/predict", files=form(*[png(60)] * 8)).status_code == 200
    answer = server.client.post("/predict", files=form(*[png(60)] * 9))
    assert answer.status_code == 413 and answer.json()["error"] == "9 images in one request; send at most 8"


def test_a_slow_body_is_refused_and_holds_no_place(server):
    def slowly():
        yield png(60)
        time.sleep(1.5)
        yield b""

    answer = server.client.post("/predict", content=slowly())
    assert answer.status_code == 408 and answer.json()["retryable"]
    assert server.service.batcher.held == 0


def test_a_full_queue_says_when_to_come_again(tmp_path):
    settings = ServeSettings(capacity=4, batch_size=1)
    with running(save_stub(tmp_path / "model", seconds=0.3), settings) as server, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda level: server.client.post("/predict", content=png(level)), range(50, 60)))
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) == 4 and statuses.count(429) == 6
        for level, answer in zip(range(50, 60), answers, strict=True):
            if answer.status_code == 200:
                assert answer.json()["images"][0]["score"] == level
            else:
                assert answer.json()["retryable"] and 1 <= int(answer.headers["Retry-After"]) <= 2
        assert server.metric("diffad_requests_total", route="/predict", status="429") == 6
        assert server.metric("diffad_queue_images") == 0
        # Several images that do not fit beside those that are there.
        with ThreadPoolExecutor(1) as other:
            first = other.submit(server.client.post, "/predict", files=form(png(60), png(61)))
            time.sleep(0.1)
            assert server.client.post("/predict", files=form(*[png(60)] * 3)).status_code == 429
            assert server.metric("diffad_queue_images") == 2
            assert first.result().status_code == 200


def test_what_waits_together_is_computed_together(tmp_path):
    with running(save_stub(tmp_path / "model", seconds=0.1), ServeSettings(batch_size=4)) as server:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda level: server.client.post("/predict", content=png(level)), range(50, 62)))
        assert [answer.json()["images"][0]["score"] for answer in answers] == list(range(50, 62))
        assert server.metric("diffad_batch_images_sum") == 12
        assert 3 <= server.metric("diffad_batch_images_count") <= 6


def test_nobody_enters_without_the_token(tmp_path):
    with running(save_stub(tmp_path / "model"), token=TOKEN) as server:
        assert server.client.post("/predict", content=png(60)).status_code == 200
        stranger = httpx.Client(base_url=server.address, trust_env=False)
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"bearer {TOKEN}é"}):
            sent = {name: value.encode("latin-1") for name, value in header.items()}
            for method, path in (
                ("POST", "/predict"),
                ("POST", "/model"),
                ("POST", "/feedback"),
                ("GET", "/metrics"),
                ("GET", "/monitor"),
            ):
                answer = stranger.request(method, path, headers=sent, content=b"\0" * 100)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/docs", "/openapi.json", "/docs/files/swagger-ui.css"):
            assert stranger.get(path).status_code == 200
        # Behind a proxy the server is asked for by any name.
        assert stranger.get("/ready", headers={"Host": "inspection.example.com"}).status_code == 200
        assert "HTTPBearer" in stranger.get("/openapi.json").json()["components"]["securitySchemes"]
        assert server.metric("diffad_requests_total", route="/predict", status="401") == 4


def test_without_a_token_the_server_has_names_of_this_machine_only(server):
    for host in ("elsewhere.example.com", "elsewhere.example.com:8000", "localhost.example.com", "192.168.0.1", "[::1", "a@b"):
        answer = server.client.get("/metrics", headers={"Host": host})
        assert answer.status_code == 400 and f"not as {host}" in answer.json()["error"] and not answer.json()["retryable"]
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert server.client.get("/metrics", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/metrics/", "/Health", "//health", "/docs/../metrics", "/health/x", "/readyx"])
def test_only_the_open_paths_are_open(path):
    assert not BearerToken(None, TOKEN)._is_open(path) or path == "/docs/../metrics"


def test_a_path_that_leaves_the_open_ones_leads_nowhere(tmp_path):
    with running(save_stub(tmp_path / "model"), token=TOKEN) as server:
        for path in ("/docs/../metrics", "/docs/files/../../metrics", "/docs/files/%2e%2e/%2e%2e/setup.py"):
            answer = httpx.get(httpx.URL(server.address).copy_with(raw_path=path.encode()), trust_env=False)
            assert answer.status_code in (401, 404)


def test_a_token_is_long_and_from_one_place(tmp_path):
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    assert read_token(file, {"DIFFAD_TOKEN": "another"}) == "0123456789abcdef"
    assert read_token(None, {"DIFFAD_TOKEN": "0123456789abcdeg"}) == "0123456789abcdeg"
    assert read_token(None, {}) is None
    for short in ("", "0123456789abcde", "0123456789 abcdef", "0123456789abcdeé"):
        file.write_text(short)
        with pytest.raises(ValueError, match=f"^{file}: a token is at least 16"):
            read_token(file, {})
    with pytest.raises(ValueError, match=r"^DIFFAD_TOKEN: "):
        read_token(None, {"DIFFAD_TOKEN": ""})


def test_beyond_this_machine_a_token_is_needed():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
        check_exposure(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.com", "localhost.example.com", ""):
        check_exposure(host, TOKEN)
        with pytest.raises(ValueError, match="needs a token"):
            check_exposure(host, None)


def test_a_batch_that_hangs_is_ended(tmp_path):
    with running(save_stub(tmp_path / "model"), ServeSettings(batch_seconds=1)) as server:
        first = server.service.slot.model.worker.process.pid
        answer = server.client.post("/predict", content=png(HANGS))
        assert answer.status_code == 503 and answer.json()["retryable"] and "more than 1 seconds" in answer.json()["error"]
        assert server.client.post("/predict", content=png(60)).json()["images"][0]["score"] == 60
        assert server.service.slot.model.worker.process.pid != first


def test_accepted_requests_are_answered_before_the_end(tmp_path):
    with running(save_stub(tmp_path / "model", seconds=0.2), ServeSettings(batch_size=1)) as server:
        answers = []

        def ask(level: int) -> None:
            answers.append(server.client.post("/predict", content=png(level)).json()["images"][0]["score"])

        threads = [threading.Thread(target=ask, args=(level,)) for level in range(50, 55)]
        for thread in threads:
            thread.start()
        while server.service.batcher.held < 5:
            time.sleep(0.01)
        server.server.should_exit = True
        for thread in threads:
            thread.join()
        assert sorted(answers) == list(range(50, 55))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.address}/health", trust_env=False)


def load_slow_to_end(path: str):
    """A model whose process takes long to end by itself, as those with large libraries do on a busy machine."""
    atexit.register(time.sleep, 60)
    return load_stub(path)


def test_an_idle_server_ends_at_once(tmp_path):
    with running(save_stub(tmp_path / "model"), load=load_slow_to_end) as server:
        process = server.service.slot.model.worker.process
        server.client.post("/predict", content=png(60)).raise_for_status()  # its connection stays open
        end = time.monotonic()
        server.server.should_exit = True
        process.join()
        while server.loop.is_running():
            time.sleep(0.01)
        assert time.monotonic() - end < 2
