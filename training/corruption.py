"""Corrupts images of good parts under the noise, so that a denoiser that is to rebuild them learns to remove what is foreign.

What is pasted is made in another way than the defects by which a map is chosen (likely_defects.py): else the choice would
prefer what training has seen.
"""

import math

import torch
import torch.nn.functional as F

CELLS = (4, 8, 16, 32)  # per side of the random fields whose highest parts are corrupted
AREA = (0.005, 0.15)  # share of the image, log-uniform
OPACITY = (0.3, 1.0)
OFFSET = 0.6  # of the model's range [-1, 1], at most


def corrupt(images: torch.Tensor, share: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Pastes irregular pieces of other images of the batch, moved and tinted, into a share of the images.

    Args:
        images: `(B, C, H, W)` in [-1, 1].
        share: probability that an image is corrupted.
        generator: of all that is random.

    Returns:
        New images `(B, C, H, W)` in [-1, 1]; those not drawn are as they were.
    """
    batch, channels, height, width = images.shape
    device = images.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    corrupted = images.clone()
    for i in range(batch):
        if uniform(0, 1, 1).item() >= share:
            continue
        field = _field(height, width, generator, device)
        area = math.exp(uniform(*map(math.log, AREA), 1).item())
        bound = field.flatten().kthvalue(max(1, round((1 - area) * field.numel()))).values
        opacity = (field > bound) * uniform(*OPACITY, 1)
        donor = images[torch.randint(batch, (1,), generator=generator, device=device).item()]
        shift = [int(uniform(side / 8, side * 7 / 8, 1).item()) for side in (height, width)]
        offset = uniform(-OFFSET, OFFSET, 1, 1, 1) * (uniform(0, 1, 1) < 0.5)
        tint = uniform(-OFFSET, OFFSET, channels, 1, 1) * (uniform(0, 1, 1) < 0.25)
        content = donor.roll(shift, dims=(1, 2)) + offset + tint
        corrupted[i] = torch.lerp(images[i], content.clamp(-1, 1), opacity)
    return corrupted


def _field(height: int, width: int, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """A smooth random field `(H, W)` whose spots are as large as a cell of a random grid, stretched at random."""
    cells = [CELLS[torch.randint(len(CELLS), (1,), generator=generator, device=device).item()] for _ in range(2)]
    noise = torch.randn(1, 1, *cells, generator=generator, device=device)
    return F.interpolate(noise, (height, width), mode="bicubic")[0, 0]
