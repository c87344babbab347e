"""`diffad predict` on a real Ray cluster of two nodes: images in an object store, a worker killed, the table of one process."""

import io
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffad.cli.loading import load_scoring
from diffad.cluster.evaluation import score_by_workers
from diffad.cluster.prediction import rows_of_workers
from diffad.cluster.ray_data import Cluster
from diffad.evaluation.evaluate import evaluate_model
from diffad.evaluation.scored_samples import score_samples
from diffad.jobs.predict import PredictionSettings, predict_folder
from PIL import Image
from stub_model import load_stub, save_stub
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline
from two_nodes import two_nodes, worker_pids

pytest.importorskip("ray.data", reason="needs Ray: pip install 'diffad[ray]'")
pytest.importorskip("moto.server", reason="needs an object store: pip install 'moto[server]'")
IMAGES, BATCH = 120, 2
SETTINGS = PredictionSettings(0.05)


@pytest.fixture(scope="module")
def store():
    """A bucket of images, one of which is broken; gives its address."""
    import boto3  # the store's own client: pyarrow 17 fails to write to moto's newest server, from which it reads
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        server.start()
        host, region = f"127.0.0.1:{server.get_host_and_port()[1]}", "us-east-1"
        files = boto3.client("s3", endpoint_url=f"http://{host}", region_name=region)
        files.create_bucket(Bucket="parts")
        for i in range(IMAGES):
            file = io.BytesIO()
            Image.new("RGB", (16, 12), (2 * i,) * 3).save(file, format="PNG")
            body = b"no image" if i == 50 else file.getvalue()
            files.put_object(Bucket="parts", Key=f"new/{i % 3}/{i:03d}.png", Body=body)
        yield f"s3://parts/new?endpoint_override={host}&scheme=http&region={region}"
        server.stop()


@pytest.fixture(scope="module")
def address(store):
    """Of a cluster whose nodes have the store's credentials in their environment."""
    with two_nodes() as found:
        yield found


def kill_one_worker(journal: Path, killed: list[int]) -> None:
    """As soon as there are rows."""
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    killed += worker_pids()[:1]
    os.kill(killed[0], signal.SIGKILL)


def test_the_table_is_that_of_one_process_though_a_worker_is_killed(address, store, tmp_path):
    path = save_stub(tmp_path / "model", seconds=0.05)
    model = load_stub(path)
    predict_folder(load_stub(save_stub(tmp_path / "fast")), store, tmp_path / "alone.parquet", SETTINGS, BATCH)
    output, killed = tmp_path / "ray.parquet", []
    killer = threading.Thread(target=kill_one_worker, args=(output.with_name("ray.parquet.journal"), killed))
    killer.start()
    engine = rows_of_workers(Cluster(address), partial(load_stub, path))
    summary = predict_folder(model, store, output, SETTINGS, BATCH, engine)
    killer.join()
    assert len(killed) == 1 and (summary.images, summary.unreadable) == (IMAGES, 1)
    table = pq.read_table(output)
    assert table.equals(pq.read_table(tmp_path / "alone.parquet")) and len(set(table["path"].to_pylist())) == IMAGES


def test_more_workers_than_cpus_are_refused_at_once(address):
    with pytest.raises(ValueError, match="--workers 3: Ray's cluster has 2 CPUs"):
        list(Cluster(address, 3).map(len, [1], 1))


@pytest.mark.long
def test_what_a_worker_raises_is_raised(address, store, tmp_path):
    path = save_stub(tmp_path / "model", offset=1)
    engine = rows_of_workers(Cluster(address), partial(load_stub, save_stub(tmp_path / "other")))
    with pytest.raises(ValueError, match="another model lies there"):
        predict_folder(load_stub(path), store, tmp_path / "out.parquet", SETTINGS, BATCH, engine)


@pytest.mark.long
def test_metrics_are_those_of_one_process(address, tmp_path):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    pipe.save_pretrained(tmp_path / "model")
    parts = save_test_images(tmp_path / "parts", defective=4)
    load = partial(load_scoring, str(tmp_path / "model"), "cpu", None, None, 1)
    before = torch.get_num_threads()
    found = []
    for score in (score_samples, score_by_workers(Cluster(address), load, str(parts))):
        output = tmp_path / str(len(found))
        found.append(evaluate_model(load(), parts, output, batch_size=2, map_size=(24, 40), report=False, score=score))
    torch.set_num_threads(before)
    assert {**found[0], "cost": None} == {**found[1], "cost": None}
    assert (tmp_path / "0/scores.csv").read_bytes() == (tmp_path / "1/scores.csv").read_bytes()
