"""The texture of a surface, which a mean lacks, transferred from a patch of the image's own sound surroundings."""

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from scipy.signal import correlate

from ..imaging.regions import connected_regions
from .fill import fill_from_surroundings, structure_weight

RING_WIDTH = 6  # pixels around a region by which its source patch is chosen
Box = tuple[slice, slice]  # rows and columns


def transfer_texture(
    images: torch.Tensor,
    denoised: torch.Tensor,
    weight: torch.Tensor,
    error: float,
    region: torch.Tensor,
    target: torch.Tensor,
    excluded: torch.Tensor,
) -> torch.Tensor:
    """Texture that a repair lacks of the image, copied from where the surroundings look most alike.

    The repair is `weight * denoised + (1 - weight) * fill`. The same mixture is made in the source patch, with a region of the
    same shape filled there, and what it lacks of the image there is the texture. Where all is fill, that is seamless cloning of
    the source patch (Perez et al. 2003); but what is structure by [`structure_weight`] stays there.
    A region for which no source patch is large enough is halved, and its halves again, down to a few pixels.

    Args:
        images: `(B, 3, H, W)`, true outside the region and what is excluded.
        denoised: `(B, 3, H, W)`, their smooth version.
        weight: `(B, 1, H, W)` in [0, 1].
        error: of the denoiser, as for [`structure_weight`].
        region: `(B, 1, H, W)`, above 0 where the repair replaces the image.
        target: `(B, 1, H, W)`, above 0 where texture is needed: the region, perhaps with a margin where the repair fades.
        excluded: `(B, 1, H, W)`, above 0 where no source patch may lie; none lies in the target either.

    Returns:
        `(B, 3, H, W)`, to be added to the repair; 0 outside the target and where there is no source patch.
    """
    arrays = (tensor.cpu().double().numpy() for tensor in (images, denoised, weight, region, target, excluded))
    textures = [
        _texture(image, smooth, share[0], error, inside[0] > 0, needed[0] > 0, forbidden[0] > 0)
        for image, smooth, share, inside, needed, forbidden in zip(*arrays)
    ]
    return torch.from_numpy(np.stack(textures)).to(images)


def _texture(
    image: np.ndarray,
    denoised: np.ndarray,
    weight: np.ndarray,
    error: float,
    region: np.ndarray,
    target: np.ndarray,
    excluded: np.ndarray,
) -> np.ndarray:
    """Texture of one image: images `(3, H, W)`, weight `(H, W)`, bool masks `(H, W)`."""
    texture = np.zeros_like(image)  # (3, H, W)
    excluded = target | excluded
    if excluded.all():
        return texture
    labels, count = connected_regions(target)
    for index in range(1, count + 1):
        parts = [labels == index]
        while parts:
            part = parts.pop()
            box = _box_with_ring(part)
            inside = part[box]  # (h, w) of the box, as all that follows
            shift = best_shift(image, excluded, box, inside)
            if shift is not None:
                source = _shifted(box, shift)
                lacking = _lacking_detail(
                    image[:, *source], denoised[:, *source], weight[box], error, inside & region[box]
                )  # (3, h, w)
                texture[:, *box] = np.where(inside, lacking, texture[:, *box])
            elif max(inside.shape) > 4 * RING_WIDTH:
                parts += halves(part)
    return texture


def _lacking_detail(
    patch: np.ndarray, denoised: np.ndarray, weight: np.ndarray, error: float, region: np.ndarray
) -> np.ndarray:
    """What a repair of the region `(h, w)` within a sound patch `(3, h, w)` would lack of it: `(3, h, w)`."""
    patch, denoised, region = (torch.from_numpy(array[None]) for array in (patch, denoised, region[None]))
    filled = fill_from_surroundings(patch, region)
    # The patch's own structure is no texture, even where the repair is all fill.
    share = structure_weight(denoised, filled, region, error).clamp_min(torch.from_numpy(weight))
    return (patch - filled - share * (denoised - filled))[0].numpy()


def best_shift(image: np.ndarray, excluded: np.ndarray, box: Box, inside: np.ndarray) -> tuple[int, int] | None:
    """The shift `(down, right)` from a region to the source patch whose ring is most like the region's own.

    A region without sound pixels around it takes the nearest patch. Compares the image and nothing that a network computed, so
    that rounding can't change the choice.

    Args:
        image: `(3, H, W)`.
        excluded: bool `(H, W)`, where the source patch may not lie; every region of the image is among it.
        box: rows and columns around one region and its ring, `(h, w)` pixels.
        inside: bool `(h, w)`, the region within the box.

    Returns:
        None where no shift keeps the box inside the image and the region and its ring off excluded pixels.
    """
    ring = binary_dilation(inside, iterations=RING_WIDTH) & ~excluded[box]
    # Every (..., H - h + 1, W - w + 1) below holds a value for each place of the box.
    overlap = correlate(excluded.astype(float), (inside | ring).astype(float), mode="valid", method="fft")
    forbidden = overlap > 0.5  # counts of pixels
    if forbidden.all():
        return None
    ones, template = ring.astype(float), image[:, *box] * ring
    # sum over the ring of (patch - template)^2, expanded so that it is a correlation for all places at once
    cost = (
        sum(
            correlate(channel**2, ones, mode="valid", method="fft") - 2 * correlate(channel, part, mode="valid", method="fft")
            for channel, part in zip(image, template)
        )
        + np.square(template).sum()
    )
    rows, columns = np.indices(cost.shape)
    # Of equally good places the nearest; the term is far below any visible difference.
    distance = np.hypot(rows - box[0].start, columns - box[1].start)
    cost = np.where(forbidden, np.inf, cost / max(ring.sum(), 1) + 1e-6 * distance)
    row, column = np.unravel_index(cost.argmin(), cost.shape)
    return int(row - box[0].start), int(column - box[1].start)


def _box_with_ring(part: np.ndarray) -> Box:
    """Box around a region `(H, W)` and its ring, as far as the image reaches."""
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    return (
        slice(max(rows[0] - RING_WIDTH, 0), min(rows[-1] + RING_WIDTH + 1, part.shape[0])),
        slice(max(columns[0] - RING_WIDTH, 0), min(columns[-1] + RING_WIDTH + 1, part.shape[1])),
    )


def _shifted(box: Box, shift: tuple[int, int]) -> Box:
    rows, columns = (slice(side.start + by, side.stop + by) for side, by in zip(box, shift, strict=True))
    return rows, columns


def halves(part: np.ndarray) -> list[np.ndarray]:
    """The part `(H, W)` divided across the longer side of its extent, in two."""
    rows, columns = np.nonzero(part)
    axis = int(np.ptp(columns) > np.ptp(rows))
    positions = (rows, columns)[axis]
    middle = (positions.min() + positions.max() + 1) // 2
    first = np.expand_dims(np.arange(part.shape[axis]) < middle, 1 - axis)
    return [part & first, part & ~first]
