"""What belongs into a region by its surroundings alone, and when to prefer that to what a network paints."""

import numpy as np
import torch
from scipy.sparse.linalg import LaplacianNd, spsolve

from ..imaging.maps import smooth_map


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
    """The pixels `(3, N)` inside, of which each is the mean of its neighbours, from those outside of an image `(3, H, W)`."""
    laplacian = LaplacianNd(inside.shape, boundary_conditions="neumann", dtype=np.float64).tosparse().tocsr()
    unknown, known = np.flatnonzero(inside), np.flatnonzero(~inside)
    equations = laplacian[unknown]  # (N, H W)
    values = image.reshape(len(image), -1)[:, known].T  # (known, 3)
    return spsolve(equations[:, unknown].tocsc(), -(equations[:, known] @ values)).T


def structure_weight(
    denoised: torch.Tensor, filled: torch.Tensor, region: torch.Tensor, error: float, sigma: float = 8.0
) -> torch.Tensor:
    """Weight of `denoised` against `filled`: high where both differ by structure, 0 where they differ by error only.

    The weight of the positive-part James-Stein estimator, locally: max(0, 1 - error^2 / E[d^2]) with d = denoised - filled and
    E the mean over the pixels of the region nearby.

    Args:
        denoised, filled: `(B, 3, H, W)` in [-1, 1].
        region: `(B, 1, H, W)`, above 0 where both are guesses.
        error: root mean square of what the denoiser errs, in the same units.
        sigma: of the Gaussian that says what is nearby, in pixels.

    Returns:
        `(B, 1, H, W)` in [0, 1], 0 far from the region.
    """
    inside = (region[:, 0] > 0).to(denoised)  # (B, H, W)
    energy = smooth_map(inside * (denoised - filled).square().mean(dim=1), sigma)
    noise = error**2 * smooth_map(inside, sigma)
    return torch.where(energy > noise, 1 - noise / energy, 0)[:, None]
