"""Profiles by name: settings under which one trained model is fast, balanced or at its best, or needs no diffusion model.

All of them score the same raw term maps. `residual` is the mean over the model's own timesteps, for which its Gaussian was
fitted, so that no profile has timesteps of its own. `fast` sees an image through its features and a thumbnail only, by the
feature denoiser and one Gaussian. Its weights were chosen on a paper, grid and screw.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from .config import DETAIL_TERMS, SCALE_TERMS, TERMS, ScoreConfig

BALANCED, GAUSSIAN = "balanced", "gaussian"
# Settings in place of the model's own score, which is `balanced`; `added` are terms beside those of its map.
PROFILES: dict[str, dict[str, dict[str, float]]] = {
    "fast": {
        "weights": {"feature_residual": 1.0, "pixel_residual": 1.0},
        "verdict": {"feature_residual": 3.0, "pixel_residual": 1.0, "coarse": 1.0},
    },
    BALANCED: {},
    "best": {"added": {"neighbors": 1.0}},
    GAUSSIAN: {"weights": {"detail": 1.0}, "verdict": {"coarse": 1.0, "detail": 1.0, "coarse_detail": 1.0}},
}
# Those that training calibrates unless told otherwise. `best` is behind `balanced` on paper and grid, where neighbours blur the
# map, and makes the model 12 MB larger; where neighbours help, the choice of the map finds it out.
DEFAULT_PROFILES = ("fast", BALANCED, GAUSSIAN)
NEEDED = {"fast": "feature_residual", "best": "neighbors"}  # without this term the profile would not be what its name says


def profile_settings(
    profile: str, balanced: ScoreConfig, scales: Sequence[str], map_terms: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """Settings of [`ScoreConfig`] that a profile has in place of a model's own.

    Args:
        profile: a key of [`PROFILES`].
        balanced: the model's own score.
        scales: further terms that the model has Gaussians or images for. Terms that it lacks are left out, and so are those of
            the enlarged image where images are scored in tiles.
        map_terms: of the profile's map in place of its default's, where one was chosen for the product.

    Returns:
        None where the model can't have the profile: its own score is not of tail probabilities with a verdict, nothing is left
        of the map or the verdict, or the model lacks what the profile needs.
    """
    if balanced.fusion != "tails" or not balanced.verdict:
        return None
    in_tiles = balanced.short_side is not None
    usable = {*TERMS, *(scale for scale in scales if not (in_tiles and scale in DETAIL_TERMS))}
    changes = PROFILES[profile]
    added = changes.get("added", {})
    weights = changes.get("weights", balanced.weights) if map_terms is None else dict.fromkeys(map_terms, 1.0)
    weights = {term: w for term, w in {**weights, **added}.items() if term in usable}
    verdict = {term: w for term, w in changes.get("verdict", balanced.verdict).items() if term in usable}
    if not weights or not verdict or (profile in NEEDED and NEEDED[profile] not in usable):
        return None
    return {"weights": weights, "verdict": verdict, "scales": scales_among({*weights, *verdict})}


def scales_of(profiles: Iterable[str]) -> tuple[str, ...]:
    """Scales that profiles look at besides those of the model's own score."""
    return scales_among({term for profile in profiles for weights in PROFILES[profile].values() for term in weights})


def scales_among(terms: Iterable[str]) -> tuple[str, ...]:
    """Those of some terms that belong to further scales, in their order."""
    named = set(terms)
    return tuple(scale for scale in SCALE_TERMS if scale in named)
