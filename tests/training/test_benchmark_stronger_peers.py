"""stronger_peers.py: positional matching against a plain loop, anomalib's models as they are changed, and what is kept."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffad import FeatureExtractor
from diffad.data import DataError, training_samples
from diffad_training.benchmarks import peers, positional_matching, stronger_peers, trained_peers
from diffad_training.benchmarks.positional_matching import PositionalMatching, nearest_around
from torch.nn import functional as F

PEER, OTHER = "Stand-in", "Other stand-in"
COLUMNS = ["image_auroc", "pixel_auroc", "pixel_ap", "aupro_30", "images_per_second"]
CATEGORIES = ("grid", "screw")


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_nearest_vector_around_a_place_is_that_of_a_plain_loop(radius):
    generator = torch.Generator().manual_seed(radius)
    vectors, bank = torch.randn(5, 4, 6, generator=generator), torch.randn(24, 3, 5, generator=generator)
    found = nearest_around(vectors, bank, radius)
    for y in range(4):
        for x in range(6):
            rows, columns = range(max(0, y - radius), min(4, y + radius + 1)), range(max(0, x - radius), min(6, x + radius + 1))
            known = torch.cat([bank[row * 6 + column] for row in rows for column in columns])
            nearest = min((vectors[:, y, x] - one).square().mean().sqrt() for one in known)
            torch.testing.assert_close(found[y, x], nearest)


def test_places_and_levels_are_matched_as_anomalibs_rad_matches_them():
    """Of vectors of length 1 the squared distance is twice RAD's."""
    rad = pytest.importorskip("anomalib.models.image.rad.torch_model").RadModel
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(5, 4, 6, generator=generator), dim=0)
    bank = F.normalize(torch.randn(24, 3, 5, generator=generator), dim=2)
    own = SimpleNamespace(pos_radius=1, _neighborhood_plans={})
    own._neighborhood_plan = lambda grid: rad._neighborhood_plan(own, grid)
    expected = rad._score_positional(own, vectors.flatten(1).t(), bank, (4, 6))
    found = nearest_around(vectors, bank, 1).square() * 5 / 2
    torch.testing.assert_close(found.flatten(), expected)


def levels_of_tone(images: torch.Tensor) -> list[torch.Tensor]:
    """Two grids of the images, and their red as a vector: its angle is the tone of the whole."""
    red = images[:, :1].mean(dim=(2, 3), keepdim=True)
    return [F.avg_pool2d(images, 2), F.avg_pool2d(images, 4), torch.cat([red, 1 - red], dim=1)]


def fitted(images: torch.Tensor, **settings) -> PositionalMatching:
    network = torch.nn.Module()
    network.forward = levels_of_tone
    model = PositionalMatching(network, **settings).train()
    for one in images.split(2):
        assert model(one) is None
    model.fit()
    return model.eval()


def test_positional_matching_finds_what_is_new_at_a_place():
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = fitted(images)
    changed = images[2:4].clone()
    changed[1, :, 8:16, 16:24] = 2.0
    output = model(changed)
    assert output.anomaly_map.shape == (2, 1, 32, 32)
    torch.testing.assert_close(output.anomaly_map[0], torch.zeros(1, 32, 32), atol=1e-3, rtol=0)
    y, x = np.unravel_index(output.anomaly_map[1, 0].argmax(), (32, 32))
    assert 8 <= y < 16 and 16 <= x < 24
    # The mean of the largest 1 % of 1,024 pixels.
    torch.testing.assert_close(output.pred_score, output.anomaly_map.flatten(1).sort(dim=1).values[:, -10:].mean(dim=1))


def test_positional_matching_compares_with_the_images_that_are_most_alike():
    dark, light = torch.full((2, 3, 16, 16), 0.1), torch.full((2, 3, 16, 16), 0.9)
    patched = dark[:1].clone()
    patched[:, :, :8, :8] = 0.9  # as in light images, but not in dark ones
    assert fitted(torch.cat([light, dark]))(patched).pred_score < 1e-3
    assert fitted(torch.cat([light, dark]), like_images=2)(patched).pred_score > 0.3


def test_positional_matching_sees_lite0(no_network):
    extractor = FeatureExtractor.from_lite_package(levels=positional_matching.LEVELS)
    model = PositionalMatching.with_lite0().train()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model(images)
    model.fit()
    assert [bank.shape for bank in model.banks] == [(256, 2, 24), (64, 2, 40), (16, 2, 112)]
    level = extractor.network(images)[1]  # (2, 40, 8, 8)
    torch.testing.assert_close(model.banks[1][9, 1], level[1, :, 1, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 40, 300])
def test_coreset_is_the_one_that_anomalib_chooses(count):
    greedy = pytest.importorskip("anomalib.models.components.sampling.k_center_greedy").KCenterGreedy
    patches = 3 * torch.randn(300, 152, generator=torch.Generator().manual_seed(0)) + 1
    chosen = []
    for choose in (
        lambda: stronger_peers.coreset(patches, count),
        lambda: greedy(patches, min(1.0, (count + 0.5) / 300)).sample_coreset(),
    ):
        stronger_peers.set_seed(1)
        chosen.append(choose())
    assert len(chosen[0]) == count and torch.equal(*chosen)


@pytest.fixture
def images_of_parts(tmp_path, save_image):
    """9 flat good images, each of its own grey level."""
    for i in range(9):
        save_image(np.full((16, 16, 3), 100 + i, np.uint8), f"part/train/good/{i}.png")
    return training_samples(tmp_path / "part")


