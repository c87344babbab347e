"""What belongs into a region by its surroundings alone, and when to prefer that to what a network paints."""

import numpy as np
import torch
from scipy.sparse.linalg import LaplacianNd, spsolve

from .scoring import smooth_map


def fill_from_surroundings(images: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Replaces the region `(B, 1, H, W)` of images `(B, 3, H, W)` by the smoothest continuation of what surrounds it.

    That is the harmonic one: every pixel of the region is the mean of its four neighbours, or of those inside the image. An
    image without surroundings gets its mean colour.
    """
    filled = images.cpu().double().numpy().copy()
    for image, inside in zip(filled, region[:, 0].cpu().numpy() > 0, strict=True):
        if inside.all():
            image[:] = image.mean(axis=(1, 2), keepdims=True)
        elif inside.any():
            image[:, inside] = _harmonic(image, inside)
    return torch.from_numpy(filled).to(images)


def _harmonic(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The pixels `(3, N)` inside, from those `(3, H, W)` outside."""
    laplacian = LaplacianNd(inside.shape, boundary_conditions="neumann", dtype=np.float64).tosparse().tocsr()
    unknown, known = np.flatnonzero(inside), np.flatnonzero(~inside)
    equations = laplacian[unknown]  # (N, H W)
    values = image.reshape(len(image), -1)[:, known].T  # (known, 3)
    return spsolve(equations[:, unknown].tocsc(), -(equations[:, known] @ values)).T


def shrink_to_fill(
    denoised: torch.Tensor, filled: torch.Tensor, region: torch.Tensor, error: float, sigma: float = 8.0
) -> torch.Tensor:
    """`denoised` where it knows more than `filled`, which is structure, and `filled` where it only errs more.

    The positive-part James-Stein estimator, locally: d = denoised - filled is scaled by max(0, 1 - error^2 / E[d^2]), with E the
    mean over the pixels of the region nearby.

    Args:
        denoised, filled: `(B, 3, H, W)` in [-1, 1].
        region: `(B, 1, H, W)`, above 0 where both are guesses.
        error: root mean square of what the denoiser errs, in the same units.
        sigma: of the Gaussian that says what is nearby, in pixels.
    """
    inside = (region[:, 0] > 0).to(denoised)  # (B, H, W)
    difference = denoised - filled
    energy = smooth_map(inside * difference.square().mean(dim=1), sigma)
    # error^2 / E[d^2]; where the region is far, 1
    noise = error**2 * smooth_map(inside, sigma)
    weight = torch.where(energy > noise, 1 - noise / energy, 0)  # (B, H, W)
    return filled + weight[:, None] * difference
