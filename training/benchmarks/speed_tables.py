"""Markdown tables of the speed benchmark, from its kept results."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from diffad_training.benchmarks.records import fill_tables, latest_results
from diffad_training.benchmarks.speed_timing import flop_rate, milliseconds

IDENTITY = ("category", "model", "threads")  # of what only the newest result is shown


def update_tables(document: Path, results: Path) -> None:
    """Fills every `<!-- speed:NAME -->` ... `<!-- /speed -->` with a table for each model, category and number of threads."""
    newest = latest_results(results, IDENTITY)
    fill_tables(document, "speed", lambda name: "\n".join(f"{heading(result)}\n\n{TABLES[name](result)}" for result in newest))


def heading(result: Mapping) -> str:
    threads = result["threads"]
    return f"**{result['category']}, {threads} {'thread' if threads == 1 else 'threads'}**"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def of_group(result: Mapping, *groups: str) -> list[dict]:
    return [timing for timing in result["timings"] if timing["group"] in groups]


def scorers(result: Mapping) -> dict[tuple[str, str, str], list[dict]]:
    """Timings of scoring by name, runtime and precision."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for timing in of_group(result, "scoring"):
        found.setdefault((timing["name"], timing["runtime"], timing["precision"]), []).append(timing)
    return found


def per_image(timings: Iterable[Mapping], batch: int, source: str) -> float:
    """Milliseconds per image of the scorer's timing with that batch and input; NaN where it was not timed."""
    found = [timing for timing in timings if (timing["batch"], timing["input"]) == (batch, source)]
    return milliseconds(found[0]) if found else float("nan")


