"""Measures the monitor: false alarms and delays on simulated scores, and detection of changes of real images.

    python training/benchmarks/monitoring.py
    python training/benchmarks/monitoring.py --embeddings
    python training/benchmarks/monitoring.py --data_root DIVIDED --models runs/grid runs/screw

The first form draws a fresh calibration set for every stream and takes minutes on one core. It also writes the medians that
`diffad monitor` expects delays by. The second measures false alarms with the test of embeddings, on features that decide the
scores. The third scores good test images as they are and changed, makes streams of them, each image once, and counts the parts
until an alarm; DIVIDED is what monitoring_folders.py makes, and models are trained on its folders. Results are kept in
training/benchmarks/results/monitoring.jsonl; the card's tables are rendered from them.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from diffad.monitoring.drift_monitor import EMBEDDINGS, REJECTS, SCORES
from diffad.scoring.conformal import threshold_rank
from diffad_training.benchmarks.monitoring_images import IMAGE_CHANGES, measure_images
from diffad_training.benchmarks.monitoring_streams import (
    draw,
    embedding_alarms,
    exceedance_alarms,
    monitor_alarms,
    urn_alarms,
)
from diffad_training.benchmarks.monitoring_tables import update_tables
from diffad_training.benchmarks.records import append_result

ROOT = Path(__file__).parents[2]
CARD = ROOT / "model_cards/monitoring.md"
RESULTS = Path(__file__).parent / "results/monitoring.jsonl"
DELAYS = ROOT / "pipelines/diffad/monitoring/delays.json"
LEVEL = FALSE_ALARM_RATE = 0.05
SHIFTS = (0.5, 1.0, 2.0)
CHANGES = (0, 1000)  # good parts before the change
HORIZON = 2000  # parts after it
DIMENSIONS = 6  # of simulated features


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the monitor.", allow_abbrev=False)
    parser.add_argument("--streams", type=int, default=1000, help="of exchangeable scores")
    parser.add_argument("--parts", type=int, default=10_000, help="of each of them")
    parser.add_argument("--delay_streams", type=int, default=200, help="of scores that change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embeddings", action="store_true", help="false alarms of all tests together")
    parser.add_argument("--models", type=Path, nargs="+", help="trained or exported models, for real images")
    parser.add_argument("--data_root", type=Path, help="folder of the categories in the layout of MVTec AD")
    parser.add_argument("--profile", help="of the models; without it their default")
    parser.add_argument("--changes", nargs="+", choices=IMAGE_CHANGES, default=list(IMAGE_CHANGES), help="of real images")
    parser.add_argument("--tables_only", action="store_true", help="render the card from the kept results")
    options = parser.parse_args(arguments)
    if options.models and options.data_root is None:
        parser.error("--models needs --data_root")
    if options.models:
        for model in options.models:
            for result in measure_images(model, options.data_root, options.profile, options.seed, options.changes):
                append_result(RESULTS, result)
    elif options.embeddings:
        for n in (50, 200):
            append_result(RESULTS, false_alarms_of_all(n, options.streams, options.parts, options.seed))
    elif not options.tables_only:
        for n in (50, 200):
            append_result(RESULTS, false_alarms(n, options.streams, options.parts, options.seed))
        for n in (50, 200):
            for result in rivals(n, options.delay_streams, options.seed):
                append_result(RESULTS, result)
        results = [result for n in (20, 50, 100, 200, 500) for result in delays(n, options.delay_streams, options.seed)]
        for result in results:
            append_result(RESULTS, result)
        save_delays(results)
    update_tables(CARD, RESULTS)


def false_alarms(n: int, streams: int, parts: int, seed: int) -> dict:
    """Shares of streams of unchanged scores that ever raise an alarm."""
    start = time.perf_counter()
    alarms = monitor_alarms(*draw(n, streams, parts, 0.0, 0, seed), FALSE_ALARM_RATE, LEVEL)
    by_test = {name: float(np.isfinite(times).mean()) for name, times in alarms.items()}
    ever = float(np.isfinite(np.minimum(alarms[SCORES], alarms[REJECTS])).mean())
    error = math.sqrt(LEVEL * (1 - LEVEL) / streams)
    print(f"n = {n}: {100 * ever:.1f} % of {streams} streams of {parts} parts alarmed, level {100 * LEVEL:.0f} %", flush=True)
    return {
        "kind": "false alarms",
        **{"n": n, "streams": streams, "parts": parts, "seed": seed, "level": LEVEL},
        **{"ever": ever, "by_test": by_test, "standard_error": error, "seconds": time.perf_counter() - start},
    }


def false_alarms_of_all(n: int, streams: int, parts: int, seed: int) -> dict:
    """The same with the test of embeddings. Scores are lengths of the features, so that a threshold cuts features off."""
    start = time.perf_counter()
    rng, rank = np.random.default_rng((seed, n)), threshold_rank(n, FALSE_ALARM_RATE)
    features = rng.normal(size=(streams, n + parts, DIMENSIONS))
    lengths = np.linalg.norm(features, axis=2)
    order = np.argsort(lengths[:, :n], axis=1)
    calibration, scores = np.take_along_axis(lengths, order, axis=1), lengths[:, n:]
    times = monitor_alarms(calibration, scores, FALSE_ALARM_RATE, LEVEL, with_embeddings=True)
    references = [of_stream[below] for of_stream, below in zip(features, order[:, : rank - 1], strict=True)]
    times[EMBEDDINGS] = embedding_alarms(references, features[:, n:], scores > calibration[:, rank - 1 : rank], LEVEL)
    times = {name: times[name] for name in (SCORES, REJECTS, EMBEDDINGS)}
    ever = float(np.isfinite(np.min(list(times.values()), axis=0)).mean())
    print(f"n = {n}: {100 * ever:.1f} % of {streams} streams of {parts} parts alarmed, all tests", flush=True)
    return {
        "kind": "all tests",
        **{"n": n, "streams": streams, "parts": parts, "seed": seed, "level": LEVEL, "ever": ever},
        "by_test": {name: float(np.isfinite(of_test).mean()) for name, of_test in times.items()},
        "standard_error": math.sqrt(LEVEL * (1 - LEVEL) / streams),
        "seconds": time.perf_counter() - start,
    }


def delays(n: int, streams: int, seed: int) -> list[dict]:
    """Parts from a change of normal scores to the first alarm of any test."""
    results = []
    for change in CHANGES:
        for shift in SHIFTS:
            alarms = monitor_alarms(*draw(n, streams, change + HORIZON, shift, change, seed + 1), FALSE_ALARM_RATE, LEVEL)
            first = np.minimum(alarms[SCORES], alarms[REJECTS])
            row = {"kind": "delay", "n": n, "shift": shift, "change": change, "streams": streams, "seed": seed + 1}
            results.append({**row, **summary(first, change)})
            print(results[-1], flush=True)
    return results


def rivals(n: int, streams: int, seed: int) -> list[dict]:
    """False alarms and delays of three tests of all scores, each at the whole level."""
    tests = {
        "urn": urn_alarms,
        "bound and bets": lambda calibration, scores, level: exceedance_alarms(calibration, scores, level, True),
        "plain martingale": lambda calibration, scores, level: exceedance_alarms(calibration, scores, level, False),
    }
    results = []
    for name, alarms_of in tests.items():
        row = {"kind": "rival", "test": name, "n": n, "streams": streams, "seed": seed + 2}
        unchanged = alarms_of(*draw(n, streams, HORIZON, 0.0, 0, seed + 2), LEVEL)
        results.append({**row, "shift": 0.0, "change": 0, "ever": float(np.isfinite(unchanged).mean())})
        print(results[-1], flush=True)
        for change in CHANGES:
            for shift in SHIFTS:
                first = alarms_of(*draw(n, streams, change + HORIZON, shift, change, seed + 2), LEVEL)
                results.append({**row, "shift": shift, "change": change, **summary(first, change)})
                print(results[-1], flush=True)
    return results


def summary(first: np.ndarray, change: int) -> dict:
    """Of first alarms `(S,)`: median and 90 % quantile of delays after a change, None where there is none; the shares of
    streams that alarmed before it, which have no delay, and of those of the others that never did."""
    delays = first[first > change] - change
    median, high = (np.quantile(delays, share, method="higher") for share in (0.5, 0.9))
    return {
        "median": float(median) if np.isfinite(median) else None,
        "high": float(high) if np.isfinite(high) else None,
        "early": float((first <= change).mean()),
        "never": float(np.isinf(delays).mean()),
    }


def save_delays(results: list[dict]) -> None:
    """The table that the command reads."""
    rows = [{name: result[name] for name in ("n", "shift", "change", "median")} for result in results]
    table = {"level": LEVEL, "false_alarm_rate": FALSE_ALARM_RATE, "horizon": HORIZON, "medians": rows}
    DELAYS.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
