"""What the process that computes finds out about its model."""

import time

import pytest
from diffad.serve.computing import fastest_batch_size
from diffad.serve.settings import ServeSettings


class SlowModel:
    """Takes a given time for a single image, another one for each image of a batch, and long for the first call of a size."""

    def __init__(self, alone: float, in_a_batch: float, category_names=None):
        self.alone, self.in_a_batch, self.category_names = alone, in_a_batch, category_names
        self.calls = []

    def __call__(self, images, batch_size, categories):
        self.calls.append((len(images), batch_size, categories))
        is_first = self.calls.count(self.calls[-1]) == 1
        time.sleep(0.2 if is_first else self.alone if len(images) == 1 else self.in_a_batch * len(images))


@pytest.mark.parametrize(("alone", "in_a_batch", "expected"), [(0.01, 0.02, 1), (0.02, 0.01, 6), (0.01, 0.01, 6)])
def test_images_are_scored_one_by_one_where_that_is_faster(alone, in_a_batch, expected):
    assert fastest_batch_size(SlowModel(alone, in_a_batch), ServeSettings(batch_size=6)) == expected


def test_a_model_of_several_categories_is_timed_on_one_in_whole_batches():
    model = SlowModel(0, 0, ("nut", "bolt"))
    fastest_batch_size(model, ServeSettings(batch_size=3))
    assert set(model.calls) == {(1, 1, "nut"), (3, 3, "nut")}