def figure(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def batches_of(result: Mapping) -> list[int]:
    return sorted({timing["batch"] for timing in of_group(result, "scoring")})


def scoring_table(result: Mapping) -> str:
    """Every scorer one by one and in the largest batch: the score alone, and with decoding and resizing of files."""
    smallest, *_, largest = [*batches_of(result)[:1], *batches_of(result)]
    columns = ["scorer", "runtime", "precision"]
    rows = []
    for batch in dict.fromkeys((smallest, largest)):
        columns += [f"batch {batch}: {of}" for of in ("images/s", "ms", "from files, images/s", "from files, ms")]
    for labels, timings in scorers(result).items():
        row = [f"**{labels[0]}**" if not timings[0].get("is_peer") else labels[0], *labels[1:]]
        for batch in dict.fromkeys((smallest, largest)):
            for source in ("tensors", "files"):
                value = per_image(timings, batch, source)
                row += [figure(1000 / value), figure(value)]
        rows.append(row)
    return markdown(columns, rows) + fastest_peer(result, smallest)


def fastest_peer(result: Mapping, batch: int) -> str:
    """A sentence on the peer with the most images/s, the score alone, and what every scorer of ours reaches of it."""
    speeds = {labels: 1000 / per_image(timings, batch, "tensors") for labels, timings in scorers(result).items()}
    theirs = {labels: speeds[labels] for labels, timings in scorers(result).items() if timings[0].get("is_peer")}
    if not theirs:
        return ""
    best = max(theirs, key=theirs.__getitem__)
    ratios = [
        f"{name} ({runtime}, {precision}) {speed / theirs[best]:.2f} times"
        for (name, runtime, precision), speed in speeds.items()
        if (name, runtime, precision) not in theirs
    ]
    return f"\nThe fastest peer at batch {batch} is {best[0]} ({best[1]}, {best[2]}); of its images/s: {', '.join(ratios)}.\n"


def growth_table(result: Mapping) -> str:
    """Milliseconds per image by batch, and of the eager pipeline by number of timesteps."""
    batches = batches_of(result)
    by_batch = markdown(
        ["scorer", "runtime", "precision", *(f"batch {batch}: ms/image" for batch in batches)],
        ([*labels, *(figure(per_image(t, batch, "tensors")) for batch in batches)] for labels, t in scorers(result).items()),
    )
    timings = of_group(result, "timesteps")
    counts = sorted({timing["timesteps"] for timing in timings})
    found = {(timing["precision"], timing["timesteps"]): milliseconds(timing) for timing in timings}
    by_timesteps = markdown(
        ["diffad, eager", *(f"{count} timestep{'s' * (count > 1)}: ms/image" for count in counts)],
        ([p, *(figure(found[p, count]) for count in counts)] for p in dict.fromkeys(p for p, _ in found)),
    )
    return f"{by_batch}\n{by_timesteps}"


def parts_table(result: Mapping) -> str:
    """What scoring one image is made of, in eager fp32."""
    rows = [[t["name"], figure(milliseconds(t))] for t in of_group(result, "parts")]
    passes = [t for t in of_group(result, "unet") if t["batch"] == 1 and t["runtime"] == "eager"]
    rows += [[f"UNet pass, {t['size']}, {t['precision']}", figure(milliseconds(t))] for t in passes]
    return markdown(["part", "ms"], rows)


def peak_table(result: Mapping) -> str:
    """FLOP/s of the passes beside torch's product of two matrices in the same precision."""
    matrices = of_group(result, "matmul")
    peaks = {timing["precision"]: flop_rate(timing) for timing in matrices}
    parts = [timing for timing in of_group(result, "parts") if timing["name"].startswith("extractor")]
    rows = []
    for timing in [*matrices, *of_group(result, "unet"), *parts]:
        name = timing["name"] + (f", {timing['size']}, batch {timing['batch']}" if timing["group"] == "unet" else "")
        rate = flop_rate(timing)
        share = f"{rate / peaks[timing['precision']]:.0%}" if timing["precision"] in peaks else "–"
        gigaflops = timing["flops"] / timing["images"] / 1e9
        cells = [figure(gigaflops, 2), figure(milliseconds(timing)), figure(rate / 1e9, 0), share]
        rows.append([name, timing["runtime"], timing["precision"], *cells])
    columns = ["what", "runtime", "precision", "GFLOP/image", "ms/image", "GFLOP/s", "share of the matrix peak"]
    return markdown(columns, rows)


def diffusion_table(result: Mapping) -> str:
    """Scoring one image beside the full reverse process with the same UNet in the same runtime and precision."""
    passes = {
        (timing["runtime"], timing["precision"]): timing
        for timing in reversed(of_group(result, "unet"))  # the first of each is of one image at the model's resolution
    }
    steps, rows = result["reverse_steps"], []
    for (name, runtime, precision), timings in scorers(result).items():
        if timings[0].get("is_peer") or (runtime, precision) not in passes:
            continue
        one_pass = milliseconds(passes[runtime, precision])
        scoring = per_image(timings, batches_of(result)[0], "tensors")
        measured = f"{figure(one_pass)} ({passes[runtime, precision]['calls']})"
        ratio = figure(steps * one_pass / scoring, 0)
        rows.append([name, runtime, precision, measured, figure(steps * one_pass / 1000, 2), figure(scoring), ratio])
    columns = ["scorer", "runtime", "precision", "UNet pass, ms (passes measured)", f"{steps} passes, s (computed)"]
    return markdown([*columns, "scoring, ms", "times as fast"], rows)


def work_table(result: Mapping) -> str:
    """Repair and training, in eager torch."""
    rows = [[t["name"], t["precision"], figure(milliseconds(t), 0)] for t in of_group(result, "repair", "training")]
    return markdown(["what", "precision", "ms"], rows)


def size_table(result: Mapping) -> str:
    """Megabytes of the saved and the exported folders, their largest entries, and the time from Python's start to a verdict."""
    starts = {timing["name"]: milliseconds(timing) / 1000 for timing in of_group(result, "start")}
    rows = []
    for name, entries in result["megabytes"].items():
        largest = sorted(entries, key=entries.__getitem__, reverse=True)[:4]
        named = ", ".join(f"{entry} {entries[entry]:.1f}" for entry in largest)
        rows.append([name, figure(sum(entries.values())), named, figure(starts[name])])
    return markdown(["folder", "MB", "largest entries", "first answer, s"], rows)


def conditions(result: Mapping) -> str:
    """Machine, versions and command of a run."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    flags = ", ".join(machine["flags"])
    return (
        f"{machine['cpu']} ({flags}), {machine['cores']} cores, {versions}; {result['images']} images, medians of "
        f"{result['runs']} interleaved rounds, seed {result['seed']}, {result['date']}:\n\n```\n{result['command']}\n```\n"
    )


TABLES = {
    "scoring": scoring_table,
    "growth": growth_table,
    "parts": parts_table,
    "peak": peak_table,
    "diffusion": diffusion_table,
    "work": work_table,
    "size": size_table,
    "conditions": conditions,
}
