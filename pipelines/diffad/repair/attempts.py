"""Several attempts at the repair of a batch, of which the best counts."""

import torch

from .context import RepairContext
from .mask import soft_edge


class BestAttempt:
    """Of several attempts at B images, for each image the one with the lowest loss: its image and where it is replaced.

    Args:
        images: `(B, 3, H, W)`, what remains of those that nothing is tried on.
    """

    def __init__(self, images: torch.Tensor):
        self.images = images  # (B, 3, H, W)
        self.replaced = torch.zeros_like(images[:, :1])  # (B, 1, H, W)
        self.loss = torch.full_like(images[:, 0, 0, 0], torch.inf)  # (B,)

    def update(self, tried: torch.Tensor, images: torch.Tensor, replaced: torch.Tensor, loss: torch.Tensor) -> None:
        """Keeps what has improved: `images` `(D, 3, H, W)`, `replaced` and `loss` are of the D indices `tried`."""
        improved = loss < self.loss[tried]
        chosen = tried[improved]
        self.images = self.images.index_copy(0, chosen, images[improved])
        self.replaced = self.replaced.index_copy(0, chosen, replaced[improved])
        self.loss = self.loss.index_copy(0, chosen, loss[improved])


def score_attempt(images: torch.Tensor, replaced: torch.Tensor, context: RepairContext) -> tuple[torch.Tensor, torch.Tensor]:
    """Anomaly maps `(B, H, W)` and scores `(B,)` of images in which something was replaced, where `(B, 1, H, W)` is 1.

    Raises:
        ValueError: if a score is not finite.
    """
    anomaly_map, score = context.score(images, soft_edge(replaced))
    if not score.isfinite().all():
        # It would pass for normal.
        raise ValueError("the score of an image is not finite; use float32 or bfloat16 weights")
    return anomaly_map, score
