"""Foreign pieces in images of good parts, under the noise, so that a denoiser learns to remove what does not belong there.

What is pasted is made in another way than the defects by which a map is chosen (likely_defects.py): else the choice would
prefer what training has seen.
"""

import math

import torch
import torch.nn.functional as F

CELLS = 32  # per side of a grid of random numbers, of which an image shows a part: its spots have all sizes
SHOWN = (0.1, 1.0)  # share of the grid's height and width that is shown
AREA = (0.005, 0.15)  # share of the image that is replaced, log-uniform
OPACITY = (0.3, 1.0)
OFFSET = 0.6  # of grey level, and in some images of each channel, at most, in the model's range [-1, 1]
OFFSET_SHARE, TINT_SHARE = 0.5, 0.25  # of the images that have one
LEAST_SATURATION = 0.02  # mean difference of the channels, below which an image is grey and gets no other colour


def corrupt(images: torch.Tensor, share: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Pastes spots of other images of the batch, moved and of other colours, into some of the images.

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
        return low + (high - low) * torch.rand(batch, *shape, generator=generator, device=device)

    def is_drawn(probability: float) -> torch.Tensor:
        return (uniform(0, 1, 1, 1, 1) < probability).float()

    donors = torch.randint(batch, (batch,), generator=generator, device=device)
    moved = [  # (B, H) and (B, W), where each row and column comes from
        (torch.arange(side, device=device) + (side * uniform(1 / 8, 7 / 8, 1)).long()) % side for side in (height, width)
    ]
    content = images[donors[:, None, None], :, moved[0][:, :, None], moved[1][:, None, :]].movedim(-1, 1)  # (B, C, H, W)
    content = content + is_drawn(OFFSET_SHARE) * uniform(-OFFSET, OFFSET, 1, 1, 1)
    saturation = (images.amax(dim=1, keepdim=True) - images.amin(dim=1, keepdim=True)).mean(dim=(2, 3), keepdim=True)
    content = content + (saturation > LEAST_SATURATION) * is_drawn(TINT_SHARE) * uniform(-OFFSET, OFFSET, channels, 1, 1)

    spots = _random_field((height, width), uniform, torch.randn(batch, 1, CELLS, CELLS, generator=generator, device=device))
    area = uniform(*map(math.log, AREA), 1, 1, 1).exp()
    spread = spots.std(dim=(1, 2, 3), keepdim=True)
    bound = math.sqrt(2) * spread * torch.erfinv(1 - 2 * area)  # above it lies that share of a normal distribution
    opacity = (spots > bound) * uniform(*OPACITY, 1, 1, 1)
    return torch.lerp(images, content.clamp(-1, 1), is_drawn(share) * opacity)


def _random_field(size: tuple[int, int], uniform, grid: torch.Tensor) -> torch.Tensor:
    """Smooth random numbers `(B, 1, *size)` around 0: a turned and stretched part of grids `(B, 1, n, n)` of random numbers."""
    angle = uniform(0, 2 * math.pi)
    shown = [uniform(*map(math.log, SHOWN)).exp() for _ in size]
    rows = [
        torch.stack([shown[0] * angle.cos(), -shown[0] * angle.sin(), torch.zeros_like(angle)], dim=1),
        torch.stack([shown[1] * angle.sin(), shown[1] * angle.cos(), torch.zeros_like(angle)], dim=1),
    ]
    places = F.affine_grid(torch.stack(rows, dim=1), [len(grid), 1, *size], align_corners=False)
    return F.grid_sample(grid, places, mode="bilinear", padding_mode="reflection", align_corners=False)
