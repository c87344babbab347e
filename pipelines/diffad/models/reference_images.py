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

    Raises:
        ValueError: if there is no image.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["images"]

    @register_to_config
    def __init__(self, image_size: tuple[int, int], categories: tuple[int, ...], turns: bool = False):
        super().__init__()
        if not categories:
            raise ValueError("categories: there must be at least one reference image")
        self.register_buffer("images", torch.zeros(len(categories), 3, *image_size, dtype=torch.uint8))

    def of_category(self, category: int | None) -> torch.Tensor:
        """`(n, 3, H, W)` float32 in [-1, 1], the images of a category; None is the only one."""
        of_each = torch.tensor(self.config.categories)
        return self.images[(of_each == (category or 0)).to(self.images.device)].float() / 127.5 - 1
