"""PaDiM: a multivariate Gaussian of normal features at every position, or one for all positions."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .fitted_state import Float32ModelMixin
from .moments import StreamingMoments


class PadimGaussian(Float32ModelMixin, ConfigMixin):
    """N(mu, Sigma + regularization I) over normal features, and the Mahalanobis distance to it (Eq. 12).

    Args:
        feature_channels: channels D of the incoming features.
        grid: `(height, width)` of the feature map for one Gaussian per position; None for one Gaussian shared by all
            positions, which suits textures and parts that lie anyhow.
        num_dims: how many channels, drawn by `seed`, are used; None uses all.
        regularization: added to the diagonal of every covariance.
        seed: of the choice of channels.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["mean", "whitening"]

    @register_to_config
    def __init__(
        self,
        feature_channels: int,
        grid: tuple[int, int] | None,
        num_dims: int | None = None,
        regularization: float = 0.01,
        seed: int = 0,
    ):
        super().__init__()
        num_dims = feature_channels if num_dims is None else num_dims
        if not 1 <= num_dims <= feature_channels:
            raise ValueError(f"num_dims must lie in 1..{feature_channels}, got {num_dims}")
        positions = 1 if grid is None else grid[0] * grid[1]
        chosen = torch.randperm(feature_channels, generator=torch.Generator().manual_seed(seed), device="cpu")[:num_dims]
        self.register_buffer("dims", chosen.sort().values)
        self.register_buffer("mean", torch.zeros(positions, num_dims))
        # Inverse Cholesky factor W of the covariance: (f - mu)^T Sigma^-1 (f - mu) = |W (f - mu)|^2.
        self.register_buffer("whitening", torch.zeros(positions, num_dims, num_dims))

    def new_moments(self) -> StreamingMoments:
        """An empty accumulator of the right shape, on this model's device where that knows float64."""
        device = "cpu" if self.mean.device.type == "mps" else self.mean.device
        return StreamingMoments(*self.mean.shape, device=device)

    def accumulate(self, moments: StreamingMoments, features: torch.Tensor) -> None:
        """Adds features `(batch, feature_channels, h, w)` of normal images to `moments`."""
        moments.update(self._by_position(features).transpose(0, 1))

    def fit(self, moments: StreamingMoments) -> "PadimGaussian":
        """Sets mean and whitening from accumulated moments; decomposes in float64.

        Raises:
            ValueError: if `moments` saw fewer than two samples, or belongs to a Gaussian of another shape.
        """
        if moments.mean.shape != self.mean.shape:
            raise ValueError(
                f"moments of {tuple(moments.mean.shape)} (positions, dims) do not fit a Gaussian of {tuple(self.mean.shape)}: "
                "accumulate into this model's new_moments()"
            )
        identity = torch.eye(moments.mean.shape[1]).to(moments.scatter)
        whitening = torch.empty_like(self.whitening)
        # In slices: the decompositions need several times the memory of their input.
        for part, covariance in zip(whitening.split(64), moments.covariance.split(64)):
            cholesky = torch.linalg.cholesky(covariance + self.config.regularization * identity)
            part.copy_(torch.linalg.solve_triangular(cholesky, identity.expand_as(cholesky), upper=False))
        self.mean.copy_(moments.mean)
        self.whitening.copy_(whitening)
        return self

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Squared Mahalanobis distance at every position, differentiable with respect to the features.

        Args:
            features: `(batch, feature_channels, h, w)`.

        Returns:
            `(batch, h, w)`, at least 0; its expectation on the fitted data is close to `num_dims`.

        Raises:
            ValueError: if the features' grid is not the one the Gaussians were fitted on.
        """
        vectors = self._by_position(features)  # (P, n, D)
        centered = vectors.float() - self.mean[:, None]
        distance = (centered @ self.whitening.transpose(1, 2)).square().sum(dim=2)  # (P, n)
        if self.config.grid is None:
            return distance.view(len(features), *features.shape[-2:])
        return distance.T.reshape(len(features), *self.config.grid)  # (B, h, w)

    def _by_position(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to (positions, samples, dims): one position and B h w samples when the Gaussian is shared."""
        grid = self.config.grid
        if grid is not None and tuple(features.shape[-2:]) != tuple(grid):
            raise ValueError(
                f"the Gaussians were fitted on a {grid[0]}x{grid[1]} grid, got features of {features.shape[-2]}x"
                f"{features.shape[-1]}: use images of the fitted size, or fit with grid=None"
            )
        vectors = features[:, self.dims].flatten(2)  # (B, D, P)
        if grid is None:
            return vectors.transpose(1, 2).reshape(1, -1, vectors.shape[1])
        return vectors.permute(2, 0, 1)
