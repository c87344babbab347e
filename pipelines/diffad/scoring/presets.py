"""Scores by name: ours, and the paper's own."""

from collections.abc import Mapping
from typing import Any

from .config import DEFAULT_EDGE, DETAIL_TERMS
from .conformal import STATISTICS_SHARE

# The map adds what sees pixels, what the UNet's features miss and what Gaussians see in the enlarged image: chosen on a paper
# and the grid of MVTec AD, before figures of others were seen. The verdict gives half of its weight to the diffusion model and
# half to the Gaussians at all scales: chosen on grid and screw (see model_cards/score.md).
DEFAULT = {
    # One pass of the UNet: a single, high noise level finds what the mean of three finds, in a third of the time (score.md).
    "timesteps": (401,),
    "fusion": "tails",
    "weights": {"rgb": 1.0, "residual": 1.0, "detail": 1.0},
    "verdict": {"residual": 3.0, "coarse": 1.0, "detail": 1.0, "coarse_detail": 1.0},
    "verdict_area": 0.001,
    "scales": ("coarse", "detail", "coarse_detail"),
    "statistics_share": STATISTICS_SHARE,
    "mask_edge": DEFAULT_EDGE,
}
# Eq. 11 with the paper's alpha; maps standardised by themselves and top pixels as its released code has them.
PAPER_ALPHA = 0.5
PAPER = {
    "weights": {"kl": PAPER_ALPHA, "feature": 1 - PAPER_ALPHA},
    "standardized_terms": ("kl",),
    "per_image": True,
    "smoothing_sigma": 0.0,
    "top_k": 64,
    "mask_edge": DEFAULT_EDGE,
}
SCORES = {"default": DEFAULT, "paper": PAPER}


def score_settings(score: str | Mapping[str, Any], short_side: int | None = None) -> dict[str, Any]:
    """Settings of [`ScoreConfig`] by the name of a score, or the default's with some replaced.

    Args:
        score: a key of [`SCORES`], or settings in place of the default's.
        short_side: of a model that scores images in tiles, which are not enlarged: terms of the enlarged image are left out.

    Raises:
        ValueError: if there is no such score.
    """
    if isinstance(score, str) and score not in SCORES:
        raise ValueError(f"unknown score {score!r}; there are {', '.join(SCORES)}")
    settings = dict(SCORES[score]) if isinstance(score, str) else {**DEFAULT, **score}
    if short_side is not None:
        for name in ("weights", "verdict"):
            if name in settings:
                settings[name] = {term: weight for term, weight in settings[name].items() if term not in DETAIL_TERMS}
        if "scales" in settings:
            settings["scales"] = tuple(scale for scale in settings["scales"] if scale not in DETAIL_TERMS)
    return settings
