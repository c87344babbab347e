"""Streaming mean and covariance: one pass, float64, memory independent of the number of samples."""

import torch


class StreamingMoments:
    """Running mean and scatter matrix of vectors at each of several positions (Chan et al. 1979, batched Welford).

    Accumulates deviations from the running mean instead of raw second moments, which would cancel for features whose mean
    is large against their spread.
    """

    def __init__(self, positions: int, dims: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.mean = torch.zeros(positions, dims, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(positions, dims, dims, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, count: int, mean: torch.Tensor, lower_triangle: torch.Tensor) -> "StreamingMoments":
        """An accumulator as another one was left.

        Args:
            count: samples that it has seen.
            mean: `(positions, dims)` float64.
            lower_triangle: of its scatter, `(positions, dims (dims + 1) / 2)` float64, row by row.
        """
        moments = cls(*mean.shape, device=mean.device)
        rows, columns = torch.tril_indices(mean.shape[1], mean.shape[1], device=mean.device)
        moments.count, moments.mean = count, mean.clone()
        moments.scatter[:, rows, columns] = moments.scatter[:, columns, rows] = lower_triangle
        return moments

    @property
    def lower_triangle(self) -> torch.Tensor:
        """The scatter matrices without what symmetry repeats, `(positions, dims (dims + 1) / 2)`, row by row."""
        rows, columns = torch.tril_indices(*self.scatter.shape[1:], device=self.scatter.device)
        return self.scatter[:, rows, columns]

    def update(self, samples: torch.Tensor) -> None:
        """Adds a batch of shape `(n, positions, dims)` of any float type."""
        if len(samples) == 0:
            return
        samples = samples.to(self.mean)  # (n, P, D)
        batch_mean = samples.mean(dim=0)  # (P, D)
        centered = (samples - batch_mean).transpose(0, 1)  # (P, n, D)
        self._merge(len(samples), batch_mean, centered.transpose(1, 2) @ centered)

    def merge(self, other: "StreamingMoments") -> None:
        """Adds all samples that another accumulator has seen."""
        self._merge(other.count, other.mean.to(self.mean), other.scatter.to(self.scatter))

    def without(self, other: "StreamingMoments") -> "StreamingMoments":
        """Moments of the samples that are left once those of another accumulator, which this one has seen, are taken away.

        Undoes [`~StreamingMoments.merge`] but for rounding.

        Raises:
            ValueError: if the other one has seen more samples than this one.
        """
        rest = StreamingMoments(*self.mean.shape, device=self.mean.device)
        rest.count = self.count - other.count
        if rest.count < 0:
            raise ValueError(f"{other.count} samples can't be taken away from {self.count}")
        if rest.count:
            delta = other.mean.to(self.mean) - self.mean  # (P, D)
            rest.mean = self.mean - delta * (other.count / rest.count)
            between = delta[:, :, None] * delta[:, None, :] * (self.count * other.count / rest.count)
            rest.scatter = self.scatter - other.scatter.to(self.scatter) - between
        return rest

    @property
    def covariance(self) -> torch.Tensor:
        """Unbiased covariance, `(positions, dims, dims)`."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)

    def _merge(self, count: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        total = self.count + count
        if total == 0:
            return
        delta = mean - self.mean  # (P, D)
        self.scatter += scatter
        self.scatter += delta[:, :, None] * delta[:, None, :] * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total
