"""Rows that workers make are those of one process, or the run ends with an error; without Ray."""

import shutil
from functools import partial

import pyarrow.parquet as pq
import pytest
from diffad.cluster.prediction import rows_of_workers
from diffad.data import DataError
from diffad.jobs.predict import PredictionSettings, predict_folder
from in_process import InProcess
from PIL import Image
from stub_model import load_stub, save_stub

SETTINGS = PredictionSettings(0.05)


@pytest.fixture
def model(tmp_path):
    return save_stub(tmp_path / "model")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(23):
        Image.new("RGB", (16, 12), (9 * i,) * 3).save(folder / f"{i:02d}.png")
    (folder / "07.png").write_bytes(b"no image")
    return folder


def predict(model, folder, output, cluster=None, settings=SETTINGS, load=None):
    engine = {} if cluster is None else {"engine": rows_of_workers(cluster, load or partial(load_stub, model))}
    return predict_folder(load_stub(model), folder, output, settings, 2, **engine)


def test_tables_and_pictures_are_those_of_one_process(model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, cluster in {"here": None, "there": InProcess()}.items():
        settings = PredictionSettings(0.05, masks=tmp_path / name)
        summary = predict(model, "images", tmp_path / f"{name}.parquet", cluster, settings)
        assert (summary.images, summary.unreadable) == (23, 1)
    here, there = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("here", "there"))
    assert here.equals(there) and len(set(here["score"].to_pylist())) == 23
    masks = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there")]
    assert masks[0] == masks[1] and len(masks[0]) == 22


def test_a_run_goes_on_with_the_other_engine(model, folder, tmp_path):
    predict(model, folder, tmp_path / "whole.jsonl")
    output = tmp_path / "out.jsonl"

    def interrupted(tables):
        yield from tables[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, folder, output, InProcess(interrupted))
    assert len((tmp_path / "out.jsonl.journal").read_bytes().splitlines()) == 1 + 2 * 4
    predict(model, folder, output)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tables: tables[:-1],
        lambda tables: tables[:2] + tables[3:],
        lambda tables: [tables[0], *tables],
        lambda tables: [tables[1], tables[0], *tables[2:]],
        lambda tables: [tables[0].slice(1), *tables[1:]],
    ],
    ids=["the last lost", "one lost", "doubled", "exchanged", "cut"],
)
def test_rows_that_are_lost_or_doubled_end_the_run(model, folder, tmp_path, spoil):
    with pytest.raises(RuntimeError, match="Ray gave"):
        predict(model, folder, tmp_path / "out.parquet", InProcess(spoil))
    assert not (tmp_path / "out.parquet").exists()


def test_a_worker_with_another_model_is_refused(model, folder, tmp_path):
    other = save_stub(tmp_path / "other", offset=1)
    with pytest.raises(ValueError, match="another model lies there"):
        predict(model, folder, tmp_path / "out.parquet", InProcess(), load=partial(load_stub, other))


def test_a_worker_that_does_not_see_the_folder_does_not_call_all_images_missing(model, folder, tmp_path):
    class Elsewhere(InProcess):
        def map(self, work, items, batch_size):
            shutil.move(folder, tmp_path / "moved")
            return super().map(work, items, batch_size)

    with pytest.raises(DataError, match="images is not there"):
        predict(model, folder, tmp_path / "out.parquet", Elsewhere())
