"""What a source of images holds and what can be done with it, said before anything is trained."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..scoring.conformal import images_behind_thresholds, images_needed
from .ground_truth import MOST_BLANK
from .image_check import ImageCheck, check_images
from .layout import Source
from .registry import find_layout
from .sample import DataError, Sample
from .split import count_groups, split_held_out

FALSE_ALARM_RATES = (0.1, 0.05, 0.01)
SHOWN = 5  # of a list of files


@dataclass
class DatasetDescription:
    """What [`describe`] found. `str()` renders it for people.

    Args:
        source: as it was given.
        layout: name of the recognised layout.
        structure: what it was recognised by.
        notes: how this layout is read.
        training: number of good images to train on, held-out ones included.
        held_out: how many of them calibrate thresholds; 0 where there are too few to split.
        held_out_groups: how many groups these are; as many as images where the dataset names none.
        own_split: the dataset itself says which are held out.
        test: number of test images by type, `good` first.
        images: what decoding all of them showed.
        warnings: what may spoil a result.
    """

    source: str
    layout: str
    structure: str
    notes: list[str]
    training: int
    held_out: int
    held_out_groups: int
    own_split: bool
    test: dict[str, int]
    images: ImageCheck
    warnings: list[str]

    @property
    def best_false_alarm_rate(self) -> float | None:
        """The lowest rate that the held-out groups can guarantee: 1 / (n + 1) with the n behind the thresholds."""
        return 1 / (images_behind_thresholds(self.held_out_groups) + 1) if self.held_out_groups > 1 else None

    def __str__(self) -> str:
        rows = [("source", self.source), ("layout", f"{self.layout}: {self.structure}")]
        rows += [("", note) for note in self.notes]
        rows += [("training", _count(self.training, "good image")), ("held out", self._held_out_text())]
        rows += [("false alarms", self._false_alarm_text())] if self.held_out_groups > 1 else []
        rows += [("test", self._test_text()), ("masks", self._mask_text()), ("size", _size_text(self.images.sizes))]
        rows += [("colour", _colour_text(self.images)), ("unreadable", _first(self.images.unreadable) or "none")]
        rows += [("warning", warning) for warning in self.warnings]
        return "\n".join(f"{label:<14}{text}" for label, text in rows)

    def _held_out_text(self) -> str:
        if not self.held_out:
            return "none: too few images to split"
        origin = "the dataset's validation images" if self.own_split else "drawn from them"
        groups = f" in {_count(self.held_out_groups, 'group')}" if self.held_out_groups < self.held_out else ""
        return f"{self.held_out}{groups}, {origin}; {self.training - self.held_out} remain to train on"

    def _false_alarm_text(self) -> str:
        needed = {rate: images_needed(rate) for rate in FALSE_ALARM_RATES}
        own = self.held_out_groups
        rates = ", ".join(f"{rate:.0%} {'yes' if n <= own else f'no (needs {n})'}" for rate, n in needed.items())
        counted = "images" if own == self.held_out else "groups"
        return f"held-out {counted} guarantee {self.best_false_alarm_rate:.1%} at best: {rates}"

    def _test_text(self) -> str:
        if not self.test:
            return "none: can train and predict, but not evaluate"
        defects = [f"{name} {count}" for name, count in self.test.items() if name != "good"]
        total = sum(count for name, count in self.test.items() if name != "good")
        return f"{self.test.get('good', 0)} good, {total} defective" + (f": {', '.join(defects)}" if defects else "")

    def _mask_text(self) -> str:
        masks = self.images.masks
        total = masks["present"] + masks["missing"]
        if not masks["present"]:
            return "none" + (": evaluation gives image metrics only" if total else "")
        return f"{masks['present']} of {total} defective images"


def describe(source: Source, held_out_fraction: float = 0.15, seed: int = 0, all_good: bool = False) -> DatasetDescription:
    """Recognises a source and decodes all of its images and masks once.

    Args:
        source: as for `training_samples`.
        held_out_fraction, seed: of the split that training would make.
        all_good: as for `training_samples`.

    Raises:
        DataError: if the layout is not recognised. Whatever else is wrong is told in the description.
    """
    layout, source = find_layout(source, all_good)
    warnings: list[str] = []
    training = _attempt(layout.training, source, "training would stop", warnings)
    test = _attempt(layout.test, source, "evaluation would stop", warnings)
    held_out: list[Sample] = []
    if training:
        try:
            held_out = split_held_out(training, held_out_fraction, seed)[1]
        except DataError as error:
            warnings.append(f"training would stop: {error}")
    images = check_images([*training, *test])
    counts = Counter(sample.defect for sample in test)
    description = DatasetDescription(
        source=str(source),
        layout=layout.name,
        structure=layout.structure,
        notes=_attempt(layout.notes, source, "notes", warnings),
        training=len(training),
        held_out=len(held_out),
        held_out_groups=count_groups(held_out),
        own_split=any(sample.held_out for sample in training),
        test={name: counts[name] for name in sorted(counts, key=lambda name: (name != "good", name))},
        images=images,
        warnings=warnings,
    )
    warnings += _few_images(description, held_out_fraction) + _doubtful_test(test, images) + _size_warnings(images.sizes)
    warnings += _duplicates(training, test, images.digests)
    warnings += images.doubtful[:SHOWN]
    if len(images.doubtful) > SHOWN:
        warnings.append(f"{len(images.doubtful) - SHOWN} more images or masks with such warnings")
    return description


def _attempt(read: Callable[[Source], list], source: Source, problem: str, warnings: list[str]) -> list:
    try:
        return read(source)
    except DataError as error:
        warnings.append(f"{problem}: {error}")
        return []


def _few_images(description: DatasetDescription, fraction: float) -> list[str]:
    needed = images_needed(0.05)
    if not description.training or description.held_out_groups >= needed:
        return []
    kind = "groups of images" if description.held_out_groups < description.held_out else "images"
    remedy = f"{needed} validation {kind}" if description.own_split else f"about {math.ceil(needed / fraction)} good {kind}"
    return [f"too few good {kind} for a guaranteed false-alarm rate of 5%: that takes {remedy}"]


def _doubtful_test(test: Sequence[Sample], images: ImageCheck) -> list[str]:
    found = []
    if test and len({sample.is_defective for sample in test}) == 1:
        kind = "defective" if test[0].is_defective else "good"
        found.append(f"evaluation would stop: all test images are {kind}")
    masks = images.masks
    if masks["present"] and masks["missing"]:
        found.append(f"evaluation would stop: {_count(masks['missing'], 'defective image')} without a mask, others with one")
    if masks["of another size"]:
        found.append(f"evaluation would stop: {_count(masks['of another size'], 'mask')} of another size than the image")
    if masks["blank"]:
        consequence = "evaluation would stop: " if masks["blank"] > MOST_BLANK * masks["present"] else ""
        found.append(f"{consequence}{_count(masks['blank'], 'defective image')} with a blank mask")
    if images.unreadable:
        found.append(
            f"training or evaluation would stop at {_count(len(images.unreadable), 'unreadable file')}: remove or save anew"
        )
    return found


def _size_warnings(sizes: Counter) -> list[str]:
    ratios = {width / height for width, height in sizes}
    if len(sizes) < 2:
        return []
    if max(ratios) / min(ratios) > 1.1:
        return [f"{len(sizes)} image sizes of different shape: each is stretched to the model's square, so parts are distorted"]
    return [f"{len(sizes)} image sizes: parts may appear at different scales"]


def _duplicates(training: Sequence[Sample], test: Sequence[Sample], digests: dict[str, bytes]) -> list[str]:
    first: dict[bytes, str] = {}
    copies, leaked = [], []
    for sample in training:
        if sample.name in digests:
            original = first.setdefault(digests[sample.name], sample.name)
            if original != sample.name:
                copies.append(f"{sample.name} = {original}")
    for sample in test:
        if digests.get(sample.name) in first:
            kind = " (defective)" if sample.is_defective else ""
            leaked.append(f"{sample.name}{kind} = {first[digests[sample.name]]}")
    found = []
    if leaked:
        found.append(f"{_count(len(leaked), 'test image')} also among the training images: {_first(leaked)}")
    if copies:
        found.append(
            f"{_count(len(copies), 'training image')} the same as another, so held-out ones may be known: {_first(copies)}"
        )
    return found


def _size_text(sizes: Counter) -> str:
    if not sizes:
        return "unknown"
    if len(sizes) <= 3:
        each = [
            f"{width}x{height}" + (f" ({_count(count, 'image')})" if len(sizes) > 1 else "")
            for (width, height), count in sizes.items()
        ]
        return ", ".join(each) + " pixels"
    expanded = np.repeat(list(sizes), list(sizes.values()), axis=0)
    low, middle, high = expanded.min(axis=0), np.median(expanded, axis=0).astype(int), expanded.max(axis=0)
    return f"width {low[0]} to {high[0]} (median {middle[0]}), height {low[1]} to {high[1]} (median {middle[1]}) pixels"


def _colour_text(images: ImageCheck) -> str:
    if images.colour and images.grey:
        return f"{images.colour} in colour, {images.grey} grey"
    return "colour" if images.colour else "grey" if images.grey else "unknown"


def _first(lines: Sequence[str]) -> str:
    rest = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + rest


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
