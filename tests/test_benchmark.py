"""benchmark.py: tables are rendered from the kept results, never typed."""

import json

import pytest
from diffad_training import benchmark

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
        "cost": {"images_per_second": 5.0, "peak_memory_mib": 2048, "unet_parameters": 1_000_000},
    }


def test_table_has_mean_and_spread_of_the_seeds_beside_the_peer():
    table = benchmark.category_table("nut", [result(0, 0.8), result(1, 0.9)], PEERS)
    assert "| **diffad** | 85.0 ± 7.1 |" in table and "| 5.0 |" in table
    assert "| Peer | 90.0 | 80.0 | 70.0 | 60.0 | 11.0 |" in table
    assert "trained in 2 minutes" in table and "Seed 0, 1" in table


def test_newest_result_of_a_seed_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(result(0, value)) + "\n" for value in (0.1, 0.8)))
    assert [r["scores"]["kl"]["pixel_ap"] for r in benchmark.latest_results(path)] == [0.8]


def test_only_the_marked_part_of_a_document_changes(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- benchmark:nut -->\nold\n<!-- /benchmark -->\nafter\n")
    for _ in range(2):
        benchmark.update_tables(document, [result(0, 0.5)], PEERS)
    text = document.read_text()
    assert text.startswith("before\n<!-- benchmark:nut -->\n| score |") and text.endswith("<!-- /benchmark -->\nafter\n")
    assert "old" not in text and text.count("| **diffad** |") == 1
    with pytest.raises(ValueError, match="no results of bolt"):
        benchmark.category_table("bolt", [result(0, 0.5)], PEERS)
