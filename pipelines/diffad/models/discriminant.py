"""Which category an image shows, for models of several categories: linear discriminant analysis of pooled features."""

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..deprecation import accepts_former_names
from ..system.autocast import without_autocast
from .float32 import Float32ModelMixin

UNKNOWN_RATE = 0.01  # share of good images that may be taken for an unknown product


class LinearDiscriminant(Float32ModelMixin, ConfigMixin):
    """The nearest class mean of spatially averaged features, in the space whitened by the covariance within classes.

    Averaging over the whole image makes it indifferent to where a part lies, and to a defect of part of it. An image that is
    further from every class than good images are is of a product that the model has never seen.

    Args:
        feature_channels: channels D of the features.
        class_names: names of the K categories, in the order of the class indices.
        knows_distances: whether it holds what distances need; models saved with diffad 0.1 do not, and take every image for one
            of the categories.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["weight", "bias", "mean", "precision", "limit"]

    @register_to_config
    def __init__(self, feature_channels: int, class_names: tuple[str, ...], knows_distances: bool = False):
        super().__init__()
        self.register_buffer("weight", torch.zeros(len(class_names), feature_channels))
        self.register_buffer("bias", torch.zeros(len(class_names)))
        if knows_distances:
            self.register_buffer("mean", torch.zeros(len(class_names), feature_channels))
            self.register_buffer("precision", torch.zeros(feature_channels, feature_channels))
            self.register_buffer("limit", torch.full((1,), torch.finfo(torch.float32).max))

    @accepts_former_names(class_labels="categories")
    def fit(self, pooled: np.ndarray, categories: np.ndarray) -> "LinearDiscriminant":
        """Fits to the features of good images, every class equally likely, whatever its number of images.

        Args:
            pooled: `(N, D)` spatial means of features.
            categories: `(N,)` indices; every class needs two images.
        """
        from .lda import linear_discriminant

        fitted = linear_discriminant(pooled, categories, len(self.bias))
        for name, values in fitted._asdict().items():
            if hasattr(self, name):
                getattr(self, name).copy_(torch.from_numpy(values))
        return self

    def set_limit(self, distances: np.ndarray) -> None:
        """Sets the distance from which on an image is of no known category: one good image in a hundred is further away.

        Args:
            distances: `(n,)` of good images that it was not fitted on, to their nearest class. Where there are fewer than a
                hundred, their logarithms are taken to be normally distributed; the limit is then at least the largest of them.
        """
        if len(distances) >= 1 / UNKNOWN_RATE - 1:
            limit = np.quantile(distances, 1 - UNKNOWN_RATE, method="higher")
        else:
            logarithms = np.log(np.maximum(distances, 1e-12))
            limit = max(distances.max(), np.exp(logarithms.mean() + 2.326 * logarithms.std()))  # 99 % of a normal distribution
        self.limit.fill_(float(limit))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features `(batch, D, h, w)` to discriminant scores `(batch, K)`: highest is the class, softmax its probability."""
        return self.scores(features.float().mean(dim=(2, 3)))

    def scores(self, pooled: torch.Tensor) -> torch.Tensor:
        """Discriminant scores `(batch, K)` of spatial means of features `(batch, D)`."""
        with without_autocast(pooled.device.type):
            return pooled @ self.weight.T + self.bias

    def distances(self, pooled: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distance `(batch,)` of spatial means of features `(batch, D)` to the nearest class."""
        deviation = pooled[:, None] - self.mean  # (batch, K, D)
        with without_autocast(pooled.device.type):
            squared = ((deviation @ self.precision) * deviation).sum(dim=2)  # (batch, K)
        return squared.min(dim=1).values.clamp_min(0).sqrt()

    def is_unknown(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(batch,)` bool, True where spatial means of features `(batch, D)` are of no category that it knows."""
        if not self.config.knows_distances:
            return torch.zeros(pooled.shape[0], dtype=torch.bool, device=pooled.device)  # len() would fix it in a graph
        return self.distances(pooled) > self.limit
