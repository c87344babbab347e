"""Checks on real images that thresholds keep the false-alarm rate that was asked for.

    python training/benchmarks/coverage.py --model runs/magnetic_tile --data DATA/magnetic_tile --rates 0.05 0.01

Scores the held-out good images of the model's training and the good test images once, none of which the model was fitted on.
Then calibrates anew on random splits of them all, and counts false alarms on the images that a split leaves. Over random
splits images are exchangeable, so the mean must keep the requested rate; the split as it is (calibrated on the held-out images,
counted on test/good) is one draw, and valid only as far as both were taken alike. Writes a JSON file with every split's rate
and a picture beside it.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffad import Calibration, DiffADPipeline, ImageError
from diffad.data import DataError, Sample, evaluation_samples
from diffad.imaging.maps import resize_map
from diffad.scoring.conformal import threshold_rank
from diffad.scoring.inputs import InputReader
from diffad.scoring.statistics import TermStatistics, split_for_statistics
from diffad.system.memory import keep_freed_memory
from diffad_training.good_images import held_out_samples
from tqdm.auto import tqdm


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Check false-alarm rates on repeated splits.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--data", required=True, help="MVTec-layout folder that the model was trained on")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.01])
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--maps", type=Path, help="file that keeps the term maps; read where it exists")
    parser.add_argument("--output", type=Path, default=Path("runs/coverage.json"))
    options = parser.parse_args(arguments)

    keep_freed_memory()
    held_out, test = unfitted_samples(options.model, options.data)
    pipe = DiffADPipeline.from_pretrained(options.model)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        term_maps = measured(pipe, held_out + test, options.maps or Path(scratch) / "maps.npy", options.batch_size)
        results = coverage(pipe.calibration.to("cpu"), term_maps, len(held_out), options.rates, options.splits, options.seed)
    results = {"data": Path(options.data).name, **results}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results) + "\n")
    save_plot(options.output.with_suffix(".png"), results)
    print(table(results))
    print(f"wrote {options.output} and {options.output.with_suffix('.png')}")


def unfitted_samples(model: Path, data: str) -> tuple[list[Sample], list[Sample]]:
    """Good images that the model was not fitted on: those held out from its training folder, and the test set's.

    Raises:
        DataError: if the model folder lacks its training settings, or the data is not what they fit.
    """
    held_out = held_out_samples(model, data)
    return held_out, [sample for sample in evaluation_samples(data) if not sample.is_defective]


def measured(pipe: DiffADPipeline, samples: Sequence[Sample], path: Path, batch_size: int) -> np.ndarray:
    """Term maps `(N, len(term_map_names), height, width)` of all samples, memory-mapped from `path`.

    They are raw, at the model's resolution; fitting standardises them.
    """
    names, scorer = pipe.calibration.score_config.term_map_names, pipe.scorer
    shape = (len(samples), len(names), *pipe.image_size)
    if path.is_file():
        stored = np.load(path, mmap_mode="r")
        if stored.shape != shape:
            raise DataError(f"{path}: holds maps of shape {stored.shape}, not {shape}; remove it")
        return stored
    unfinished = path.with_name(f"{path.name}.unfinished")
    stored = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    reader = InputReader(scorer, None, pipe.device)
    batches = reader.batches([sample.read for sample in samples], None, batch_size)
    with torch.no_grad(), tqdm(total=len(samples), desc="scoring", mininterval=2, disable=None) as progress:
        for batch in batches:
            raw = scorer.raw_term_maps(batch.pixels, tiles_per_pass=batch_size, detail=batch.detail)
            for number, name in enumerate(names):
                stored[batch.indices, number] = resize_map(raw[name], pipe.image_size).cpu().numpy()
            progress.update(len(batch.indices))
    unfinished.rename(path)
    return stored


def coverage(
    calibration: Calibration, term_maps: np.ndarray, held_out: int, rates: Sequence[float], splits: int, seed: int
) -> dict:
    """Realised false-alarm rates at each requested one.

    Args:
        calibration: whose settings of the score are used; it is fitted anew.
        term_maps: `(N, len(term_map_names), height, width)` of good images, the `held_out` first ones of which are those that a
            user would calibrate on. Every random split calibrates on as many.

    Returns:
        numbers of images, and for each rate `expected` (exact for continuous scores), `mean` and `standard_error` over splits,
        `as_it_is` (the split at `held_out`) and the rates of all `splits`.

    Raises:
        ValueError: if a rate is not supported by so many held-out images; before anything is counted.
    """
    everything = np.arange(len(term_maps))
    statistics = [statistics_of(calibration, maps) for maps in term_maps]  # they add up for every split
    measure = partial(false_alarm_rates, calibration, term_maps, statistics, rates=rates)
    natural = measure(everything[:held_out], everything[held_out:])
    rng = np.random.default_rng(seed)
    realised = []
    for _ in tqdm(range(splits), desc="splits", mininterval=2, disable=None):
        order = rng.permutation(everything)
        realised.append(measure(order[:held_out], order[held_out:]))
    n = calibration.config.num_calibration_images
    rows = []
    for rate, of_natural, of_splits in zip(rates, natural, np.array(realised).T, strict=True):
        rows.append(
            {
                "requested": rate,
                "expected": (n + 1 - threshold_rank(n, rate)) / (n + 1),
                "mean": float(of_splits.mean()),
                "standard_error": float(of_splits.std(ddof=1) / math.sqrt(splits)),
                "as_it_is": of_natural,
                "splits": of_splits.tolist(),
            }
        )
    return {"calibrated_on": held_out, "behind_thresholds": n, "counted_on": len(term_maps) - held_out, "rates": rows}


def false_alarm_rates(
    calibration: Calibration,
    term_maps: np.ndarray,
    statistics: Sequence[TermStatistics],
    chosen: np.ndarray,
    others: np.ndarray,
    rates: Sequence[float],
) -> list[float]:
    """Calibrates on the chosen images and returns the share of the others above each rate's threshold."""
    fit(calibration, term_maps, statistics, chosen)
    thresholds = [calibration.image_threshold(rate) for rate in rates]
    scores = np.array([scores_of(calibration, term_maps[i])[0] for i in others])
    return [float((scores > threshold).mean()) for threshold in thresholds]


