"""What the web app shows of one image, apart from its layout: verdict, pictures at a threshold, repair."""

import html
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..imaging.drawing import filmstrip, heat_map, marked
from ..imaging.trajectory import trajectory_row
from ..pipeline_diffad import DiffADPipeline
from ..runtime.detector import Detector
from ..scoring.judging import Judging

DISPLAY_SIDE = 1600  # pixels; more than a browser window shows
MASK_COLOUR = (0, 255, 255)
DEFECTIVE, GOOD, NEUTRAL = "#b91c1c", "#15803d", "#52525b"


@dataclass(frozen=True)
class InspectedImage:
    """One scored image, on which any threshold can be laid without scoring it again.

    Args:
        image: `(H, W, 3)` uint8, no side longer than `DISPLAY_SIDE`.
        anomaly_map: `(H, W)` float32.
        score, p_value: of the image at its own size.
        category: index of its category, for a model trained on several.
        is_unknown: of a product that the model has never seen, which is scored as the nearest category.
    """

    image: np.ndarray
    anomaly_map: np.ndarray
    score: float
    p_value: float
    category: int = 0
    is_unknown: bool = False


def inspect_image(
    pipe: DiffADPipeline | Detector, image: Image.Image, rate: float, category: str | None = None
) -> InspectedImage:
    """Scores one image. The false-alarm rate changes nothing in the result, but has to be one that the pipeline supports."""
    shown = shrunk(image, DISPLAY_SIDE)
    output = pipe(image, categories=category, false_alarm_rate=rate, map_size=(shown.height, shown.width))
    # An unknown product has no category, but the thresholds of the nearest.
    of_categories = [pipe.calibration.image_threshold(rate, i) for i in range(len(pipe.calibration.images_per_category))]
    return InspectedImage(
        image=np.asarray(shown),
        anomaly_map=output.anomaly_maps[0],
        score=float(output.image_scores[0]),
        p_value=float(output.p_values[0]),
        category=of_categories.index(output.image_thresholds[0]),
        is_unknown=output.categories is not None and output.categories[0] is None,
    )


def overlaid(image: np.ndarray, anomaly_map: np.ndarray, threshold: float, mask: np.ndarray) -> np.ndarray:
    """The image `(H, W, 3)` uint8 under its heat map, its mask `(H, W)` outlined so that it is seen when shown small."""
    return marked(image, anomaly_map, threshold, mask, MASK_COLOUR, width=max(1, round(max(image.shape) / 400)))


def pictures(inspected: InspectedImage, calibration: Judging, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Overlay and heat map at the pixel threshold of a false-alarm rate, `(H, W, 3)` uint8 each."""
    threshold = calibration.pixel_threshold(rate, inspected.category)
    is_defective = inspected.is_unknown or inspected.score > calibration.image_threshold(rate, inspected.category)
    mask = calibration.mask(inspected.anomaly_map, threshold, is_defective)
    picture = overlaid(inspected.image, inspected.anomaly_map, threshold, mask)
    return picture, heat_map(inspected.anomaly_map, threshold)


def verdict(inspected: InspectedImage, calibration: Judging, rate: float) -> str:
    """HTML with the verdict at a false-alarm rate, and what score and p-value mean."""
    threshold = calibration.image_threshold(rate, inspected.category)
    if inspected.is_unknown:
        return banner(
            "? Unknown product",
            "This part is like none of the products that the model was trained on, so nothing says that it is good.",
            f"Scored as the nearest of them: {inspected.score:.2f}, threshold {threshold:.2f}.",
            colour=DEFECTIVE,
        )
    defective = inspected.score > threshold
    return banner(
        "✗ Defective" if defective else "✓ No defect found",
        f"Score {inspected.score:.2f}, threshold {threshold:.2f}: at most {100 * rate:.3g} % of good parts score above it.",
        p_value_in_words(inspected.p_value, calibration.images_per_category[inspected.category]),
        colour=DEFECTIVE if defective else GOOD,
    )


def p_value_in_words(p_value: float, num_calibration_images: int) -> str:
    """What a conformal p-value (1 + k) / (n + 1) says about the n good parts behind it."""
    at_least_as_high = round(p_value * (num_calibration_images + 1)) - 1
    if at_least_as_high == 0:
        counted = f"None of the {num_calibration_images} good parts measured for calibration scored"
    else:
        counted = f"{at_least_as_high} of the {num_calibration_images} good parts measured for calibration scored"
    return f"{counted} this high or higher (p-value {p_value:.3g})."


def banner(headline: str, *lines: str, colour: str = NEUTRAL) -> str:
    """A coloured box of HTML; all text is escaped."""
    white = "color: white !important"  # the page's own style colours every element
    body = "".join(f'<div style="{white}; margin-top: 4px">{html.escape(line)}</div>' for line in lines)
    return (
        f'<div role="status" style="background: {colour}; border-radius: 8px; padding: 14px 18px">'
        f'<div style="{white}; font-size: 1.6em; font-weight: 600">{html.escape(headline)}</div>{body}</div>'
    )


def repair(
    pipe: DiffADPipeline | Detector, image: Image.Image, rate: float, category: str | None = None
) -> tuple[tuple[Image.Image, Image.Image], Image.Image, bool] | None:
    """The image before and after repair, at display size, a filmstrip of the way from one to the other, and whether the repair
    is confident.

    None if there was nothing to repair at this false-alarm rate.

    Raises:
        ValueError: if the model can't repair: an exported one, or for what the pipeline refuses.
    """
    if isinstance(pipe, Detector):
        raise ValueError("An exported model marks defects and does not repair them; open the trained model for that.")
    output = pipe.reconstruct(image, categories=category, false_alarm_rate=rate, intermediate_steps="all")
    if not output.difference_maps[0].any():
        return None
    before, after = (shrunk(picture, DISPLAY_SIDE) for picture in (image, output.images[0]))
    return (before, after), filmstrip(*trajectory_row(before, output.intermediates[0], after)), bool(output.confident[0])


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """A copy with no side longer than `side`, its aspect kept."""
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy
