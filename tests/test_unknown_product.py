"""Parts of a product that a model of several categories has never seen."""

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline, LinearDiscriminant
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler
from tiny_pipeline import category_images
from unknown_products import NAMES, stripes, two_products


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    """Knows images of two brightnesses."""
    return two_products()


def test_parts_of_an_unknown_product_have_no_category_and_are_not_good(pipe):
    known, unknown = category_images(20, 6, 0) + category_images(20, 7, 1), stripes(4)
    output = pipe(known + unknown, false_alarm_rate=0.1)
    assert output.categories[40:] == [None] * 4 and output.is_defective[40:].all()
    assert sum(category is None for category in output.categories[:40]) <= 2
    assert [c for c in output.categories[:20] if c] == ["bright"] * sum(c is not None for c in output.categories[:20])


def test_a_given_category_is_taken_at_its_word(pipe):
    assert pipe(stripes(1), categories="dark", false_alarm_rate=0.1).categories == ["dark"]


def test_limit_survives_saving(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    loaded = DiffADPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.discriminant.limit, pipe.discriminant.limit)
    assert loaded(stripes(1), false_alarm_rate=0.1).categories == [None]


def test_distance_is_that_to_the_nearest_mean_under_the_shrunk_covariance_within_classes():
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + np.repeat(rng.normal(size=(2, 5)) * 5, 20, axis=0)
    discriminant = LinearDiscriminant(5, NAMES, knows_distances=True).fit(pooled, np.repeat([0, 1], 20))
    # scikit-learn shrinks the covariance of standardised vectors of each class, and takes their mean by the priors.
    covariance = np.zeros((5, 5))
    for part in (pooled[:20], pooled[20:]):
        scaler = StandardScaler().fit(part)
        covariance += 0.5 * scaler.scale_[:, None] * ledoit_wolf(scaler.transform(part))[0] * scaler.scale_
    test = rng.normal(size=(7, 5)) * 4
    deviations = test[:, None] - np.stack([pooled[:20].mean(axis=0), pooled[20:].mean(axis=0)])
    expected = np.sqrt(np.einsum("nkd,de,nke->nk", deviations, np.linalg.inv(covariance), deviations).min(axis=1))
    np.testing.assert_allclose(discriminant.distances(torch.from_numpy(test).float()), expected, rtol=1e-3)


def test_limit_is_passed_by_one_good_image_in_a_hundred():
    rng = np.random.default_rng(0)
    for count in (8, 30, 99, 400):
        shares = []
        for _ in range(200):
            discriminant = LinearDiscriminant(2, NAMES, knows_distances=True)
            discriminant.set_limit(np.sqrt(rng.chisquare(20, size=count)))
            shares.append((np.sqrt(rng.chisquare(20, size=2000)) > discriminant.limit.item()).mean())
        assert np.mean(shares) < 0.035 if count < 99 else 0.005 < np.mean(shares) < 0.015