def fit(calibration: Calibration, term_maps: np.ndarray, statistics: Sequence[TermStatistics], chosen: np.ndarray) -> None:
    """Calibrates on the chosen images, as the pipeline does."""
    config = calibration.score_config
    if config.needs_statistics:
        for_statistics, chosen = split_for_statistics(chosen, config.seed, config.statistics_share)
        calibration.set_statistics(TermStatistics.sum([statistics[i] for i in for_statistics]))
    scores, maxima = np.array([scores_of(calibration, term_maps[i]) for i in chosen]).T
    calibration.set_scores([scores], [maxima])


def statistics_of(calibration: Calibration, term_maps: np.ndarray) -> TermStatistics:
    """Of one image's raw term maps `(len(term_map_names), height, width)`."""
    named = {name: term_map[0] for name, term_map in _named(calibration, term_maps).items()}
    return TermStatistics.of(named, calibration.inside(term_maps.shape[1:]), calibration.score_config)


def scores_of(calibration: Calibration, term_maps: np.ndarray) -> tuple[float, float]:
    """Image score and highest pixel of raw term maps `(len(term_map_names), height, width)`, as the pipeline forms them."""
    named = _named(calibration, term_maps)
    anomaly_maps = calibration.anomaly_maps(named)
    return calibration.scores(named, anomaly_maps).item(), calibration.image_scores(anomaly_maps, top_k=1).item()


def _named(calibration: Calibration, term_maps: np.ndarray) -> dict[str, torch.Tensor]:
    """Term maps `(1, height, width)` by name."""
    maps = torch.from_numpy(np.array(term_maps))[:, None]
    return dict(zip(calibration.score_config.term_map_names, maps, strict=True))


def table(results: dict) -> str:
    """Markdown table of realised against requested rates, in percent."""
    splits = len(results["rates"][0]["splits"])
    lines = [
        f"| requested | expected | mean of {splits} splits | 5 % to 95 % of splits | held-out, then test |",
        "|---" * 5 + "|",
    ]
    for row in results["rates"]:
        low, high = np.quantile(row["splits"], [0.05, 0.95])
        lines.append(
            f"| {row['requested']:.1%} | {row['expected']:.2%} | {row['mean']:.2%} ± {row['standard_error']:.2%} | "
            f"{low:.1%} to {high:.1%} | {row['as_it_is']:.2%} |"
        )
    lines += [
        "",
        f"{results['data']}: calibrated on {results['calibrated_on']} good images ({results['behind_thresholds']} behind the "
        f"thresholds), counted on {results['counted_on']}.",
    ]
    return "\n".join(lines) + "\n"


def save_plot(path: Path, results: dict) -> None:
    """Histogram of the splits' realised rates for each requested one, with the distribution that theory expects."""
    from matplotlib.figure import Figure
    from scipy.stats import betabinom

    figure = Figure(figsize=(4.5 * len(results["rates"]), 3.2), layout="constrained")
    n, tested = results["behind_thresholds"], results["counted_on"]
    for axis, row in zip(figure.subplots(1, len(results["rates"]), squeeze=False)[0], results["rates"]):
        counts = np.round(np.array(row["splits"]) * tested).astype(int)
        alarms = np.arange(counts.max() + 2)
        share = np.bincount(counts, minlength=len(alarms)) / len(counts)
        rank = threshold_rank(n, row["requested"])
        axis.bar(alarms / tested, share, width=0.9 / tested, color="#9db8d2", label="splits")
        axis.plot(alarms / tested, betabinom.pmf(alarms, tested, n + 1 - rank, rank), color="#333", lw=1, label="theory")
        axis.axvline(row["requested"], color="#c0392b", label="requested")
        axis.axvline(row["mean"], color="#2c6fbb", ls="--", label="mean of splits")
        axis.set(xlabel="realised false-alarm rate", title=f"requested {row['requested']:.0%}")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.axes[0].set_ylabel("share of splits")
    figure.axes[-1].legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    try:
        main()
    except (DataError, ImageError) as error:
        sys.exit(f"error: {error}")
