"""PaDiM: a Gaussian of the features of good parts at every position, or one for all; each class has its own."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..deprecation import accepts_former_names
from .float32 import Float32ModelMixin
from .moments import StreamingMoments

POSITIONS_AT_ONCE = 64


class PadimGaussian(Float32ModelMixin, ConfigMixin):
    """N(mu, Sigma + regularization I) over the features of good images, and the Mahalanobis distance to it (Eq. 12).

    Sigma may be drawn towards the mean covariance of all positions, and may keep its largest principal components only: the
    others then share their mean variance (probabilistic PCA, Tipping & Bishop 1999). Features may be whitened by the mean
    covariance first: components are then those in which a position differs from the others, and what is dropped has the
    variances of the mean instead of equal ones. All three are ours, not the paper's.

    Args:
        feature_channels: channels D of the incoming features.
        grid: `(height, width)` of the feature map for one Gaussian per position; None for one Gaussian shared by all
            positions, which suits textures and unaligned parts.
        num_dims: how many channels, drawn by `seed`, are used; None uses all.
        regularization: added to the diagonal of every covariance.
        seed: of the choice of channels.
        num_classes: categories with Gaussians of their own; memory grows with it.
        pooling: share of the positions' mean covariance in every covariance, in [0, 1); for features in varying places.
        rank: principal components kept at every position, below `num_dims`; memory and time grow with it. None keeps all.
        shared_whitening: features are first whitened by the mean covariance of all positions with this, above 0, added to its
            diagonal; `regularization` is then in units of that covariance. None doesn't whiten them.

    Raises:
        ValueError: if a setting is out of its range.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["mean", "whitening", "components", "precision", "shared"]

    @register_to_config
    def __init__(
        self,
        feature_channels: int,
        grid: tuple[int, int] | None,
        num_dims: int | None = None,
        regularization: float = 0.01,
        seed: int = 0,
        num_classes: int = 1,
        pooling: float = 0.0,
        rank: int | None = None,
        shared_whitening: float | None = None,
    ):
        super().__init__()
        num_dims = feature_channels if num_dims is None else num_dims
        if not 1 <= num_dims <= feature_channels:
            raise ValueError(f"num_dims must lie in 1..{feature_channels}, got {num_dims}")
        if not 0 <= pooling < 1:
            raise ValueError(f"pooling must lie in [0, 1), got {pooling}")
        if rank is not None and not 0 <= rank < num_dims:
            raise ValueError(f"rank must lie in 0..{num_dims - 1}, got {rank}")
        if shared_whitening is not None and not shared_whitening > 0:
            raise ValueError(f"shared_whitening must be above 0, got {shared_whitening}")
        self.positions = 1 if grid is None else grid[0] * grid[1]
        chosen = torch.randperm(feature_channels, generator=torch.Generator().manual_seed(seed), device="cpu")[:num_dims]
        self.register_buffer("dims", chosen.sort().values)
        # The positions of one class after those of the other, so that one class has the shapes of no classes.
        self.register_buffer("mean", torch.zeros(num_classes * self.positions, num_dims))
        if rank is None:
            # Inverse Cholesky factor W of the covariance: (f - mu)^T Sigma^-1 (f - mu) = |W (f - mu)|^2.
            self.register_buffer("whitening", torch.zeros(num_classes * self.positions, num_dims, num_dims))
        else:
            # Precision a of the shared variance, and principal components C scaled by the root of what their own precision is
            # lower by: (f - mu)^T Sigma^-1 (f - mu) = a |f - mu|^2 - |C (f - mu)|^2.
            self.register_buffer("precision", torch.zeros(num_classes * self.positions))
            self.register_buffer("components", torch.zeros(num_classes * self.positions, rank, num_dims))
        if shared_whitening is not None:
            # Inverse Cholesky factor of each class's mean covariance.
            self.register_buffer("shared", torch.zeros(num_classes, num_dims, num_dims))

    def check_state(self) -> None:
        super().check_state()
        if self.config.rank is None and not (self.whitening.diagonal(dim1=1, dim2=2) > 0).all():
            raise ValueError("whitening is not the inverse of a Cholesky factor: its diagonal is not positive")
        if self.config.rank is not None and not (self.precision > 0).all():
            raise ValueError("precision is not positive")
        if self.config.shared_whitening is not None and not (self.shared.diagonal(dim1=1, dim2=2) > 0).all():
            raise ValueError("shared is not the inverse of a Cholesky factor: its diagonal is not positive")
        if not ((self.dims >= 0) & (self.dims < self.config.feature_channels)).all():
            raise ValueError(f"dims holds channels beyond the {self.config.feature_channels} of the features")

    def new_moments(self) -> StreamingMoments:
        """An empty accumulator for one class, of the right shape, on this model's device where that knows float64."""
        device = "cpu" if self.mean.device.type == "mps" else self.mean.device
        return StreamingMoments(self.positions, len(self.dims), device=device)

    def accumulate(self, moments: StreamingMoments, features: torch.Tensor) -> None:
        """Adds features `(batch, feature_channels, h, w)` of good images to `moments`."""
        vectors = self._vectors(features)  # (B, P, M, D)
        moments.update(vectors.transpose(1, 2).flatten(0, 1))

    @accepts_former_names(class_label="category")
    def fit(self, moments: StreamingMoments, category: int = 0) -> "PadimGaussian":
        """Sets the Gaussians of one class from its accumulated moments; decomposes in float64.

        Raises:
            ValueError: if `moments` saw fewer than two samples, or belongs to a Gaussian of another shape.
        """
        rows = self._rows(category)
        if moments.mean.shape != self.mean[rows].shape:
            raise ValueError(
                f"moments of {tuple(moments.mean.shape)} (positions, dims) do not fit a Gaussian of "
                f"{tuple(self.mean[rows].shape)}: accumulate into this model's new_moments()"
            )
        self.mean[rows] = moments.mean.to(self.mean)
        pooled = moments.covariance.mean(dim=0)
        shared = None
        if self.config.shared_whitening is not None:
            shared = _inverse_cholesky(pooled[None], self.config.shared_whitening)[0]
            self.shared[category] = shared.to(self.shared)
        # In slices: the decompositions need several times the memory of their input.
        for start in range(0, self.positions, POSITIONS_AT_ONCE):
            part = slice(start, min(start + POSITIONS_AT_ONCE, self.positions))
            covariance = torch.lerp(moments.scatter[part] / (moments.count - 1), pooled, self.config.pooling)
            if shared is not None:
                covariance = shared @ covariance @ shared.T
            part = slice(rows.start + part.start, rows.start + part.stop)
            if self.config.rank is None:
                self.whitening[part] = _inverse_cholesky(covariance, self.config.regularization).to(self.whitening)
            else:
                precision, components = _principal_components(covariance, self.config.regularization, self.config.rank)
                self.precision[part], self.components[part] = precision.to(self.precision), components.to(self.components)
        return self

    @accepts_former_names(class_labels="category")
    def forward(self, features: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Squared Mahalanobis distance at every position, differentiable with respect to the features.

        Args:
            features: `(batch, feature_channels, h, w)`.
            category: one for all images, whose matrices are then read where they lie, or integers `(batch,)` or `(1,)`, which
                copy those of each; needed where there are several classes.

        Returns:
            `(batch, h, w)`, at least 0; its expectation on the fitted data is close to `num_dims`.

        Raises:
            ValueError: if the features' grid is not the one the Gaussians were fitted on, or the category is missing.
        """
        if category is None and self.config.num_classes > 1:
            raise ValueError(f"Gaussians of {self.config.num_classes} classes need the category of the images")
        vectors = self._vectors(features)  # (B, P, M, D)
        mean = self._of_category(self.mean, category)  # (N, P, D), N is batch or 1
        if mean.shape[0] == 1:
            # The images of a batch meet at their position, where one matrix serves them all.
            vectors = vectors.transpose(0, 1).flatten(1, 2)[None]  # (1, P, B M, D)
        deviation = vectors - mean[:, :, None]
        if self.config.shared_whitening is not None:
            deviation = deviation @ self._of_category(self.shared, category).transpose(2, 3)
        if self.config.rank is None:
            whitened = deviation @ self._of_category(self.whitening, category).transpose(2, 3)
            distance = whitened.square().sum(dim=3)  # (B, P, M) or (1, P, B M)
        else:
            projected = deviation @ self._of_category(self.components, category).transpose(2, 3)
            distance = self._of_category(self.precision, category)[:, :, None] * deviation.square().sum(dim=3)
            distance = (distance - projected.square().sum(dim=3)).clamp_min(0)  # below only by rounding
        if mean.shape[0] == 1:
            distance = distance[0].unflatten(1, (features.shape[0], -1)).transpose(0, 1)  # (B, P, M)
        return distance.reshape(features.shape[0], *features.shape[-2:])  # (B, h, w)

    def _of_category(self, values: torch.Tensor, category: torch.Tensor | int | None) -> torch.Tensor:
        """`(N, P, ...)` of values of all classes: those of one, where they lie (N = 1), or copies for each image.

        Of values that all positions share P is 1.
        """
        of_classes = values.unflatten(0, (self.config.num_classes, -1))  # (K, P, ...)
        if category is None:
            return of_classes  # of one class
        return of_classes[category : category + 1] if isinstance(category, int) else of_classes[category]

    def _rows(self, category: int) -> slice:
        """Where one class's positions lie among those of all."""
        return slice(category * self.positions, (category + 1) * self.positions)

    def _vectors(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, C, h, w)` to float32 `(B, P, M, D)`: M vectors at each of P positions, of which a shared Gaussian has one."""
        grid = self.config.grid
        if grid is not None and tuple(features.shape[-2:]) != tuple(grid):
            raise ValueError(
                f"the Gaussians were fitted on a {grid[0]}x{grid[1]} grid, got features of {features.shape[-2]}x"
                f"{features.shape[-1]}: use images of the fitted size, or fit with grid=None"
            )
        vectors = features[:, self.dims].flatten(2).transpose(1, 2).float()  # (B, h w, D)
        return vectors[:, None] if grid is None else vectors[:, :, None]


def _inverse_cholesky(covariance: torch.Tensor, regularization: float) -> torch.Tensor:
    """W with W^T W = (Sigma + regularization I)^-1, both `(P, D, D)`."""
    identity = torch.eye(covariance.shape[1]).to(covariance)
    cholesky = torch.linalg.cholesky(covariance + regularization * identity)
    return torch.linalg.solve_triangular(cholesky, identity.expand_as(cholesky), upper=False)


def _principal_components(covariance: torch.Tensor, regularization: float, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shared precision `(P,)` and scaled components `(P, rank, D)` of covariances `(P, D, D)`; see [`PadimGaussian`]."""
    variances, directions = torch.linalg.eigh(covariance)  # ascending, in columns
    rest = covariance.shape[1] - rank
    shared = 1 / (variances[:, :rest].mean(dim=1).clamp_min(0) + regularization)
    lower_by = shared[:, None] - 1 / (variances[:, rest:] + regularization)
    return shared, directions[:, :, rest:].transpose(1, 2) * lower_by.clamp_min(0).sqrt()[:, :, None]
