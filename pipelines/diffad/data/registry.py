"""Which layout a source has, and its samples."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from . import (
    btad,
    huggingface,
    kolektor_sdd,
    kolektor_sdd2,
    manifest,
    mvtec_ad,
    mvtec_ad2,
    mvtec_loco,
    plain_folder,
    visa,
)
from .ground_truth import check_masks
from .layout import Layout, Source
from .sample import DataError, Sample
from .walk import image_files, subfolders

# Layouts with a structure of their own. A plain folder is what has none, so it is asked last.
STRUCTURED = (
    mvtec_ad.LAYOUT,
    mvtec_loco.LAYOUT,
    mvtec_ad2.LAYOUT,
    visa.LAYOUT,
    btad.LAYOUT,
    kolektor_sdd.LAYOUT,
    kolektor_sdd2.LAYOUT,
    manifest.LAYOUT,
    huggingface.LAYOUT,
)
LAYOUTS = (*STRUCTURED, plain_folder.LAYOUT)
# A dataset's image folders lie at most this deep in it (VisA's Data/Images/Normal).
DEPTH = 3


def training_samples(source: Source, all_good: bool = False) -> list[Sample]:
    """Good images to train on, in a fixed order; a dataset's own validation images are among them, marked `held_out`.

    Args:
        source: folder in one of the known layouts, folder of good images (searched recursively), CSV manifest, folder written
            by `datasets.save_to_disk`, name `owner/name` of a dataset on the Hub, or a dataset object of the `datasets`
            library. A stream (`IterableDataset`) is read once, in order, and kept in memory as it was encoded.
        all_good: all images of a folder without a layout are good, though they lie in several subfolders.

    Raises:
        DataError: if there is no such source, its layout is not recognised, or it holds no images.
    """
    layout, source = find_layout(source, all_good)
    return layout.training(source)


def category_samples(root: str | Path, categories: Sequence[str], all_good: bool = False) -> list[Sample]:
    """Good images of several categories to train on, each a source of its own in the folder `root`.

    Args:
        root: holds a source for each category.
        categories: names of the sources; a sample's `category` is the index in this list.
        all_good: as for [`training_samples`].

    Raises:
        DataError: if there is no such source or it holds no images.
    """
    return [
        replace(
            sample,
            name=f"{category}/{sample.name}",
            category=index,
            group=None if sample.group is None else f"{category}/{sample.group}",
        )
        for index, category in enumerate(categories)
        for sample in training_samples(Path(root) / category, all_good)
    ]


def evaluation_samples(source: Source) -> list[Sample]:
    """Good and defective test images with their defect types and masks, all of which are decoded once to check them.

    Args:
        source: as for [`training_samples`].

    Raises:
        DataError: if good or defective test images are missing, some defective images have masks and others don't, or masks are
            blank: without any masks there are image-level metrics only.
        ImageError: if a mask can't be used.
    """
    layout, source = find_layout(source)
    samples = layout.test(source)
    needed = f"evaluation needs good and defective test images ({layout.structure})"
    if not samples:
        raise DataError(f"{source}: no test images; {needed}")
    if not any(sample.is_defective for sample in samples):
        raise DataError(f"{source}: no defective images; {needed}")
    if all(sample.is_defective for sample in samples):
        raise DataError(f"{source}: no good test images; {needed}")
    check_masks(samples, source)
    return samples


def find_layout(source: Source, all_good: bool = False) -> tuple[Layout, Source]:
    """The layout of a source, and the source as the layout wants it.

    Args:
        source: as for [`training_samples`].
        all_good: as there.

    Raises:
        DataError: if it doesn't exist, fits no layout or several, lies inside a dataset and holds more than good images, or
            holds images in several folders that are not said to be all good.
    """
    if not isinstance(source, (str, Path)):
        return huggingface.LAYOUT, source
    path = Path(source).expanduser()
    if not path.exists():
        if isinstance(source, str) and huggingface.is_hub_name(source):
            return huggingface.LAYOUT, source
        raise DataError(f"{source}: no such folder or file (datasets on the Hub are named owner/name)")
    found = [layout for layout in STRUCTURED if layout.recognize(path)]
    if len(found) > 1:
        fits = "; ".join(f"{layout.name} ({layout.structure})" for layout in found)
        raise DataError(f"{source}: fits several layouts: {fits}. Leave the folders of one of them")
    if found:
        return found[0], path
    reason = plain_folder.objection(path) if path.is_dir() else "it is a file, but no manifest (.csv)"
    if reason:
        raise DataError(_nothing_recognized(path, reason))
    several = None if all_good else plain_folder.several_folders(path)
    if several:
        raise DataError(f"{path}: {several}; name the one with good images, or say that all of them are good (--all_good)")
    _refuse_part_of_dataset(path)
    return plain_folder.LAYOUT, path


def _nothing_recognized(path: Path, reason: str) -> str:
    lines = [f"{path}: no known layout; {reason}. Looked for:"]
    lines += [f"  {layout.name}: {layout.structure}" for layout in LAYOUTS]
    datasets = {}
    for folder in subfolders(path) if path.is_dir() else []:
        for layout in STRUCTURED:
            if layout.recognize(folder):
                datasets[folder.name] = layout.name
    if datasets:
        names = ", ".join(f"{name} ({layout})" for name, layout in datasets.items())
        lines.append(f"It holds {names}: name one of them.")
    return "\n".join(lines)


def _refuse_part_of_dataset(folder: Path) -> None:
    """A folder inside a dataset may hold defects or masks that nothing in the folder itself gives away."""
    folder = folder.resolve()
    for root in folder.parents[:DEPTH]:
        for layout in STRUCTURED:
            if not layout.recognize(root):
                continue
            images, good = image_files(folder), set()
            for samples in (layout.training, layout.test):
                if not good.issuperset(images):
                    with suppress(DataError):  # a dataset without training images may still have good test images
                        good |= {root / sample.name for sample in samples(root) if not sample.is_defective}
            other = [path for path in images if path not in good]
            if other:
                raise DataError(
                    f"{folder}: is part of {root} ({layout.name}), where {other[0].relative_to(root)} is not a good image; "
                    f"name {root} itself, or its folder of good images"
                )
