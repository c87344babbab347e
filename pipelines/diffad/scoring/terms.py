"""Score terms and their combination (paper Sec. 3.2) as pure functions of tensors: one small function for each formula.

Term maps are `(batch, height, width)`, higher is more anomalous, never clipped.
"""

from collections.abc import Mapping, Sequence

import torch


def pixel_score(kl_divergence: torch.Tensor) -> torch.Tensor:
    """Pixel score s_t: KL of true and predicted reverse step in bits, `(B, C, H, W)`, mean over channels."""
    return kl_divergence.mean(dim=1)  # (B, H, W)


def rgb_error(x0: torch.Tensor, x0_predicted: torch.Tensor) -> torch.Tensor:
    """Reconstruction error in pixel space, root mean square over channels: the baseline the paper compares KL with.

    The root, because squares of good parts have so heavy a tail that they would drown the other terms of an ensemble.
    """
    return (x0 - x0_predicted).square().mean(dim=1).sqrt()  # (B, H, W)


def feature_error(features: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Feature score s^f_t (Eq. 10): squared difference of the features `(B, D, h, w)`, mean over channels."""
    return (features - predicted).square().mean(dim=1)  # (B, h, w)


def feature_residual(features: torch.Tensor, predictions: Sequence[torch.Tensor]) -> torch.Tensor:
    """f(x_0) minus the mean over timesteps of f_theta(x_t, t), all `(B, D, h, w)`.

    Eq. 10 weighs every channel of it alike. Its Mahalanobis distance under the residuals of good images discounts what the
    model gets wrong on good parts, too (ours, not the paper's).
    """
    return features - torch.stack(tuple(predictions)).mean(dim=0)


def mahalanobis_distance(squared_distance: torch.Tensor) -> torch.Tensor:
    """Root of a squared Mahalanobis distance, whose heavy tail would drown the other terms of an ensemble."""
    return squared_distance.sqrt()


def standardize(score_map: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """shat = (s - mean) / std with statistics of good images, broadcast over the map (Eq. 11)."""
    return (score_map - mean) / std


def standardize_per_image(score_map: torch.Tensor) -> torch.Tensor:
    """shat with the map's own mean and standard deviation, as the paper's released code does (parity only).

    Every image then has the same spread, so a good image's maximum is as high as a defective one's.
    """
    std, mean = torch.std_mean(score_map, dim=(1, 2), keepdim=True)
    return (score_map - mean) / std.clamp_min(1e-12)


def weighted_sum(maps: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Ensemble over score terms; with weights `{"kl": alpha, "feature": 1 - alpha}` the paper's Eq. 11."""
    return sum(weights[name] * maps[name] for name in weights)


def image_score(score_map: torch.Tensor, top_k: int = 1) -> torch.Tensor:
    """Mean of the map's `top_k` highest pixels, `(B,)`: 1 is the maximum, 64 the choice of the paper's released code."""
    return score_map.flatten(1).topk(top_k, dim=1).values.mean(dim=1)


def mean_over_timesteps(term_maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Term maps by term: `kl` is the mean of `kl@20`, `kl@201` and so on."""
    of_term: dict[str, list[torch.Tensor]] = {}
    for name, term_map in term_maps.items():
        of_term.setdefault(name.partition("@")[0], []).append(term_map)
    return {term: torch.stack(maps).mean(dim=0) if len(maps) > 1 else maps[0] for term, maps in of_term.items()}


def weighted_mean(scores: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Weighted mean of the scores `(B,)` that have a weight."""
    return weighted_sum(scores, weights) / sum(weights.values())
