"""benchmark_peers.py: which images a peer is fitted and scored on, and how anomalib's models are fed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffad import FeatureExtractor
from diffad.data import DataError, training_samples
from diffad_training.benchmarks import peers as benchmark_peers
from PIL import Image

CATEGORIES = {"nut": 0, "bolt": 100}  # and the grey level of its first image
PEER = "Stand-in"


class StandIn(torch.nn.Module):
    """Records the grey levels of what it is fitted on and scored on; its map is the image's red channel."""

    def __init__(self):
        super().__init__()
        self.fitted, self.scored = [], []

    def forward(self, images: torch.Tensor):
        levels = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        (self.fitted if self.training else self.scored).extend(levels)
        return SimpleNamespace(anomaly_map=images[:, :1], pred_score=images[:, 0].amax(dim=(1, 2)))


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """The models that were built, in order."""
    built = []

    def build():
        built.append(StandIn())
        return built[-1]

    def finish(model, candidates):
        assert not model.scored and not torch.is_grad_enabled()

    monkeypatch.setattr(benchmark_peers, "PEERS", {PEER: (build, finish)})
    monkeypatch.setattr(benchmark_peers, "PEER_RESULTS", tmp_path / "results" / "peer_results.jsonl")
    monkeypatch.setattr(benchmark_peers, "write_tables", lambda: None)
    return built


@pytest.fixture
def data(tmp_path):
    """Two categories of flat images, every one of its own grey level; the defects are bright squares."""

    def save(path, level, square=None):
        pixels = np.full((16, 16), level, np.uint8)
        if square is not None:
            pixels[8:12, 8:12] = square
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for category, first in CATEGORIES.items():
        folder = tmp_path / "data" / category
        for i in range(9):
            save(folder / f"train/good/{i}.png", first + i)
        for i in range(2):
            save(folder / f"test/good/{i}.png", first + 20 + i)
            save(folder / f"test/dent/{i}.png", first + 30 + i, 250)
            save(folder / f"ground_truth/dent/{i}_mask.png", 0, 255)
    return tmp_path / "data"


def lines(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "results" / "peer_results.jsonl").read_text().splitlines()]


def test_one_model_each_sees_its_own_good_images_only(data, stand_ins, tmp_path):
    benchmark_peers.main(["--data_root", str(data), "--categories", *CATEGORIES, "--seeds", "0", "1"])
    first = [0, 100, 0, 100]
    assert [model.fitted for model in stand_ins] == [list(range(level, level + 9)) for level in first]
    assert [sorted(model.scored) for model in stand_ins] == [[level + i for i in (20, 21, 30, 31)] for level in first]
    assert [(line["category"], line["seed"]) for line in lines(tmp_path)] == [
        (category, seed) for seed in (0, 1) for category in CATEGORIES
    ]
    assert all("unified" not in line and line["images"]["train"] == 9 for line in lines(tmp_path))
    assert all(line["metrics"]["image_auroc"] == 1.0 and line["metrics"]["pixel_ap"] > 0.9 for line in lines(tmp_path))


def test_one_model_of_all_is_scored_on_each_category(data, stand_ins, tmp_path):
    options = ["--unified", "--coreset_candidates", "2000"]
    benchmark_peers.main(["--data_root", str(data), "--categories", *CATEGORIES, *options])
    (model,) = stand_ins
    assert model.fitted == [*range(9), *range(100, 109)]
    assert sorted(model.scored) == [20, 21, 30, 31, 120, 121, 130, 131]
    kept = lines(tmp_path)
    assert [line["category"] for line in kept] == list(CATEGORIES)
    assert all(line["unified"] and line["unified_categories"] == list(CATEGORIES) for line in kept)
    assert kept[0]["images"] == {"train": 18, "good": 2, "defective": 2}
    # The kept command gives the same run again.
    words = benchmark_peers.shlex.split(kept[0]["command"])[2:]
    words[words.index("DATA")] = str(data)
    benchmark_peers.main(words)
    assert stand_ins[1].fitted == model.fitted and lines(tmp_path)[2]["metrics"] == kept[0]["metrics"]


def test_bad_input_is_refused_before_anything_is_fitted(data, stand_ins, capsys):
    for path in (data / "bolt" / "ground_truth").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="bolt: has no ground-truth masks"):
        benchmark_peers.main(["--data_root", str(data), "--categories", *CATEGORIES])
    with pytest.raises(SystemExit):
        benchmark_peers.main(["--data_root", str(data), "--categories", "nut", "--coreset_candidates", "100"])
    assert "at least the coreset's 1500 patches" in capsys.readouterr().err and not stand_ins


@pytest.mark.parametrize("patches, candidates, coreset", [(7 * 1024, None, 1500), (7 * 1024, 3000, 1500), (1000, 3000, 1000)])
def test_coreset_has_its_size_and_comes_from_distinct_candidates(patches, candidates, coreset):
    whole = torch.arange(patches, dtype=torch.float32)[:, None]
    seen = {}

    def subsample(ratio):
        (store,) = model.embedding_store
        seen.update(patches=store, coreset=int(len(store) * ratio))  # as anomalib rounds

    model = SimpleNamespace(embedding_store=list(whole.split(900)), subsample_embedding=subsample)
    benchmark_peers.fit_coreset(model, candidates)
    assert seen["coreset"] == coreset
    drawn = seen["patches"][:, 0].tolist()
    assert len(set(drawn)) == len(drawn) == min(patches, candidates or patches)
    assert (drawn == whole[:, 0].tolist()) == (candidates is None or candidates >= patches)


def test_anomalib_peers_see_diffads_features_and_find_a_defect(data, monkeypatch):
    pytest.importorskip("anomalib")
    extractor = FeatureExtractor.from_lite_package(levels=(1, 2, 3))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    padim = benchmark_peers.padim()
    for level, features in zip(extractor.network(images), padim.feature_extractor(images).values()):
        torch.testing.assert_close(level.contiguous(), features, rtol=1e-4, atol=1e-4)
    assert list(benchmark_peers.patchcore().feature_extractor(images)) == ["blocks.2", "blocks.4"]

    monkeypatch.setattr(benchmark_peers, "CORESET_PATCHES", 50)
    for peer in benchmark_peers.PEERS:
        model, cost = benchmark_peers.fit(peer, training_samples(data / "nut"), 0, 2000)
        maps, scores = benchmark_peers.score(model, benchmark_peers.evaluation_samples(data / "nut"))
        assert maps.shape == (4, 256, 256) and cost["fit_seconds"] > 0
        labels = [sample.is_defective for sample in benchmark_peers.evaluation_samples(data / "nut")]
        assert min(scores[labels]) > max(scores[~np.array(labels)])
        top = np.unravel_index(maps[labels.index(True)].argmax(), (256, 256))
        assert all(100 < place < 220 for place in top)  # the square is at 128 to 192

    # Its projection draws from numpy's global generator, its first patch from torch's.
    again, _ = benchmark_peers.fit("PatchCore (anomalib)", training_samples(data / "nut"), 0, 2000)
    assert torch.equal(again.memory_bank, model.memory_bank)
