"""Connected regions of masks: their boxes."""

import numpy as np
from diffad.imaging.regions import bounding_boxes


def test_boxes_are_those_of_connected_regions():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:5, 3:7] = True
    mask[10:18, 20:30] = True
    mask[5, 7] = True  # touches the first at its corner
    assert bounding_boxes(mask) == [[20, 10, 30, 18], [3, 2, 8, 6]]
    assert bounding_boxes(np.zeros((4, 4), dtype=bool)) == []
    assert bounding_boxes(np.ones((4, 6), dtype=bool)) == [[0, 0, 6, 4]]
