"""The images on which training chooses the map are those of the statistics: none of them may set a threshold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffad.scoring.fitting import fit_calibration
from diffad.scoring.inputs import InputReader
from diffad_training.components import build_calibration
from diffad_training.config import TrainingConfig
from diffad_training.fitting import statistics_samples
from diffad_training.good_images import group_names
from fixed_maps import FixedMaps, random_maps


class Recording(FixedMaps):
    """Remembers which images were measured in all terms, for the statistics, and which in those of the score."""

    def __init__(self, calibration, maps):
        super().__init__(calibration, maps)
        self.of_statistics, self.of_thresholds = [], []

    def measure(self, images, category=None, terms=None, *arguments, **options):
        before = len(self.asked)
        maps = super().measure(images, category, terms, *arguments, **options)
        (self.of_statistics if terms is None else self.of_thresholds).extend(self.asked[before:])
        return maps


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("groups", ["none", "of three", "some alone"])
@pytest.mark.parametrize("categories", [[], ["nut", "bolt"]])
def test_the_map_is_chosen_on_the_images_that_give_the_statistics(categories, groups, seed):
    config, rng = TrainingConfig(data="unused", categories=categories, seed=seed), np.random.default_rng(seed)
    samples = []
    for place, i in enumerate(rng.permutation(60).tolist()):  # names in no order, groups apart, categories mixed
        group = {"none": None, "of three": f"lot {i // 3}", "some alone": f"lot {i // 3}" if i % 2 else None}[groups]
        category = (i // 3) % 2 if categories else 0
        images = {"read": lambda place=place: np.full((8, 8), place, dtype=np.uint8)}
        samples.append(SimpleNamespace(name=f"{i}.png", group=group, category=category, **images))
    calibration = build_calibration(config)
    scorer = Recording(calibration, random_maps(calibration, 60, size=(8, 8)))
    reader = InputReader(scorer, SimpleNamespace(config=SimpleNamespace(class_names=categories)), torch.device("cpu"))
    of_image = [sample.category for sample in samples] if categories else None
    fit_calibration(scorer, reader, [sample.read for sample in samples], of_image, 7, group_names(samples))

    chosen = {samples.index(sample) for sample in statistics_samples(samples, config)}
    assert chosen == set(scorer.of_statistics) and chosen.isdisjoint(scorer.of_thresholds)
    assert len(chosen) > 1 and sorted([*scorer.of_statistics, *scorer.of_thresholds]) == list(range(60))
