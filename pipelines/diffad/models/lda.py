"""Linear discriminant analysis, which only training needs, and with it scikit-learn."""

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis


def linear_discriminant(pooled: np.ndarray, categories: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(K, D)` and bias `(K,)` of the discriminant scores of K equally likely classes.

    Args:
        pooled: `(N, D)` feature vectors.
        categories: `(N,)` indices; every class needs two vectors.
        num_classes: K.
    """
    # Shrinkage (Ledoit-Wolf), because there can be fewer images than channels.
    priors = np.full(num_classes, 1 / num_classes)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors).fit(pooled, categories)
    weight, bias = fitted.coef_, fitted.intercept_
    if num_classes == 2:  # scikit-learn keeps only the difference of the two
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return weight, bias
