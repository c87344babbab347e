"""diffad audit"""

from pathlib import Path
from typing import Annotated

import typer

from .options import AllGood, BatchSize, Device


def audit(
    data: Annotated[str, typer.Argument(help="Good images, as for training: a folder, a dataset, a manifest.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for audit.html and audit.csv.", show_default=False)],
    config: Annotated[str, typer.Option(help="Preset or YAML file of the training, of which the extractor is taken.")] = (
        "cpu-small"
    ),
    extractor: Annotated[str | None, typer.Option(help="As of training, in place of the preset's.")] = None,
    levels: Annotated[str | None, typer.Option(help="As of training, in place of the preset's.")] = None,
    feature_stride: Annotated[str | None, typer.Option(help="As of training, in place of the preset's.")] = None,
    resolution: Annotated[str | None, typer.Option(help="As of training, in place of the preset's.")] = None,
    shown: Annotated[int, typer.Option(help="Images in the gallery at most.", min=1)] = 60,
    all_good: AllGood = False,
    batch_size: BatchSize = 8,
    device: Device = None,
) -> None:
    """Look for defects, duplicates and test images among good images, before training.

    The gallery shows the images most unlike the others, and near duplicates. The list names all images by rank; those with a
    reason are left out by `diffad train --exclude`: remove the reason of what is good after all. No model is needed.

    Examples:

    ```
    diffad audit parts/good --output runs/audit
    diffad audit parts --output runs/audit --resolution 320 --shown 200
    ```
    """
    import torch
    from diffad_training.components import build_extractor
    from diffad_training.config import load_config

    from ..data import find_layout
    from ..evaluation.report.audit_page import write_audit_page
    from ..jobs.audit import audit as audit_images
    from ..jobs.audit import read_images
    from ..jobs.audit_gallery import audit_page
    from ..jobs.exclusion import write_list
    from .loading import check_device

    chosen = {"extractor": extractor, "levels": levels, "feature_stride": feature_stride, "resolution": resolution}
    settings = load_config(config, {"data": data, **chosen})
    if device is not None:
        check_device(device)
    layout, source = find_layout(data, all_good)
    good, test = layout.training(source), layout.test(source)
    output.mkdir(parents=True, exist_ok=True)
    network = build_extractor(settings).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    result = audit_images(good, read_images([*good, *test], network, settings.resolution, batch_size), test)
    write_list(result, output / "audit.csv")
    write_audit_page(audit_page(result, data, shown), output / "audit.html")
    for reason in ("outlier", "duplicate", "leak"):
        names = [result.samples[finding.index].name for finding in result.findings if finding.reason == reason]
        typer.echo(f"{reason + 's:':<12} {len(names)}" + (f", such as {names[0]}" if names else ""))
    typer.echo(f"{output / 'audit.html'} shows them; {output / 'audit.csv'} lists them")
