"""Chooses the terms of a product's anomaly map by synthetic defects on held-out good images.

A candidate's worth is its pixel AP, the mean over the kinds of defects, so that a kind that nothing finds does not decide. The
default stays unless the best is better by more than chance: by two standard errors of the paired difference, from resamples of
the images. Else that candidate is taken, of those that the best is not better than by more than chance, which comes first. The
good images are those behind the score's statistics; the ones behind thresholds are never looked at, so that the guarantee for
good parts holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffad.evaluation.counts import count_pixels
from diffad.evaluation.sweep import sweep, sweep_metrics
from diffad.imaging.maps import resize_map
from diffad.imaging.preprocessing import ImageInput, load_rgb
from diffad.scoring import presets
from diffad.scoring.inputs import InputReader
from diffad.scoring.profiles import PROFILES
from diffad.scoring.scorer import Scorer
from diffad.scoring.tails import Tail, decades, fit_tail
from diffad.scoring.terms import mean_over_timesteps
from diffad_training.likely_defects import KINDS, likely_defects, shrunk
from tqdm.auto import tqdm

DEFECTS = 60
BATCH_SIZE = 8
MAP_SIZE = (128, 128)  # of the compared maps: a quarter of the pixels, and the metric sorts them all
RESAMPLES = 200
STANDARD_ERRORS = 2.0
MARGIN = 0.01  # of AP, below which a difference is not worth a change
DEFAULT = tuple(presets.DEFAULT["weights"])
CANDIDATES = (
    DEFAULT,
    ("residual", "detail"),
    ("rgb", "detail"),
    ("kl", "rgb", "detail"),
    ("detail",),
    (*DEFAULT, "feature"),
    (*DEFAULT, "feature_residual"),
    ("rgb", "feature_residual", "detail"),
    (*DEFAULT, "neighbors"),
    ("detail", "neighbors"),
    ("neighbors",),
)
OPTIONAL_TERMS = {"neighbors", "feature_residual"}  # that a model whose map is chosen may lack
# Of other profiles, the default first.
PROFILE_CANDIDATES = {
    "fast": (tuple(PROFILES["fast"]["weights"]), ("feature_residual",), ("pixel_residual",)),
}

Terms = tuple[str, ...]  # of a map, which is the mean of their tail probabilities


@dataclass(frozen=True)
class Choice:
    """What was chosen for one score.

    Args:
        chosen: the candidate's terms.
        margin, standard_error: of its AP over the default's, and of that difference; 0 for the default.
        average_precision: of every candidate, by name, the best first.
    """

    chosen: Terms
    margin: float
    standard_error: float
    average_precision: Mapping[str, float]

    @property
    def name(self) -> str:
        return described(self.chosen)

    def to_dict(self) -> dict:
        """For training_summary.json."""
        return {
            "chosen": self.name,
            "margin": round(self.margin, 4),
            "standard_error": round(self.standard_error, 4),
            "average_precision": {name: round(value, 4) for name, value in self.average_precision.items()},
        }


@dataclass(frozen=True)
class MapChoice(Choice):
    """What was chosen for a model's own score, and for profiles.

    Args:
        defects: how many there were, on how many images.
        pictures: defective images `(H, W, 3)` uint8 with their masks, some of each kind.
        of_profiles: choices for the profiles whose maps are chosen, too.
    """

    defects: tuple[int, int]
    pictures: Sequence[tuple[np.ndarray, np.ndarray]]
    of_profiles: Mapping[str, Choice]

    @property
    def terms_of_profiles(self) -> dict[str, Terms]:
        """Terms of the maps of these profiles."""
        return {name: choice.chosen for name, choice in self.of_profiles.items()}

    def to_dict(self) -> dict:
        of_defects = {"synthetic_defects": self.defects[0], "good_images": self.defects[1]}
        return {**super().to_dict(), **of_defects, "profiles": {k: v.to_dict() for k, v in self.of_profiles.items()}}


def described(terms: Terms) -> str:
    """A map's terms in one line."""
    return " + ".join(terms)


def candidates(scales: Sequence[str]) -> list[Terms]:
    """All of them, the default first, for a model with these scales."""
    missing = OPTIONAL_TERMS - set(scales)
    return [terms for terms in CANDIDATES if missing.isdisjoint(terms)]


