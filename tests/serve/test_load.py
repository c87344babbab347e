"""Many clients, killed processes, and models that take each other's place: no answer is lost, doubled or mixed."""

import asyncio
import os
import random
import signal
from collections import Counter

import httpx
import pytest
from diffad.serve.settings import ServeSettings
from running import TOKEN, Running, png, running
from stub_model import save_stub

CLIENTS = 50
PATIENCE = 200  # times that one image is sent until it is given up


async def send(server: Running, requests: int, kills: int, swaps: int, models: list[str]) -> Counter:
    """Sends images of known grey levels, each until it is answered, and checks every answer.

    Args:
        requests: at least so many; until all kills and swaps are done and the last model has answered.
        models: paths; the model of offset i is the i-th, and version v is that of offset (v - 1) % len(models).

    Returns:
        Counts of `images` sent, of `answers`, of refusals by status, and of answers by `version N`.
    """
    counts = Counter()
    pictures = {level: png(level) for level in range(40, 120)}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limits = httpx.Limits(max_connections=None)

    async def client(http: httpx.AsyncClient) -> None:
        while counts["images"] < requests or not counts[f"version {swaps + 1}"] or counts["kills"] < kills:
            number = counts["images"]
            counts["images"] += 1
            level = 40 + number % 80
            for _ in range(PATIENCE):
                answer = await http.post(f"/predict?name=part {number}", content=pictures[level])
                if answer.status_code == 200:
                    break
                counts[answer.status_code] += 1
                assert answer.json()["retryable"], answer.text
                await asyncio.sleep(random.uniform(0, 0.1))
            model, (row,) = answer.json()["model"], answer.json()["images"]
            offset = (model["version"] - 1) % len(models)
            assert (row["name"], row["score"], model["digest"]) == (f"part {number}", level + offset, f"stub {offset}")
            counts["answers"] += 1
            counts[f"version {model['version']}"] += 1

    async def at_each(share: float, number: int, act) -> None:
        """Acts so many times, evenly over the requests."""
        for i in range(number):
            while counts["answers"] < (i + share) / number * requests:
                await asyncio.sleep(0.02)
            await act(i)

    async def kill(_: int) -> None:
        while not server.service.slot.is_ready:
            await asyncio.sleep(0.02)
        os.kill(server.service.slot.model.worker.process.pid, signal.SIGKILL)
        counts["kills"] += 1

    async with httpx.AsyncClient(base_url=server.address, headers=headers, timeout=120, limits=limits, trust_env=False) as http:

        async def swap(i: int) -> None:
            while True:  # labels of the versions agree; the new process may be started just when there are no recent images
                answer = await http.post("/model", json={"path": models[(i + 1) % len(models)]})
                if answer.status_code == 200:
                    return
                counts["refused swaps"] += 1
                await asyncio.sleep(0.1)

        clients = [asyncio.create_task(client(http)) for _ in range(CLIENTS)]
        disturbers = [asyncio.create_task(at_each(0.3, kills, kill)), asyncio.create_task(at_each(0.6, swaps, swap))]
        await asyncio.gather(*clients, *disturbers)
    return counts


def check(requests: int, kills: int, swaps: int, folder) -> Counter:
    models = [save_stub(folder / f"model{offset}", offset) for offset in range(3)]
    with running(models[0], ServeSettings(), TOKEN) as server:
        counts = asyncio.run(send(server, requests, kills, swaps, models))
        answers = counts["answers"]
        assert answers == counts["images"] >= requests
        assert sum(counts[f"version {version}"] for version in range(1, swaps + 2)) == answers
        assert all(counts[f"version {version}"] for version in range(1, swaps + 2))
        # A process that was just to be exchanged when it was killed is not started again.
        assert kills - swaps <= server.metric("diffad_worker_restarts_total") <= kills
        assert server.metric("diffad_model_swaps_total") == swaps
        # The server has judged what was answered, and nothing twice: its killed processes have answered nothing.
        assert server.metric("diffad_images_total", verdict="good") == answers
        assert server.metric("diffad_requests_total", route="/predict", status="200") == answers
        assert counts[503] == (server.metric("diffad_requests_total", route="/predict", status="503") or 0)
    print(dict(counts))
    return counts


def test_each_request_has_one_answer_of_one_model(tmp_path):
    check(300, 1, 2, tmp_path)


@pytest.mark.long
def test_each_of_100_000_requests_has_one_answer_of_one_model(tmp_path):
    counts = check(100_000, 20, 5, tmp_path)
    assert counts[429] > 0
