"""Which category an image shows, for models of several categories: linear discriminant analysis of pooled features."""

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .float32 import Float32ModelMixin


class LinearDiscriminant(Float32ModelMixin, ConfigMixin):
    """The nearest class mean of spatially averaged features, in the space whitened by the covariance within classes.

    Averaging over the whole image makes it indifferent to where a part lies, and to a defect of part of it.

    Args:
        feature_channels: channels D of the features.
        class_names: names of the K categories, in the order of the class indices.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["weight", "bias"]

    @register_to_config
    def __init__(self, feature_channels: int, class_names: tuple[str, ...]):
        super().__init__()
        self.register_buffer("weight", torch.zeros(len(class_names), feature_channels))
        self.register_buffer("bias", torch.zeros(len(class_names)))

    def fit(self, pooled: np.ndarray, categories: np.ndarray) -> "LinearDiscriminant":
        """Fits to the features of good images, every class equally likely, whatever its number of images.

        Args:
            pooled: `(N, D)` spatial means of features.
            categories: `(N,)` indices; every class needs two images.
        """
        from .lda import linear_discriminant

        weight, bias = linear_discriminant(pooled, categories, len(self.bias))
        self.weight.copy_(torch.from_numpy(weight))
        self.bias.copy_(torch.from_numpy(bias))
        return self

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features `(batch, D, h, w)` to discriminant scores `(batch, K)`: highest is the class, softmax its probability."""
        return features.float().mean(dim=(2, 3)) @ self.weight.T + self.bias
