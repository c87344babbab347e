"""Divides good images anew, so that a monitor's benchmark has many that the model has not seen.

    python training/benchmarks/monitoring_folders.py DATA_ROOT OUTPUT

Writes folders of links in the layout of MVTec LOCO. Benchmark data sets hold few good test images, and a stream that shows each
of them many times is not production: embeddings tell 24 images from 24 others. So most training images become test images here.
What else lies under `test` is a change of its own: the published test images of `screw`, which are darker than its training
images, and of `magnetic_tile-exposure`, tiles at one of their six exposures, those at the others. Names are drawn by seed 0.
"""

import argparse
from pathlib import Path

import numpy as np

EXPOSURE = "exp3"  # of which there are the most good images
# Images to train on and to hold out; all others are test images
DIVISIONS = {"grid": (90, 36), "screw": (120, 48), "magnetic_tile": (300, 90), "magnetic_tile-exposure": (60, 36)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Divide good images anew.", allow_abbrev=False)
    parser.add_argument("data_root", type=Path, help="folder of grid, screw and magnetic_tile in the layout of MVTec AD")
    parser.add_argument("output", type=Path, help="folder that is made")
    options = parser.parse_args(arguments)
    for name, (train, held_out) in DIVISIONS.items():
        paths = good_images(options.data_root, name)
        order = np.random.default_rng(0).permutation(len(paths))
        parts = np.split(order, [train, train + held_out])
        for split, chosen in zip(("train", "validation", "test"), parts, strict=True):
            link([paths[i] for i in chosen], options.output / name / split / "good")
    link(sorted((options.data_root / "screw/test/good").resolve().iterdir()), options.output / "screw/test/published")
    tiles = good_images(options.data_root, "magnetic_tile")
    for exposure in sorted({path.name.partition("_")[0] for path in tiles} - {EXPOSURE}):
        chosen = [path for path in tiles if path.name.startswith(f"{exposure}_")]
        if len(chosen) > 1:
            link(chosen, options.output / "magnetic_tile-exposure/test" / exposure)


def good_images(data_root: Path, name: str) -> list[Path]:
    """Files of one of the divisions, sorted."""
    category = data_root / name.partition("-")[0]
    folders = ("train/good",) if name == "screw" else ("train/good", "test/good")
    prefix = f"{EXPOSURE}_" if name.endswith("-exposure") else ""
    return sorted(path.resolve() for folder in folders for path in (category / folder).glob(f"{prefix}*"))


def link(paths: list[Path], folder: Path) -> None:
    """Links named by split and file, of which two may have the same name."""
    folder.mkdir(parents=True)
    for path in paths:
        (folder / f"{path.parent.parent.name}_{path.name}").symlink_to(path)


if __name__ == "__main__":
    main()
