"""A few photographs of good parts, from which repair takes what a marked place should look like."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .float32 import Float32ModelMixin

MOST_BYTES = 10_000_000  # of all images of a model


class ReferenceImages(Float32ModelMixin, ConfigMixin):
    """Images of good parts, or tiles of them, at the model's resolution, 8 bits a channel.

    Args:
        image_size: `(height, width)`.
        categories: index of each image's category, 0 for a model of one.
        turns: whether parts lie in any direction, so that images are also compared turned and mirrored.
        channels: that are stored, 3 or, of grey images, 1.

    Raises:
        ValueError: if there is no image, or another number of channels.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["images"]

    @register_to_config
    def __init__(self, image_size: tuple[int, int], categories: tuple[int, ...], turns: bool = False, channels: int = 3):
        super().__init__()
        if not categories:
            raise ValueError("categories: there must be at least one reference image")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self.register_buffer("images", torch.zeros(len(categories), channels, *image_size, dtype=torch.uint8))

    def of_category(self, category: int | None) -> torch.Tensor:
        """`(n, 3, H, W)` float32 in [-1, 1], the images of a category; None is the only one."""
        of_each = torch.tensor(self.config.categories)
        chosen = self.images[(of_each == (category or 0)).to(self.images.device)]
        return chosen.expand(-1, 3, -1, -1).float() / 127.5 - 1
