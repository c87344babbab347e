"""A model that takes another's place, or is started again: each request has one answer of one model."""

import os
import signal
import threading
import time
from collections import Counter

import pytest
from diffad.serve.settings import ServeSettings
from running import TOKEN, Running, form, png, running
from stub_model import KILLS, save_stub


class Load:
    """Clients that send images without pause, and check that each answer is wholly of one model.

    Args:
        offsets: of the models by version; a score less its offset is the image's grey level.
    """

    def __init__(self, server: Running, offsets: dict[int, int], clients: int = 6):
        self.server, self.offsets, self.answers, self.problems = server, offsets, Counter(), []
        self.refused: Counter[int] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(50 + 10 * i,)) for i in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait(self, answers: int) -> None:
        goal = self.answers.total() + answers
        while self.answers.total() < goal and not self.problems:
            time.sleep(0.01)

    def _ask(self, level: int) -> None:
        images = form(png(level), png(level + 1), png(level + 2))
        while not self._stop.is_set():
            answer = self.server.client.post("/predict", files=images)
            if answer.status_code != 200:
                self.refused[answer.status_code] += 1
                if not answer.json()["retryable"]:
                    self.problems.append(answer.text)
                continue
            model, rows = answer.json()["model"], answer.json()["images"]
            offset = self.offsets[model["version"]]
            expected = [level + offset, level + 1 + offset, level + 2 + offset]
            if [row["score"] for row in rows] != expected or model["digest"] != f"stub {offset}":
                self.problems.append(answer.text)
            self.answers[model["version"]] += 1


@pytest.fixture
def models(tmp_path):
    """Paths of models by their offsets: 1 gives the labels of 0 on levels below 135, and 100 calls them defective."""
    return {offset: save_stub(tmp_path / f"model{offset}", offset, 0.002) for offset in (0, 1, 2, 100)}


def exchange(server: Running, path: str, **options):
    return server.client.post("/model", json={"path": path, **options})


def test_no_request_is_lost_or_mixed_while_models_are_exchanged(models):
    with running(models[0], ServeSettings(batch_size=12), TOKEN) as server:
        former = server.service.slot.model.worker.process
        with Load(server, {1: 0, 2: 1, 3: 2}) as load:
            load.wait(20)
            for version, offset in ((2, 1), (3, 2)):
                answer = exchange(server, models[offset])
                assert answer.status_code == 200, answer.text
                found = answer.json()
                assert found["model"] == {"digest": f"stub {offset}", "version": version}
                assert found["agreement"] == 1 and found["compared"] > 10 and found["differing"] == []
                load.wait(20)
        assert not load.problems and not load.refused
        assert all(load.answers[version] >= 10 for version in (1, 2, 3))
        assert not former.is_alive()
        assert server.metric("diffad_model_swaps_total") == 2
        assert server.metric("diffad_model_version", digest="stub 2") == 3
        assert server.client.get("/ready").json()["model"]["version"] == 3
        # The monitor is the new model's.
        assert server.client.get("/monitor").json()["categories"][0]["parts"] == 3 * load.answers[3]


def test_a_model_that_judges_otherwise_is_refused(models):
    with running(models[0], token=TOKEN) as server:
        answer = exchange(server, models[1])
        assert answer.status_code == 409 and "no images have been judged yet" in answer.json()["error"]
        server.client.post("/predict", files=form(*[png(level) for level in (60, 70, 80, 200)]))
        answer = exchange(server, models[100])
        assert answer.status_code == 409
        assert "on 25 % of 4 recent images, less than 95 %: 0.png (good, now defective)" in answer.json()["error"]
        assert server.client.get("/ready").json()["model"] == {"digest": "stub 0", "version": 1}
        answer = exchange(server, models[100], force=True).json()
        assert answer["agreement"] == 0.25 and answer["model"]["version"] == 2
        expected = {"name": "0.png", "label": "good", "new_label": "defective", "score": 60, "new_score": 160}
        assert answer["differing"][0] == expected and len(answer["differing"]) == 3
        # Labels of the former model count no more.
        assert exchange(server, models[0]).status_code == 409
        assert exchange(server, models[0], force=True).json()["agreement"] is None


def test_what_can_not_be_loaded_changes_nothing(models, tmp_path):
    with running(models[0], token=TOKEN) as server:
        for path, message in ((tmp_path, "is not a stub"), (tmp_path / "gone", "no such folder on the server's machine")):
            answer = exchange(server, str(path), force=True)
            assert answer.status_code == 422 and answer.json()["error"] == f"{path}: {message}"
        assert server.client.post("/predict", content=png(60)).json()["model"]["version"] == 1
        assert server.metric("diffad_model_swaps_total") == 0


def test_without_a_token_no_model_is_exchanged(server, tmp_path):
    answer = exchange(server, save_stub(tmp_path / "other"), force=True)
    assert answer.status_code == 403 and "--token-file" in answer.json()["error"]


def test_a_killed_process_is_started_again(models):
    with running(models[0]) as server:
        with Load(server, {1: 0}) as load:
            for _ in range(2):
                load.wait(20)
                os.kill(server.service.slot.model.worker.process.pid, signal.SIGKILL)
                load.wait(20)
        assert not load.problems and set(load.refused) <= {503}
        assert server.metric("diffad_worker_restarts_total") == 2


def test_an_image_that_kills_is_refused_and_the_next_one_is_judged(models, tmp_path):
    with running(models[0]) as server:
        answer = server.client.post("/predict", content=png(KILLS))
        assert answer.status_code == 503 and answer.json()["retryable"] and answer.headers["Retry-After"] == "2"
        assert server.client.get("/ready").status_code == 503 and server.client.get("/health").status_code == 200
        assert server.client.post("/predict", content=png(60)).json()["images"][0]["score"] == 60
        assert server.client.get("/ready").status_code == 200
        # Started again from a folder whose content has changed, it is another model.
        (tmp_path / "model0/offset").write_text("5")
        server.client.post("/predict", content=png(KILLS))
        answer = server.client.post("/predict", content=png(60)).json()
        assert answer["model"] == {"digest": "stub 5", "version": 2} and answer["images"][0]["score"] == 65


def test_a_model_that_can_not_be_loaded_is_not_served(tmp_path):
    from diffad.serve.run import listen, run
    from stub_model import load_stub

    with listen("127.0.0.1", 0) as listening, pytest.raises(ValueError, match=f"^{tmp_path}: is not a stub$"):
        run(load_stub, str(tmp_path), ServeSettings(), listening, None)
