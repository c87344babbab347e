"""benchmark.py: tables are rendered from the kept results, never typed."""

import json

import pytest
from diffad_training.benchmarks import detection as benchmark
from markdown_tables import figures, row_of, table_rows

PEERS = {
    "source": "x",
    "columns": ["image_auroc", "pixel_auroc", "pixel_ap", "aupro_30", "images_per_second"],
    "Peer": {"nut": [90.0, 80.0, 70.0, 60.0, 11]},
}


def result(seed: int, value: float) -> dict:
    metrics = dict.fromkeys(benchmark.METRICS, value)
    return {
        "category": "nut",
        "config": "cpu-small",
        "seed": seed,
        "date": "2026-01-01",
        "machine": "2 cores",
        "scores": dict.fromkeys(benchmark.SCORES, metrics),
        "images": {"good": 2, "defective": 3},
        "training": {"seconds": 120, "steps": 7, "peak_memory_mib": 1024},
        "cost": {"images_per_second": 5.0, "peak_memory_mib": 2048, "unet_parameters": 1_000_000, "threads": 2},
    }


def test_table_has_mean_and_spread_of_the_seeds_beside_the_peer():
    table = benchmark.category_table("nut", [result(0, 0.8), result(1, 0.9)], PEERS)
    ours, theirs = figures(row_of(table, "diffad")), figures(row_of(table, "Peer"))
    assert ours["image AUROC"] == ours["AUPRO"] == [85.0, 7.1] and ours["images/s"] == [5.0]
    expected = {"image AUROC": [90.0], "pixel AUROC": [80.0], "pixel AP": [70.0], "AUPRO": [60.0], "images/s": [11.0]}
    assert theirs == expected
    assert "trained in 2 minutes" in table and "Seed 0, 1" in table


def test_masks_have_a_figure_where_it_was_kept_and_a_dash_elsewhere():
    kept = [result(seed, 0.8) | {"operating_point": {"seg_f1": f1, "seg_f1_share": 0.9}} for seed, f1 in enumerate((0.5, 0.7))]
    table = benchmark.category_table("nut", kept, PEERS)
    assert figures(row_of(table, "diffad"))[benchmark.MASKS] == [60.0, 14.1, 90]
    former = [*kept, result(2, 0.8) | {"operating_point": {"detection_rate": 0.5}}]
    for results in (former, [result(0, 0.8)]):
        assert benchmark.MASKS not in figures(row_of(benchmark.category_table("nut", results, PEERS), "diffad"))


def test_newest_result_of_a_seed_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(result(0, value)) + "\n" for value in (0.1, 0.8)))
    assert [r["scores"]["kl"]["pixel_ap"] for r in benchmark.latest_results(path)] == [0.8]


def test_only_the_marked_part_of_a_document_changes(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- benchmark:nut -->\nold\n<!-- /benchmark -->\nafter\n")
    for _ in range(2):
        benchmark.update_tables(document, [result(0, 0.5)], PEERS, [])
    text = document.read_text()
    assert text.startswith("before\n<!-- benchmark:nut -->\n") and text.endswith("<!-- /benchmark -->\nafter\n")
    assert "old" not in text and figures(row_of(text, "diffad"))["AUPRO"] == [50.0]
    with pytest.raises(ValueError, match="no results of bolt"):
        benchmark.category_table("bolt", [result(0, 0.5)], PEERS)


def test_summary_has_means_beside_the_peers(monkeypatch):
    monkeypatch.setattr(benchmark, "CATEGORIES", ("nut", "bolt"))
    peers = {**PEERS, "Peer": {**PEERS["Peer"], "bolt": [70.0, 80.0, 50.0, 20.0, 11]}}
    bolt = {**result(0, 0.6), "category": "bolt"}
    table = benchmark.summary_table([result(0, 0.8), result(1, 0.9), bolt], peers)
    titles = [f"{metric}: {name}" for metric in ("AUPRO", "pixel AP", "image AUROC") for name in ("diffad", "Peer")]
    of_nut = [[85.0, 7.1], [60.0], [85.0, 7.1], [70.0], [85.0, 7.1], [90.0]]
    assert figures(row_of(table, "nut")) == dict(zip(titles, of_nut, strict=True)) | {"seeds": [0, 1]}
    mean = figures(row_of(table, "mean of 2"))
    assert [mean[title] for title in titles] == [[72.5], [40.0], [72.5], [60.0], [72.5], [80.0]]


def test_variants_stand_beside_the_default_of_the_same_category_and_seeds(tmp_path):
    variant = {**result(0, 0.7), "variant": "lite1"}
    table = benchmark.variants_table([result(0, 0.8), result(1, 0.9), variant])
    assert [row["trained with"] for row in table_rows(table)] == ["default", "EfficientNet-lite1 features"]
    for label, value in (("default", 80.0), ("EfficientNet-lite1 features", 70.0)):
        found = figures(row_of(table, "nut", label))
        assert [found[title] for title in benchmark.METRICS.values()] == [[value]] * 4
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(kept) + "\n" for kept in (result(0, 0.8), variant)))
    assert len(benchmark.latest_results(path)) == 2
    document = tmp_path / "README.md"
    document.write_text("<!-- benchmark:nut -->\n<!-- /benchmark -->\n<!-- benchmark:variants -->\n<!-- /benchmark -->\n")
    benchmark.update_tables(document, [result(0, 0.8), variant], PEERS, [])
    text = document.read_text()
    assert figures(row_of(text, "diffad"))["AUPRO"] == figures(row_of(text, "nut", "default"))["AUPRO"] == [80.0]


