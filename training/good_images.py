"""The good images of a run: where they come from, and which are held out, by the rule or by a record of their names."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from diffad.data import (
    DataError,
    Sample,
    category_samples,
    count_groups,
    image_files,
    split_by_names,
    split_held_out,
    training_samples,
)
from diffad.imaging.preprocessing import load_region
from diffad.jobs.exclusion import read_excluded, without_excluded
from diffad.jobs.history import read_history
from diffad.jobs.recalibrate import check_aspect
from diffad.system.file_digest import file_digest
from diffad_training.config import TrainingConfig, load_config
from diffad_training.kept_moments import fitted_images

HELD_OUT = "held_out.json"


def good_samples(config: TrainingConfig) -> list[Sample]:
    """All good images that a run may train on or hold out, of all its categories, in a fixed order.

    Raises:
        DataError: if there is no such source, its layout is not recognised, or it holds no images, or the list of images to
            exclude names others.
    """
    samples = good_samples_of(config.data, config.categories, config.all_good)
    if config.exclude is None:
        return samples
    return without_excluded(samples, read_excluded(Path(config.exclude)), Path(config.exclude))


def excluded_names(config: TrainingConfig) -> list[str]:
    """Names of the images that a run leaves out because its list says so."""
    return [] if config.exclude is None else sorted(set(read_excluded(Path(config.exclude))))


def good_samples_of(source: str, categories: Sequence[str], all_good: bool) -> list[Sample]:
    """The same of a source, its categories (none where it is one itself), and whether all subfolders are of good images."""
    return category_samples(source, categories, all_good) if categories else training_samples(source, all_good)


def split_samples(
    samples: Sequence[Sample], config: TrainingConfig, recorded: Collection[str] | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out images: those of the names that a model or checkpoint records, else by the rule.

    Raises:
        DataError: if there are too few images, or recorded ones are missing.
    """
    if recorded is None:
        training, held_out = split_held_out(samples, config.held_out_fraction, config.seed)
    else:
        training, held_out = split_by_names(samples, recorded)
    for category in sorted({sample.category for sample in held_out}):
        of_category = [sample for sample in held_out if sample.category == category]
        if count_groups(of_category) < 2:  # one for the statistics, one for the thresholds
            raise DataError(
                f"the {len(of_category)} held-out images (such as {of_category[0].name}) are all of group "
                f"{of_category[0].group!r}; thresholds count groups, so at least 4 of them are needed"
            )
    return training, held_out


def group_names(samples: Sequence[Sample]) -> list[str] | None:
    """The group of each image, its own name where it has none; None where no image has one."""
    if all(sample.group is None for sample in samples):
        return None
    return [sample.name if sample.group is None else sample.group for sample in samples]


def check_region(roi: str | None, samples: Sequence[Sample]) -> None:
    """Refuses a region of interest that does not have the framing of the images, which are all alike where there is one.

    Raises:
        ImageError: if it can't be read, or has another aspect than the first image.
    """
    if roi is not None:
        check_aspect(load_region(roi), roi, samples[0].read().size)


def save_held_out(held_out: Sequence[Sample], folder: Path) -> None:
    """Writes the names of the held-out images, which decide from now on, beside a model."""
    names = sorted(sample.name for sample in held_out)
    (folder / HELD_OUT).write_text(json.dumps({"held_out": names}, indent=1) + "\n", encoding="utf-8")


def read_held_out(model: Path) -> list[str]:
    """Names of the held-out images of a trained model.

    Raises:
        DataError: if the model folder has no record of them, or it is damaged.
    """
    path = model / HELD_OUT
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; models of earlier releases don't say which images they hold out, so train {model.name} anew"
        )
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["held_out"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged; copy the model's folder anew") from None
    return names


def held_out_samples(model: Path, data: str | None = None) -> list[Sample]:
    """The held-out images whose names train.py wrote beside the model.

    Args:
        data: where the training data lies now; None is where it was.

    Raises:
        DataError: if the model folder lacks its training settings or the names, or the data is not what they fit.
    """
    path = model / "training_config.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a folder that train.py wrote")
    settings = json.loads(path.read_text(encoding="utf-8"))
    names = read_held_out(model)
    source = settings["data"] if data is None else data
    samples = good_samples_of(source, settings.get("categories", ()), settings.get("all_good", False))
    return split_by_names(samples, names)[1]


def images_trained_on(model: Path, folder: Path | None = None) -> set[Path]:
    """Image files that a model has been fitted to, absolute, as far as its settings, records and data are where they were.

    Those that were excluded from training are among them: they are no good images to calibrate on.

    Args:
        folder: whose images are among them, too, if their files are known from the model's moments.
    """
    found = _files_fitted(model, folder) if folder is not None and folder.is_dir() else set()
    settings = model / "training_config.json"
    if not settings.is_file() or not (model / HELD_OUT).is_file():
        return found
    config, held_out = load_config(str(settings), {}), set(read_held_out(model))
    source = Path(config.data)
    try:
        samples = good_samples_of(config.data, config.categories, config.all_good) if source.exists() else []
    except DataError:  # other data by now
        return set()
    root = (source if source.is_dir() else source.parent).resolve()
    of_updates = {Path(entry.folder) / name for entry in read_history(model) for name in entry.fitted}
    return found | of_updates | {root / sample.name for sample in samples if sample.name not in held_out}


def _files_fitted(model: Path, folder: Path) -> set[Path]:
    """Image files of a folder, absolute, that the Gaussians of a model were fitted to, wherever these lay."""
    fitted = fitted_images(model)
    paths = image_files(folder) if fitted else []
    return {path.resolve() for path in paths if file_digest(path) in fitted}