@pytest.mark.parametrize("name, batch", [("stfpm", 8), ("supersimplenet", 4)])
def test_trained_peers_start_from_lite0_and_learn(name, batch, images_of_parts, monkeypatch, no_network):
    pytest.importorskip("anomalib")
    monkeypatch.setattr(trained_peers, "STEPS", 3)
    stronger_peers.set_seed(0)
    model, settings = getattr(trained_peers, name)(images_of_parts, 0)
    assert settings["batch"] == batch and settings["steps"] == {8: 4, 4: 3}[batch]  # whole passes over 9 images
    images = torch.cat(list(peers.batches(images_of_parts, "test")))
    extractor = FeatureExtractor.from_lite_package(levels=(1, 2, 3))
    lite0 = [level.contiguous() for level in extractor.network(images)][:3]
    with torch.no_grad():
        if name == "stfpm":
            found = list(model.teacher_model(images).values())
            student = list(model.student_model(images).values())
            assert all(not torch.allclose(own, other) for own, other in zip(found, student))
        else:
            found = list(model.feature_extractor.features.feature_extractor(images).values())
            lite0 = lite0[1:]
            # Divided by their deviation, as the noise asks.
            assert model.feature_extractor(images).std(dim=(0, 2, 3)).mean() == pytest.approx(1, abs=1e-3)
    for own, expected in zip(found, lite0, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    maps, scores = peers.score(model, images_of_parts)
    assert maps.shape == (9, 256, 256) and scores.shape == (9,) and not model.training
    stronger_peers.set_seed(0)
    again = peers.score(getattr(trained_peers, name)(images_of_parts, 0)[0], images_of_parts)
    np.testing.assert_array_equal(again[0], maps)


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Of two peers, whose map is the red of the image: the names and numbers of images that they were fitted on."""
    fits = []

    def fit(name):
        def of_images(samples, seed):
            fits.append((name, len(samples), seed))
            model = torch.nn.Module()
            model.forward = lambda images: SimpleNamespace(anomaly_map=images[:, :1], pred_score=images.amax(dim=(1, 2, 3)))
            return model, {"steps": 5}

        return of_images

    monkeypatch.setattr(stronger_peers, "STRONGER", {name: fit(name) for name in (PEER, OTHER)})
    monkeypatch.setattr(stronger_peers, "RESULTS", tmp_path / "results" / "stronger_peers.jsonl")
    monkeypatch.setattr(stronger_peers, "update_table", lambda card, kept: None)
    return fits


def test_a_line_is_kept_for_each_category_and_peer(mvtec_folder, stand_ins):
    stronger_peers.main(["--data_root", str(mvtec_folder.parent), "--categories", "part", "--seed", "3"])
    assert stand_ins == [(PEER, 6, 3), (OTHER, 6, 3)]
    kept = [json.loads(line) for line in stronger_peers.RESULTS.read_text().splitlines()]
    assert [line["peer"] for line in kept] == [PEER, OTHER]
    assert kept[0]["images"] == {"train": 6, "good": 2, "defective": 3} and kept[0]["settings"] == {"steps": 5}
    assert kept[0]["cost"]["fit_seconds"] >= 0 and kept[0]["cost"]["images_per_second"] > 0
    # The kept command gives the same run again.
    words = shlex.split(kept[1]["command"])[2:]
    words[words.index("DATA")] = str(mvtec_folder.parent)
    stronger_peers.main(words)
    again = json.loads(stronger_peers.RESULTS.read_text().splitlines()[2])
    assert stand_ins[2:] == [(OTHER, 6, 3)] and again["metrics"] == kept[1]["metrics"]


def test_bad_input_is_refused_before_anything_is_fitted(mvtec_folder, stand_ins, capsys):
    for path in (mvtec_folder / "ground_truth").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="part: has no ground-truth masks"):
        stronger_peers.main(["--data_root", str(mvtec_folder.parent), "--categories", "part"])
    with pytest.raises(SystemExit):
        stronger_peers.main(["--categories", "part"])
    assert "give --data_root and --categories, or --tables_only" in capsys.readouterr().err and not stand_ins


def of_peer(category: str, peer: str, aupro: float, minutes: float) -> dict:
    metrics = {"aupro_30": aupro, "pixel_ap": 0.5, "image_auroc": 1.0}
    return {
        "category": category,
        "peer": peer,
        "metrics": metrics,
        "cost": {"fit_seconds": 60 * minutes, "images_per_second": 2 * minutes},
    }


def test_every_detector_has_a_row_and_what_was_not_measured_a_dash():
    ours = [
        {"category": c, "scores": {"ensemble": {"aupro_30": aupro, "pixel_ap": 0.6, "image_auroc": 0.9}}}
        for c in CATEGORIES
        for aupro in (0.8, 0.9)  # two seeds
    ]
    figures = {"source": "", "columns": COLUMNS, "Peer": {c: [99.0, 0, 40.0, 70.0, 1] for c in CATEGORIES}}
    results = [of_peer("grid", PEER, 0.75, 1), of_peer("screw", PEER, 0.55, 3), of_peer("screw", OTHER, 0.6, 2)]
    head, _, *rows = stronger_peers.table(results, ours, figures).splitlines()
    # In the order of the other tables.
    assert head == "| AUPRO / pixel AP / image AUROC | screw | grid | minutes to fit | images/s |"
    assert rows == [
        "| **diffad** | 85.0 / 60.0 / 90.0 | 85.0 / 60.0 / 90.0 | – | – |",
        "| Peer | 70.0 / 40.0 / 99.0 | 70.0 / 40.0 / 99.0 | – | – |",
        f"| {PEER} | 55.0 / 50.0 / 100.0 | 75.0 / 50.0 / 100.0 | 1.0 to 3.0 | 2.0 to 6.0 |",
        f"| {OTHER} | 60.0 / 50.0 / 100.0 | – | 2.0 to 2.0 | 4.0 to 4.0 |",
    ]
    assert stronger_peers.table([], ours, figures) == ""
