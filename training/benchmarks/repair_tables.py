"""Markdown tables of the repair benchmark."""

from pathlib import Path
from statistics import fmean

from diffad_training.benchmarks.records import fill_tables, latest_results

# Methods of the summary, with their column titles.
SUMMARY = {
    "nothing": "untouched",
    "fill": "filled",
    "nearest good image pasted": "nearest good image",
    "partial diffusion, t = 200": "partial diffusion, t = 200",
    "Algorithm 1": "Algorithm 1",
    "diffad, mean": "**diffad, mean**",
    "diffad": "**diffad**",
}
OUTSIDE = ("Algorithm 1", "diffad")
FIGURES = {
    "PSNR inside": ("psnr_inside", 1),
    "PSNR outside": ("psnr_outside", 1),
    "SSIM inside": ("ssim_inside", 2),
    "feature distance inside": ("feature_distance_inside", 2),
    "Eq. 12": ("mahalanobis", 0),
    "changed of the defect": ("changed_of_defect", 2),
}


def table(record: dict) -> str:
    """Markdown table of one category."""
    columns = ["defect", "method", *FIGURES, "scored normal", "confident", "s/image", "UNet passes"]
    lines = _head(columns)
    for share, methods in record["synthetic"].items():
        for name, figures in methods.items():
            cells = [f"{figures[k]['median']:.{n}f} ({figures[k]['worst_decile']:.{n}f})" for k, n in FIGURES.values()]
            cells += [_percent(figures["scored_normal"]), _percent(figures["confident"])]
            cells += [f"{figures['seconds']:.2f}", f"{figures['unet_passes']:.0f}"]
            lines.append(f"| {_size(share)} | {name} | " + " | ".join(cells) + " |")
    good, count = record["real"]["good"], record["synthetic_images"]
    slow = record.get("slow_images", count)  # earlier runs know of none
    fewer = f"Algorithm 1 repaired the first {slow} of each. " if slow < count else ""
    lines += [
        "",
        f"{count} synthetic defects of each size on good test images, median and (worst decile). {fewer}"
        f"{100 * good['changed_pixels']:.2f} % of the pixels of {good['images']} good test images are changed. "
        f"Seed {record['seed']}, {record['machine']}, {record['date']}.",
    ]
    return "\n".join(lines) + "\n"


def by_size(records: list[dict], key: str, digits: int) -> str:
    """Markdown table of one figure: medians of all categories and sizes for the methods of the summary."""
    lines = _head(["category", "defect", *SUMMARY.values()])
    for record in records:
        for share, methods in record["synthetic"].items():
            cells = [f"{methods[name][key]['median']:.{digits}f}" if name in methods else "" for name in SUMMARY]
            lines.append(f"| {record['category']} | {_size(share)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def outside(records: list[dict]) -> str:
    """Markdown table of what is kept and what it costs, in the mean of all sizes."""
    lines = _head(["category", "outside: Algorithm 1", "outside: **diffad**", "UNet passes", "s/image", "good pixels changed"])
    for record in records:
        sizes = record["synthetic"].values()
        of_methods = {
            name: [methods[name]["psnr_outside"]["median"] for methods in sizes if name in methods] for name in OUTSIDE
        }
        cells = [f"{fmean(medians):.1f}" if medians else "" for medians in of_methods.values()]
        passes, seconds = (fmean(methods["diffad"][key] for methods in sizes) for key in ("unet_passes", "seconds"))
        cells += [f"{passes:.0f}", f"{seconds:.1f}"]
        cells += [f"{100 * record['real']['good']['changed_pixels']:.2f} %"]
        lines.append(f"| {record['category']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def real(records: list[dict]) -> str:
    """Markdown table of real defects: how many each judge calls normal, before and after repair."""
    judges = list(dict.fromkeys(name for record in records for name in record["real"]["defective"]["judges"]))
    titles = [f"{judge}: {when}" for judge in judges for when in ("before", "after")]
    lines = _head(["category", "images", *titles, "confident"])
    for record in records:
        of_images = record["real"]["defective"]
        cells = [str(of_images["images"])]
        for judge in judges:
            figures = of_images["judges"].get(judge, {})
            cells += [_percent(figures.get(key)) for key in ("normal_before", "normal_after")]
        lines.append(f"| {record['category']} | " + " | ".join([*cells, _percent(of_images["confident"])]) + " |")
    return "\n".join(lines) + "\n"


def update_tables(document: Path, results: Path) -> None:
    """Fills the tables `<!-- repair:NAME -->` of a document, and `<!-- repair -->` with that of every category."""
    newest = latest_results(results, ["category"])
    tables = {
        "": "\n".join(f"**{record['category']}**\n\n{table(record)}" for record in newest),
        "psnr": by_size(newest, "psnr_inside", 1),
        "features": by_size(newest, "feature_distance_inside", 2),
        "outside": outside(newest),
        "real": real(newest),
    }
    fill_tables(document, "repair", tables.__getitem__)


def _head(columns: list[str]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _size(share: str) -> str:
    return f"{100 * float(share):g} %"