def unified_result(kind: str, value: float, category: str = "nut") -> dict:
    images = {category: 4, "bolt": 1} if kind == "recognised" else {category: 5}
    return {**result(0, value), "category": category, "unified": kind, "class_labels": {"images": images}}


def test_unified_table_sets_one_model_of_all_against_one_each():
    results = [result(0, 0.8), unified_result("given", 0.7), unified_result("recognised", 0.6)]
    results.append(unified_result("given", 0.1, "washer"))  # has no model of its own: does not enter the mean
    table = benchmark.unified_table(results)
    for name in ("nut", "mean of 1"):
        found = figures(row_of(table, name))
        assert found["recognised"] == [80.0]
        for metric in ("AUPRO", "pixel AP", "image AUROC"):
            values = [found[f"{metric}: {kind}"] for kind in ("one each", "unified", "unified, category recognised")]
            assert values == [[80.0], [70.0], [60.0]]
    of_washer = figures(row_of(table, "washer"))
    assert of_washer == {f"{metric}: unified": [10.0] for metric in ("AUPRO", "pixel AP", "image AUROC")} and "nan" not in table
    assert figures(row_of(benchmark.category_table("nut", results, PEERS), "diffad"))["AUPRO"] == [80.0]
    with pytest.raises(ValueError, match="--unified first"):
        benchmark.unified_table([result(0, 0.8)])


def peer_result(value: float, category: str = "nut", peer: str = "Peer", **changes) -> dict:
    return {
        "category": category,
        "peer": peer,
        "seed": 0,
        "unified": True,
        "unified_categories": ["nut", "washer"],
        "coreset_candidates": None,
        "images": {"train": 30, "good": 2, "defective": 3},
        "metrics": dict.fromkeys(benchmark.METRICS, value),
        **changes,
    }


def test_peers_of_all_categories_stand_beside_the_unified_model():
    results = [
        result(0, 0.8),
        unified_result("given", 0.7),
        unified_result("recognised", 0.1),
        unified_result("given", 0.2, "washer"),
    ]
    fitted = [peer_result(0.5), peer_result(0.4, "washer"), peer_result(0.9, "bolt", coreset_candidates=200_000)]
    alone = {key: value for key, value in peer_result(0.3).items() if not key.startswith("unified")}
    table = benchmark.unified_peers_table(results, PEERS, [alone, *fitted])
    titles = [f"{metric}: {name}" for metric in ("AUPRO", "pixel AP", "image AUROC") for name in ("diffad", "Peer")]
    expected = {
        "nut": [70.0, 50.0] * 3,
        "washer": [20.0, 40.0] * 3,
        # washer has no models of its own, bolt none of ours: neither enters the means.
        "mean of 1": [70.0, 50.0] * 3,
        "mean of 1, one model each": [80.0, 60.0, 80.0, 70.0, 80.0, 90.0],
    }
    for name, values in expected.items():
        assert [figures(row_of(table, name))[title] for title in titles] == [[value] for value in values]
    assert "bolt" not in table
    assert "30 good images of 2 categories" in table and "200,000 patches" in table


def test_peers_of_all_categories_need_results_of_the_same_fit():
    results = [result(0, 0.8), unified_result("given", 0.7)]
    assert benchmark.unified_peers_table(results, PEERS, []) == ""
    with pytest.raises(ValueError, match="different categories"):
        benchmark.unified_peers_table(results, PEERS, [peer_result(0.5), peer_result(0.5, unified_categories=["nut"])])


def test_results_of_peers_are_kept_apart(tmp_path):
    path = tmp_path / "peer_results.jsonl"
    path.write_text("".join(json.dumps(peer_result(0.1 * i, peer=peer)) + "\n" for i, peer in enumerate("ABA")))
    assert [r["metrics"]["pixel_ap"] for r in benchmark.latest_results(path)] == [0.2, 0.1]


def test_results_of_both_kinds_of_model_are_kept_apart(tmp_path):
    path = tmp_path / "results.jsonl"
    rows = [result(0, 0.1), unified_result("given", 0.2), unified_result("recognised", 0.3), unified_result("given", 0.4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [r["scores"]["kl"]["pixel_ap"] for r in benchmark.latest_results(path)] == [0.1, 0.4, 0.3]


def test_unified_run_trains_once_per_seed_and_evaluates_every_category_both_ways(tmp_path, monkeypatch):
    commands = []

    def pretend(command):
        words = [str(word) for word in command]
        commands.append(words)
        folder = benchmark.Path(next(after for word, after in zip(words, words[1:]) if word in ("--output_dir", "--output")))
        folder.mkdir(parents=True, exist_ok=True)
        if any(word.endswith("train.py") for word in words):
            (folder / "model_index.json").write_text("{}")
            (folder / "training_summary.json").write_text(json.dumps(result(0, 0.5)["training"]))
        else:
            given = "--category" in words
            (folder / "metrics.json").write_text(json.dumps({"model": "x", "cost": {"device": "cpu"}, "given": given}))

    monkeypatch.setattr(benchmark, "_run", pretend)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(benchmark, "update_tables", lambda *_: None)
    arguments = ["--data_root", str(tmp_path), "--categories", "nut", "bolt", "--unified", "--runs", str(tmp_path / "runs")]
    benchmark.main([*arguments, "--max_train_steps", "5"])
    assert [any(word.endswith("train.py") for word in words) for words in commands] == [True] + [False] * 4
    assert commands[0][-4:] == ["--categories", "[nut, bolt]", "--max_train_steps", "5"]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["category"], r["unified"], r["given"]) for r in rows] == [
        (category, kind, kind == "given") for category in ("nut", "bolt") for kind in ("given", "recognised")
    ]
    assert "--categories nut bolt --unified --seeds 0" in rows[0]["command"]
