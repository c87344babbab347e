"""Which good images are held out of training, for validation and calibration.

The choice depends on an image's own name, or on that of its group, and hardly on the others: images that are added or removed
move at most those at the boundary. Once a model is trained, the recorded names decide ([`split_by_names`]), not the rule.
"""

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from .sample import DataError, Sample

LEAST = 2  # images on either side, and groups where there are twice as many
SHOWN = 3  # names in an error


def split_held_out(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Splits off held-out good images: `(training, held_out)`, both in order.

    Groups are ranked by a hash of the seed and their name, and the lowest are held out, as near to the share as groups allow.
    At least two images go to either side, and two groups where there are four. Where the dataset has a validation split of its
    own, that is held out, whatever `fraction` and `seed`. Every category is split as it would be without the others.

    Args:
        fraction: of the images to hold out, in [0, 1].
        seed: of the hash.

    Raises:
        DataError: with fewer than four images of a category, if its images are all of one group, or if the dataset's own split
            has fewer than two on one side or divides a group.
    """
    chosen: set[int] = set()
    for category in sorted({sample.category for sample in samples}) or [0]:
        indices = [i for i, sample in enumerate(samples) if sample.category == category]
        chosen |= _choose_held_out(samples, indices, fraction, seed)
    return _divided(samples, chosen)


def split_by_names(samples: Sequence[Sample], held_out_names: Collection[str]) -> tuple[list[Sample], list[Sample]]:
    """Splits off the held-out images that a model's record names: `(training, held_out)`, both in order.

    Images that the record does not name, because they came later, are among the training images.

    Raises:
        DataError: if a recorded name is missing from the samples.
    """
    recorded = {_composed(name): name for name in held_out_names}
    missing = sorted(recorded.keys() - {_composed(sample.name) for sample in samples})
    if missing:
        raise DataError(
            f"{len(missing)} of {len(recorded)} images that the model holds out are not in the data: "
            f"{first_few([recorded[name] for name in missing])}; name the data that it was trained on"
        )
    return _divided(samples, {i for i, sample in enumerate(samples) if _composed(sample.name) in recorded})


def count_groups(samples: Iterable[Sample]) -> int:
    """Number of groups; an image without one counts as a group."""
    return len({_group(sample) for sample in samples})


def first_few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _divided(samples: Sequence[Sample], chosen: set[int]) -> tuple[list[Sample], list[Sample]]:
    training = [sample for i, sample in enumerate(samples) if i not in chosen]
    return training, [samples[i] for i in sorted(chosen)]


def _choose_held_out(samples: Sequence[Sample], indices: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Which indices of one category's samples are held out."""
    if len(indices) < 2 * LEAST:
        names = ", ".join(samples[i].name for i in indices) or "none"
        raise DataError(f"only {len(indices)} good images ({names}); at least 4 are needed to train and to calibrate")
    own = {i for i in indices if samples[i].held_out}
    if own:
        _check_own_split(samples, indices, own)
        return own
    groups: dict[tuple[int, str], list[int]] = {}
    for i in indices:
        groups.setdefault(_group(samples[i]), []).append(i)
    if len(groups) < 2:
        raise DataError(
            f"{len(indices)} good images, all of group {samples[indices[0]].group!r} (such as {samples[indices[0]].name}); at "
            "least 2 groups are needed to train on one and to calibrate on another"
        )
    share = min(max(round(len(indices) * fraction), LEAST), len(indices) - LEAST)
    chosen = _lowest_ranked(groups, share, seed)
    if len(chosen) < LEAST:
        raise DataError(
            f"{len(indices)} good images in {len(groups)} groups, which can't be divided into {LEAST} images to train on and "
            f"{LEAST} to calibrate on (such as {samples[indices[0]].name}); add images or groups"
        )
    return chosen


def _lowest_ranked(groups: Mapping[tuple[int, str], Sequence[int]], share: int, seed: int) -> set[int]:
    """Indices of whole groups, the lowest in rank that bring their number nearer to the share, or else to the least."""
    count = sum(map(len, groups.values()))
    least_groups = LEAST if len(groups) >= 2 * LEAST else 1
    ranked = sorted(groups, key=lambda group: (_rank(seed, group[1]), group))
    chosen: set[int] = set()
    taken: set[tuple[int, str]] = set()
    for only_nearer in (True, False):
        for group in ranked:
            size = len(groups[group])
            is_nearer = len(chosen) + size - share <= share - len(chosen)
            is_enough = len(chosen) >= LEAST and len(taken) >= least_groups
            leaves_enough = count - len(chosen) - size >= LEAST and len(groups) - len(taken) - 1 >= least_groups
            if group not in taken and leaves_enough and (is_nearer if only_nearer else not is_enough):
                chosen.update(groups[group])
                taken.add(group)
    return chosen


def _check_own_split(samples: Sequence[Sample], indices: Sequence[int], own: set[int]) -> None:
    rest = [i for i in indices if i not in own]
    if min(len(own), len(rest)) < LEAST:
        raise DataError(
            f"{len(rest)} training and {len(own)} validation images (such as {samples[indices[0]].name}); at least "
            "2 of each are needed, or no validation split at all"
        )
    divided = {_group(samples[i]) for i in own} & {_group(samples[i]) for i in rest}
    if divided:
        names = [samples[i].name for i in indices if _group(samples[i]) == min(divided)]
        raise DataError(
            f"group {min(divided)[1]!r} has training and validation images ({first_few(names)}); images of one group are "
            "alike, so put all of them on one side"
        )


def _group(sample: Sample) -> tuple[int, str]:
    return sample.category, _composed(sample.group or sample.name)


def _rank(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{group}".encode(errors="surrogateescape"), digest_size=16).digest()


def _composed(name: str) -> str:
    """A name as most systems spell it; macOS stores letters and their accents apart."""
    return unicodedata.normalize("NFC", name)
