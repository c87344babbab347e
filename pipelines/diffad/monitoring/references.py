"""What the test of embeddings compares production with: the calibration images, the very ones that scores are ranked among.

Let T be the threshold, the k-th of n calibration scores. Given T the k - 1 images below it are independent draws of good parts
with scores below T, and so are production's good parts that are called good. So the two are exchangeable, whatever features and
scores have to do with each other; images that the model was trained on are not, because their scores are lower.
Where thresholds count groups of images, T is the k-th of the scores of one image drawn of each group; the images are those.
"""

import numpy as np

from ..scoring.conformal import threshold_rank
from ..scoring.reference_parts import ReferenceParts
from .embedding_test import LEAST_REFERENCES

GROUPED = (
    "the model was calibrated by groups of images; production is compared with one image of each group, so that it must show "
    "one image of each part, no more"
)
NO_FEATURES = "the model does not hold the features of its calibration images; calibrate it anew, then export it anew"


def embedding_reference(reference: ReferenceParts | None, rate: float) -> tuple[np.ndarray | None, str]:
    """Features `(k - 1, D)` that a monitor compares parts called good with, or None and the reason why there are none.

    Args:
        reference: calibration images of the category.
        rate: false-alarm rate of its threshold.
    """
    if reference is None:
        return None, NO_FEATURES
    below = threshold_rank(len(reference.features), rate) - 1
    if below < LEAST_REFERENCES:
        return None, f"{below} calibration images lie below the threshold, and at least {LEAST_REFERENCES} are needed"
    return reference.features[:below], ""
