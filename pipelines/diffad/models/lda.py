"""Linear discriminant analysis, which only training needs, and with it scikit-learn."""

from typing import NamedTuple

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis


class FittedDiscriminant(NamedTuple):
    """Discriminant of K equally likely classes of D-dimensional vectors.

    Args:
        weight, bias: `(K, D)` and `(K,)`, of the discriminant scores.
        mean: `(K, D)`, of the classes.
        precision: `(D, D)`, inverse of the covariance within classes.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    precision: np.ndarray


def linear_discriminant(pooled: np.ndarray, categories: np.ndarray, num_classes: int) -> FittedDiscriminant:
    """Fits to `(N, D)` feature vectors of the classes `(N,)`; every class needs two vectors."""
    # Shrinkage (Ledoit-Wolf), because there can be fewer images than channels.
    priors = np.full(num_classes, 1 / num_classes)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors).fit(pooled, categories)
    weight, bias = fitted.coef_, fitted.intercept_
    if num_classes == 2:  # scikit-learn keeps only the difference of the two
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return FittedDiscriminant(weight, bias, fitted.means_, np.linalg.pinv(fitted.covariance_, hermitian=True))
