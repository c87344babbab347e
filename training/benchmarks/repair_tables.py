"""Markdown tables of the repair benchmark."""

from pathlib import Path

from diffad_training.benchmarks.records import fill_tables, latest_results

# Methods of the summary, with their column titles.
SUMMARY = {
    "nothing": "untouched",
    "fill": "filled",
    "gradient descent": "gradient descent",
    "partial diffusion, t = 100": "partial diffusion, t = 100",
    "Algorithm 1": "Algorithm 1",
    "diffad": "**diffad**",
}


def table(record: dict) -> str:
    """Markdown table of one category."""
    columns = ["method", "PSNR inside", "PSNR outside", "SSIM inside", "feature distance inside", "Eq. 12", "scored normal"]
    columns += ["s/image", "UNet passes"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, figures in record["synthetic"].items():
        cells = [
            f"{figures[key]['median']:.{digits}f} ({figures[key]['worst_decile']:.{digits}f})"
            for key, digits in (
                ("psnr_inside", 1),
                ("psnr_outside", 1),
                ("ssim_inside", 2),
                ("feature_distance_inside", 2),
                ("mahalanobis", 0),
            )
        ]
        cells += [f"{100 * figures['scored_normal']:.0f} %", f"{figures['seconds']:.2f}", f"{figures['unet_passes']:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    defective, good = record["real"]["defective"], record["real"]["good"]
    lines += [
        "",
        f"{record['synthetic_images']} synthetic defects on good test images, median and (worst decile). Real test images: of "
        f"{defective['images']} defective ones {100 * defective['normal_before']:.0f} % score as normal before and "
        f"{100 * defective['normal_after']:.0f} % after repair; {100 * good['changed_pixels']:.2f} % of the pixels "
        f"of {good['images']} good ones are changed. Seed {record['seed']}, {record['machine']}, {record['date']}.",
    ]
    return "\n".join(lines) + "\n"


def summary(records: list[dict]) -> str:
    """Markdown table of all categories: median PSNR inside and outside the defect, cost, and what becomes of real defects."""
    columns = ["category", *(f"inside: {title}" for title in SUMMARY.values()), "outside: Algorithm 1", "outside: **diffad**"]
    columns += ["UNet passes", "s/image", "real defects scored normal: before", "after", "pixels of good images changed"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for record in records:
        synthetic, ours = record["synthetic"], record["synthetic"]["diffad"]
        defective, good = record["real"]["defective"], record["real"]["good"]
        cells = [f"{synthetic[name]['psnr_inside']['median']:.1f}" for name in SUMMARY]
        cells += [f"{synthetic[name]['psnr_outside']['median']:.1f}" for name in ("Algorithm 1", "diffad")]
        cells += [f"{ours['unet_passes']:.0f}", f"{ours['seconds']:.1f}"]
        cells += [f"{100 * defective[key]:.0f} %" for key in ("normal_before", "normal_after")]
        cells += [f"{100 * good['changed_pixels']:.2f} %"]
        lines.append(f"| {record['category']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def update_tables(document: Path, results: Path) -> None:
    """Fills `<!-- repair -->` (newest table of every category) and `<!-- repair:summary -->`, up to `<!-- /repair -->`."""
    newest = latest_results(results, ["category"])
    tables = {
        "": "\n".join(f"**{record['category']}**\n\n{table(record)}" for record in newest),
        "summary": summary(newest),
    }
    fill_tables(document, "repair", tables.__getitem__)
