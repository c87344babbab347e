"""The grain of a surface, which a mean lacks, borrowed from the image's own sound surroundings."""

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from scipy.signal import correlate

from ..imaging.regions import connected_regions
from .fill import fill_from_surroundings, structure_weight

RING = 6  # pixels around a region that must look alike at the lender's place


def transfer_grain(
    images: torch.Tensor,
    denoised: torch.Tensor,
    weight: torch.Tensor,
    error: float,
    region: torch.Tensor,
    wanted: torch.Tensor,
    unsound: torch.Tensor,
) -> torch.Tensor:
    """What a repair lacks of the image's detail, copied from where the surroundings look most alike.

    The repair is `weight * denoised + (1 - weight) * fill`. The same mixture is made at the lender's place, with a region of
    the same shape filled there, and what it lacks of the image there is lent. Where all is fill, that is seamless cloning of
    the lender's place (Perez et al. 2003); but what is structure by [`structure_weight`] stays there.
    A region for which there is no sound place that is large enough is halved, and its halves again, down to a few pixels.

    Args:
        images: `(B, 3, H, W)`, true outside the region and what is unsound.
        denoised: `(B, 3, H, W)`, their smooth version.
        weight: `(B, 1, H, W)` in [0, 1].
        error: of the denoiser, as for [`structure_weight`].
        region: `(B, 1, H, W)`, above 0 where the repair replaces the image.
        wanted: `(B, 1, H, W)`, above 0 where grain is wanted: the region, perhaps with a margin where the repair fades.
        unsound: `(B, 1, H, W)`, above 0 where nothing is borrowed either.

    Returns:
        `(B, 3, H, W)`, to be added to the repair; 0 where none is wanted and where no place is sound.
    """
    arrays = [tensor.cpu().double().numpy() for tensor in (images, denoised, weight, region, wanted, unsound)]
    grains = [
        _grain(image, smooth, share[0], error, inside[0] > 0, reach[0] > 0, shunned[0] > 0)
        for image, smooth, share, inside, reach, shunned in zip(*arrays)
    ]
    return torch.from_numpy(np.stack(grains)).to(images)


def _grain(image, denoised, weight, error, region, wanted, unsound) -> np.ndarray:
    """Of one image: `(3, H, W)` twice, `(H, W)`, a number, and three bool masks `(H, W)`."""
    grain = np.zeros_like(image)
    taboo = wanted | unsound
    labels, count = connected_regions(wanted)
    parts = [labels == index for index in range(1, count + 1)]
    while parts and not taboo.all():
        part = parts.pop()
        box, reach = _box(part)
        shift = best_shift(image, taboo, box, reach)
        if shift is not None:
            source = tuple(slice(side.start + by, side.stop + by) for side, by in zip(box, shift))
            lender, smooth, inside = (
                torch.from_numpy(patch[None])
                for patch in (image[:, *source], denoised[:, *source], (reach & region[box])[None])
            )
            filled = fill_from_surroundings(lender, inside)
            share = structure_weight(smooth, filled, inside, error).clamp_min(torch.from_numpy(weight[box]))
            lacking = (lender - filled - share * (smooth - filled))[0].numpy()  # (3, *box)
            grain[:, *box] = np.where(reach, lacking, grain[:, *box])
        elif max(reach.shape) > 4 * RING:
            parts += _halves(part)
    return grain


def best_shift(image: np.ndarray, unsound: np.ndarray, box: tuple[slice, slice], reach: np.ndarray) -> tuple[int, int] | None:
    """The shift `(down, right)` of a region to a sound place whose ring around it is most like the region's own.

    A region without sound pixels around it takes the nearest place. Compares the image and nothing that a network computed, so
    that rounding can't change the choice.

    Args:
        image: `(3, H, W)`.
        unsound: bool `(H, W)`, every region of the image.
        box: rows and columns around one region and its ring.
        reach: bool, that region within the box.

    Returns:
        None where no shift keeps the box inside the image and the region off unsound pixels.
    """
    ring = binary_dilation(reach, iterations=RING) & ~unsound[box]
    own = image[:, *box]
    needed = (reach | ring).astype(float)
    taken = correlate(unsound.astype(float), needed, mode="valid", method="fft") > 0.5
    if taken.all():
        return None
    ones, template = ring.astype(float), own * ring
    # sum over the ring of (shifted - own)^2 for all shifts at once
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
    cost = np.where(taken, np.inf, cost / max(ring.sum(), 1) + 1e-6 * distance)
    row, column = np.unravel_index(cost.argmin(), cost.shape)
    return int(row - box[0].start), int(column - box[1].start)


def _box(inside: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """Rows and columns of a region and its ring within the image, and the region in that box."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = (
        slice(max(rows[0] - RING, 0), min(rows[-1] + RING + 1, inside.shape[0])),
        slice(max(columns[0] - RING, 0), min(columns[-1] + RING + 1, inside.shape[1])),
    )
    return box, inside[box]


def _halves(part: np.ndarray) -> list[np.ndarray]:
    """The part divided across the longer side of its extent, in two."""
    places = np.nonzero(part)  # rows, columns
    axis = int(np.ptp(places[1]) > np.ptp(places[0]))
    middle = (places[axis].min() + places[axis].max() + 1) // 2
    first = np.expand_dims(np.arange(part.shape[axis]) < middle, 1 - axis)
    return [part & first, part & ~first]
