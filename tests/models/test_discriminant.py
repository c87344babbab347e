"""LinearDiscriminant: against distances in the whitened space."""

import numpy as np
import pytest
import torch
from diffad import LinearDiscriminant


@pytest.mark.parametrize("classes", [2, 4])
def test_discriminant_is_the_class_of_the_nearest_mean_in_the_whitened_space(classes):
    rng = np.random.default_rng(classes)
    counts = [3000 * 2**i for i in range(classes)]  # enough for shrinkage to vanish, and far from balanced
    mixing, means = np.eye(3) + 0.3 * rng.normal(size=(3, 3)), rng.normal(size=(classes, 3))
    labels = np.repeat(np.arange(classes), counts)
    pooled = means[labels] + rng.normal(size=(len(labels), 3)) @ mixing
    discriminant = LinearDiscriminant(3, tuple("abcd"[:classes])).fit(pooled, labels)

    precision = np.linalg.inv(np.mean([np.cov(pooled[labels == k], rowvar=False) for k in range(classes)], axis=0))
    centres = np.stack([pooled[labels == k].mean(axis=0) for k in range(classes)])
    test = rng.normal(size=(500, 3)) * 2
    deviation = test[:, None] - centres
    distance = np.einsum("nkd,de,nke->nk", deviation, precision, deviation)
    maps = torch.from_numpy(test).float()[:, :, None, None] + torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)  # mean: test
    scores = discriminant(maps).numpy()
    assert scores.shape == (500, classes)
    assert (scores.argmax(axis=1) == distance.argmin(axis=1)).mean() > 0.98
    # Up to a constant of each image, the scores are -distance / 2.
    np.testing.assert_allclose(scores - scores[:, :1], -(distance - distance[:, :1]) / 2, rtol=0.1, atol=0.3)
