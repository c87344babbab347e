"""ablation.py: every row is another combination of the same maps; its table and plot come from the kept results."""

import json

import numpy as np
import pytest
from diffad_training.benchmarks import ablation
from diffad_training.benchmarks.records import latest_results
from markdown_tables import figures, row_of
from PIL import Image
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline

TIMESTEPS = (20, 401)


@pytest.fixture
def maps() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"{term}@{t}": rng.normal(size=(3, 4, 5)) for term in ("kl", "rgb", "feature") for t in TIMESTEPS}


def test_rows_agree_with_naive_sums(maps):
    raw = {name: 2.0 + 3.0 * values if name.startswith("kl") else 7.0 * values for name, values in maps.items()}
    rows = dict(ablation.score_rows(maps, {name: 3.0 if name.startswith("kl") else 7.0 for name in maps}))
    kl, rgb, feature = ((maps[f"{term}@20"] + maps[f"{term}@401"]) / 2 for term in ("kl", "rgb", "feature"))
    np.testing.assert_allclose(rows["KL and features, alpha 0.3"], 0.3 * kl + 0.7 * feature)
    np.testing.assert_allclose(rows["RGB error and features, alpha 1"], rgb)
    np.testing.assert_allclose(rows["KL and features, alpha 0"], feature)
    np.testing.assert_allclose(rows["Eq. 11 at t = 401 only"], (maps["kl@401"] + maps["feature@401"]) / 2)

    def own_scale(image):
        return (image - image.mean()) / image.std(ddof=1)

    released = rows["Eq. 11, KL standardised per image, features as they are (released code)"]
    expected = sum(0.5 * own_scale(raw[f"kl@{t}"][1]) + 0.5 * raw[f"feature@{t}"][1] for t in TIMESTEPS) / 2
    np.testing.assert_allclose(released[1], expected, rtol=1e-6, atol=1e-6)


def test_table_and_plot_of_a_model(tmp_path, monkeypatch):
    model, data = tmp_path / "model", save_test_images(tmp_path / "data" / "nut", defective=2)
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(10, seed=4))
    pipe.save_pretrained(model)
    (model / "training_config.json").write_text(json.dumps({"data": str(data), "seed": 3}))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- ablation -->\nold\n<!-- /ablation -->\nafter\n")
    for name, path in (("RESULTS", "ablation.jsonl"), ("CARD", "README.md"), ("PLOT", "alpha.png")):
        monkeypatch.setattr(ablation, name, tmp_path / path)
    ablation.main(["--models", str(model), "--data_root", str(tmp_path / "data")])
    [result] = latest_results(tmp_path / "ablation.jsonl", ablation.IDENTITY)
    assert result["category"] == "nut" and result["seed"] == 3
    assert all(0 <= value <= 1 for row in result["rows"].values() for value in row.values())
    text = readme.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    value = 100 * result["rows"]["KL and features, alpha 0"]["aupro_30"]
    assert [round(value, 1)] in figures(row_of(text, "features alone")).values()
    assert np.asarray(Image.open(tmp_path / "alpha.png").convert("L")).std() > 10