@torch.no_grad()
def choose_map(
    scorer: Scorer,
    reader: InputReader,
    images: Sequence[ImageInput],
    categories: Sequence[int] | None,
    seed: int,
    roi: torch.Tensor | None = None,
) -> MapChoice:
    """Chooses the anomaly map of a fitted model.

    Args:
        scorer: with all scales.
        reader: of the scorer.
        images: good ones that give the statistics of the score.
        categories: index of each image's category, where there are several.
        seed: of the defects and the resamples; the same images and seed choose the same.
        roi: region of interest, bool `(h, w)`, in which defects count.
    """
    originals = [shrunk(load_rgb(image, f"image {i}")) for i, image in enumerate(images)]
    inside = np.ones(MAP_SIZE, bool) if roi is None else _at_map_size(roi.cpu().numpy())
    # Of a defect outside the region, or too small for the compared maps, there is nothing to be found.
    made = [defect for defect in likely_defects(originals, DEFECTS, seed) if (_at_map_size(defect[1]) & inside).any()]
    everything = [*images, *(image for image, _, _, _ in made)]
    owners = [*range(len(images)), *(i for _, _, _, i in made)]
    of_image = None if categories is None else [categories[i] for i in owners]
    masks = np.zeros((len(everything), *MAP_SIZE), bool)
    for i, (_, mask, _, _) in enumerate(made, start=len(images)):
        masks[i] = _at_map_size(mask) & inside
    kinds = np.array([""] * len(images) + [kind for _, _, kind, _ in made])
    resamples = _resamples(kinds, np.random.default_rng(seed))

    maps = _maps_in_decades(scorer, reader, everything, of_image, len(images))

    def precision(terms: Terms) -> np.ndarray:
        fused = inside * sum(maps[term] for term in terms)
        of_kinds = [_average_precision(fused, masks, *of_kind) for of_kind in resamples] or [np.zeros(1 + RESAMPLES)]
        return np.mean(of_kinds, axis=0)

    own = _best({terms: precision(terms) for terms in candidates(scorer.config.scales)})
    of_profiles = {
        name: _best({terms: precision(terms) for terms in tried})
        for name, tried in PROFILE_CANDIDATES.items()
        if {term for terms in tried for term in terms} <= set(scorer.config.all_terms)
    }
    return MapChoice(
        **vars(own),
        defects=(len(made), len(images)),
        pictures=[(image, mask) for image, mask, _, _ in made[: 3 * len(KINDS)]],
        of_profiles=of_profiles,
    )


def _best(precision: Mapping[Terms, np.ndarray]) -> Choice:
    """The choice among candidates, the default first, by their AP `(1 + RESAMPLES,)`."""
    tried = list(precision)
    # The first, which is the nearest to the default, that the best is not better than by more than chance.
    best = max(tried, key=lambda candidate: precision[candidate][0])
    chosen = next(candidate for candidate in tried if not _is_better(precision[best] - precision[candidate]))
    gain = precision[chosen] - precision[tried[0]]
    ranking = sorted(tried, key=lambda candidate: -precision[candidate][0])
    return Choice(
        chosen=chosen,
        margin=float(gain[0]),
        standard_error=float(np.std(gain[1:])),
        average_precision={described(candidate): float(precision[candidate][0]) for candidate in ranking},
    )


def _is_better(gain: np.ndarray) -> bool:
    """Whether a difference `(1 + RESAMPLES,)` of AP, first that of all images, is more than chance."""
    return gain[0] > max(MARGIN, STANDARD_ERRORS * np.std(gain[1:]))


def _maps_in_decades(
    scorer: Scorer,
    reader: InputReader,
    images: Sequence[ImageInput],
    categories: Sequence[int] | None,
    good_images: int,
) -> dict[str, np.ndarray]:
    """Each term's maps `(N, *MAP_SIZE)` as tail probabilities under the first, good images of the same category."""
    of_candidates = {term for tried in (CANDIDATES, *PROFILE_CANDIDATES.values()) for terms in tried for term in terms}
    terms = sorted(of_candidates & set(scorer.config.all_terms))
    raw = {term: np.zeros((len(images), *MAP_SIZE), np.float32) for term in terms}
    for batch in tqdm(reader.batches(images, categories, BATCH_SIZE), desc="choosing the map", mininterval=2, disable=None):
        of_batch = scorer.raw_term_maps(batch.pixels, batch.category, terms, detail=batch.detail)
        for term, maps in mean_over_timesteps(of_batch).items():
            raw[term][batch.indices] = resize_map(maps, MAP_SIZE).cpu().numpy()
    of_image = np.zeros(len(images), int) if categories is None else np.asarray(categories)
    for values in raw.values():
        for category in np.unique(of_image):
            chosen = of_image == category
            good = values[:good_images][chosen[:good_images]].ravel()
            tail = Tail(*map(torch.from_numpy, fit_tail(good, np.ones(len(good)))))
            values[chosen] = decades(torch.from_numpy(values[chosen]).double(), tail).numpy()
    return raw


def _resamples(kinds: np.ndarray, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each kind of defect which images take part, good ones among them, and how often in each resample; first all once."""
    good, result = np.flatnonzero(kinds == ""), []
    for kind in KINDS:
        defective = np.flatnonzero(kinds == kind)
        if len(defective):
            drawn = [
                rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=RESAMPLES) for part in (good, defective)
            ]
            weights = np.concatenate([np.ones((1, len(good) + len(defective))), np.concatenate(drawn, axis=1)])
            result.append((np.concatenate([good, defective]), weights))
    return result


def _average_precision(maps: np.ndarray, masks: np.ndarray, chosen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pixel AP of some of the images in every resample."""
    return sweep_metrics(sweep(count_pixels(maps[chosen], masks[chosen]), weights), fpr_limits=())["ap"]


def _at_map_size(mask: np.ndarray) -> np.ndarray:
    return resize_map(torch.from_numpy(mask[None]).float(), MAP_SIZE)[0].numpy() >= 0.5
