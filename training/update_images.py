"""Which images an update fits and which it calibrates on: never the same, and none that were chosen by their scores."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffad.data import DataError, Sample, split_held_out, training_samples
from diffad.jobs.history import CALIBRATION, HistoryEntry, counting, read_history
from diffad.monitoring.feedback_list import FeedbackList, check_drawn_at_random
from diffad_training.config import TrainingConfig
from diffad_training.good_images import good_samples_of, held_out_samples
from diffad_training.kept_moments import KeptMoments, image_digest, image_digests


@dataclass(frozen=True)
class UpdateImages:
    """Images by what an update does with them.

    Args:
        fitted: of the sample, for the Gaussians.
        rejected: wrongly rejected parts, for the Gaussians only.
        held_out: of the sample, for the thresholds.
        known: how many images were left out because the model has fitted or held them out before.
        defective: how many because they are defective by the operator's word.
    """

    fitted: list[Sample]
    rejected: list[Sample]
    held_out: list[Sample]
    known: int
    defective: int


def new_images(
    folder: Path,
    rejected: Path | None,
    config: TrainingConfig,
    kept: KeptMoments,
    feedback: FeedbackList,
    all_good: bool = False,
) -> UpdateImages:
    """Divides new images by the rule of training, once those that can't count are left out.

    Args:
        folder: good parts drawn at random, rejected or not; of several categories with a subfolder for each that has new ones.
        rejected: folder with wrongly rejected parts; those count that the feedback says so of.
        all_good: the folder's subfolders all hold good images.

    Raises:
        DataError: if a folder can't be used, or no new images are left.
        ValueError: if the images were chosen by their scores.
    """
    samples = _samples(folder, config, all_good)
    digests = dict(zip((sample.name for sample in samples), image_digests(samples), strict=True))
    check_drawn_at_random(digests.values(), feedback, folder)
    seen = kept.fitted | kept.held_out
    new = list(_first_of_each(samples, digests, seen))
    usable = [sample for sample in new if digests[sample.name] not in feedback.defective]
    if not usable:
        raise DataError(f"{folder}: none of its {len(samples)} images is new to the model and good; name a folder of others")
    fitted, held_out = split_held_out(usable, config.held_out_fraction, config.seed)
    extra = []
    if rejected is not None:
        others = _samples(rejected, config, all_good=True)
        of_others = dict(zip((sample.name for sample in others), image_digests(others), strict=True))
        chosen = [sample for sample in others if of_others[sample.name] in feedback.wrongly_rejected]
        extra = list(_first_of_each(chosen, of_others, seen | set(digests.values())))
        if not chosen:
            raise DataError(f"{rejected}: the feedback says of none of its {len(others)} images that it was wrongly rejected")
    return UpdateImages(fitted, extra, held_out, len(samples) - len(new), len(new) - len(usable))


def former_calibration_samples(
    model: Path, config: TrainingConfig, kept: KeptMoments, feedback: FeedbackList, data: str | None
) -> list[Sample]:
    """The images that the model's thresholds come from now, but those that are defective by the operator's word.

    Args:
        data: where the training data lies now; None is where it was.

    Raises:
        DataError: naming the images that are not where they were.
    """
    from_training, entries = counting(read_history(model))
    samples = held_out_samples(model, data) if from_training else []
    for entry in entries:
        samples += _samples_of_entry(entry, config)
    left_out = feedback.defective | kept.fitted
    return [sample for sample in samples if image_digest(sample) not in left_out]


def _samples_of_entry(entry: HistoryEntry, config: TrainingConfig) -> list[Sample]:
    if config.categories and entry.event == CALIBRATION:
        raise DataError(
            f"{entry.folder}: the model was calibrated on these images by recognised categories, which an update does not "
            "know; calibrate on the new images alone with --calibrate-on-new"
        )
    calibrated = set(entry.calibrated)
    folder = Path(entry.folder)
    found = _samples(folder, config, all_good=True) if folder.is_dir() else []
    chosen = [sample for sample in found if sample.name in calibrated]
    if len(chosen) < len(calibrated):
        raise DataError(
            f"{folder}: {len(calibrated) - len(chosen)} of the {len(calibrated)} images that the model was calibrated on are "
            "not there; put them back, or calibrate on the new images alone with --calibrate-on-new"
        )
    return chosen


def _samples(folder: Path, config: TrainingConfig, all_good: bool) -> list[Sample]:
    """Good images of a folder, with the categories of a model of several."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not config.categories:
        return training_samples(folder, all_good)
    present = [name for name in config.categories if (folder / name).is_dir()]
    if not present:
        raise DataError(
            f"{folder}: has none of the folders {', '.join(config.categories)}; put each category's images into one"
        )
    samples = good_samples_of(str(folder), present, all_good)
    return [dataclasses.replace(s, category=config.categories.index(present[s.category])) for s in samples]


def _first_of_each(samples: Sequence[Sample], digests: dict[str, str], seen: Collection[str]) -> Iterator[Sample]:
    """Those whose file was not seen before, nor earlier among them."""
    seen = set(seen)
    for sample in samples:
        if digests[sample.name] not in seen:
            seen.add(digests[sample.name])
            yield sample
