"""How far each image lies from the Gaussians of the others: exact, and for the price of one fit.

Without k of m vectors with deviations D = (d_1 ... d_k) from their common mean, the mean moves by -D 1 / (m - k), and the
scatter matrix loses D M D^T with M = I + 1 1^T / (m - k). So the covariance of the rest is A - c D M D^T with
A = S / (m - k - 1) + regularization I and c = 1 / (m - k - 1), and the vectors deviate from its mean by D M. With
K = D^T A^-1 D Woodbury's identity gives their squared Mahalanobis distances as the diagonal of M K (I - c M K)^-1 M. For k = 1
this is the rank-one down-date (Sherman and Morrison) b^2 K / (1 - c b K), b = m / (m - 1).
"""

from collections.abc import Sequence

import torch

from .moments import StreamingMoments

POSITIONS_AT_ONCE = 16


def left_out_distances(
    vectors: torch.Tensor,
    regularization: float,
    groups: Sequence[int] | None = None,
    is_fitted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared Mahalanobis distance of every image, at every position, to N(mu, Sigma + regularization I) of the other groups.

    Args:
        vectors: `(n, P, D)` of any float type; computed in float64, some positions at a time.
        regularization: added to the diagonal of every covariance; above 0.
        groups: `(n,)` group of each image, which are left out together; None leaves out one image at a time.
        is_fitted: bool `(n,)`, which images the Gaussians are of; the distances of others are to all of these. None is all.

    Returns:
        `(n, P)` float64.

    Raises:
        ValueError: if fewer than two images are left where a group is left out.
    """
    n, positions, _ = vectors.shape
    members = _members_by_size(range(n) if groups is None else groups, n, is_fitted)
    fitted = torch.ones(n, dtype=torch.bool) if is_fitted is None else is_fitted
    m = int(fitted.sum())
    largest = max(members, default=0)
    if m - largest < 2:
        raise ValueError(f"{m} images with a group of {largest}: at least 2 must be left where a group is left out")
    distances = torch.empty(n, positions, dtype=torch.float64)
    for start in range(0, positions, POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        values = vectors[:, part].transpose(0, 1).double()  # (p, n, D)
        deviations = values - values[:, fitted].mean(dim=1, keepdim=True)
        of_fitted = deviations[:, fitted]
        scatter = of_fitted.transpose(1, 2) @ of_fitted  # (p, D, D)
        if m < n:
            whitened = _whitened(deviations[:, ~fitted], scatter / (m - 1), regularization)
            distances[~fitted, part] = whitened.square().sum(dim=2).T
        for size, of_size in members.items():
            whitened = _whitened(deviations[:, of_size.flatten()], scatter / (m - size - 1), regularization)
            of_groups = whitened.unflatten(1, of_size.shape)  # (p, G, k, D)
            distances[of_size, part] = _without_own_group(of_groups @ of_groups.transpose(2, 3), m).permute(1, 2, 0)
    return distances


def _members_by_size(groups: Sequence[int], n: int, is_fitted: torch.Tensor | None) -> dict[int, torch.Tensor]:
    """Indices `(G, k)` of the fitted images of all groups of k of them, by k."""
    of_groups: dict[int, list[int]] = {}
    for i in range(n):
        if is_fitted is None or is_fitted[i]:
            of_groups.setdefault(groups[i], []).append(i)
    by_size: dict[int, list[list[int]]] = {}
    for indices in of_groups.values():
        by_size.setdefault(len(indices), []).append(indices)
    return {size: torch.tensor(indices) for size, indices in by_size.items()}


def _whitened(deviations: torch.Tensor, covariance: torch.Tensor, regularization: float) -> torch.Tensor:
    """`(p, n, D)` with squares that sum up to Mahalanobis distances, of deviations `(p, n, D)`."""
    identity = regularization * torch.eye(covariance.shape[1]).to(covariance)
    factor = torch.linalg.cholesky(covariance + identity)
    return torch.linalg.solve_triangular(factor, deviations.transpose(1, 2), upper=False).transpose(1, 2)


def _without_own_group(products: torch.Tensor, m: int) -> torch.Tensor:
    """Distances `(p, G, k)` from K `(p, G, k, k)`: the diagonal of M K (I - c M K)^-1 M."""
    k = products.shape[-1]
    identity = torch.eye(k).to(products)
    correction = identity + 1 / (m - k)  # M
    moved = correction @ products
    rest = identity - moved / (m - k - 1)
    # X (I - Y)^-1 = (I - Y)^-1 X for Y = c X.
    return (torch.linalg.solve(rest, moved) @ correction).diagonal(dim1=2, dim2=3)


def left_out_distances_of_all_positions(
    vectors: torch.Tensor,
    regularization: float,
    groups: Sequence[int] | None = None,
    is_fitted: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same under one Gaussian that all positions share: an image leaves it with all of its `P` vectors.

    The scatter of each group is taken from that of all, and the rest decomposed anew, because a group has more vectors than
    dimensions. Arguments, result and errors are those of [`left_out_distances`].
    """
    n, positions, dims = vectors.shape
    groups = range(n) if groups is None else groups
    of_groups: dict[int, StreamingMoments] = {}
    total = StreamingMoments(1, dims)
    for i in range(n):
        if is_fitted is None or is_fitted[i]:
            own = of_groups.setdefault(groups[i], StreamingMoments(1, dims))
            own.update(vectors[i, :, None])
    for own in of_groups.values():
        total.merge(own)
    identity = regularization * torch.eye(dims, dtype=torch.float64)
    distances, factors = torch.empty(n, positions, dtype=torch.float64), {}
    for i in range(n):
        group = groups[i] if is_fitted is None or is_fitted[i] else None
        if group not in factors:
            rest = total if group is None else total.without(of_groups[group])
            if rest.count < 2 * positions:
                raise ValueError(f"{rest.count // positions} image(s) are left where a group is left out; at least 2 must be")
            factors[group] = rest.mean, torch.linalg.cholesky(rest.covariance[0] + identity)
        mean, factor = factors[group]
        deviations = (vectors[i].double() - mean).T  # (D, P)
        distances[i] = torch.linalg.solve_triangular(factor, deviations, upper=False).square().sum(dim=0)
    return distances
