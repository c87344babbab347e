"""Real good images, as they are and changed as cameras change them, for the benchmark of the monitor."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from diffad import DiffADPipeline
from diffad.imaging.reading import read_image
from diffad.monitoring.drift_monitor import EMBEDDINGS, REJECTS, SCORES
from diffad.monitoring.references import embedding_reference
from diffad.monitoring.suggestions import RECENT_PARTS, suggested_changes
from diffad.runtime.description import FILE
from diffad.runtime.detector import Detector
from diffad_training.benchmarks.image_changes import Change, as_jpeg, blurred, rotated, with_brightness
from diffad_training.benchmarks.monitoring_streams import embedding_alarms, monitor_alarms
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

STREAMS = 100
MOST_PARTS = 150  # of a stream
LEVEL = 0.05
IMAGE_CHANGES: dict[str, Change] = {
    "none": lambda image: image,
    "brightness x 0.98": partial(with_brightness, factor=0.98),
    "brightness x 0.9": partial(with_brightness, factor=0.9),
    "blur of 1 pixel": partial(blurred, pixels=1),
    "2 degrees": partial(rotated, degrees=2),
    "JPEG 40": partial(as_jpeg, quality=40),
}


def measure_images(
    model: Path, data_root: Path, profile: str | None, seed: int, changes: Sequence[str] = tuple(IMAGE_CHANGES)
) -> Iterator[dict]:
    """One result for every change.

    Streams are random orders of good test images that the model has not seen, each of them once, as if production had changed
    from the first part on.

    Args:
        model: trained or exported; it has the name of its folder in `data_root`, perhaps with an ending.
        profile: of a trained one.
        changes: names of `IMAGE_CHANGES` that are measured, beside folders that are changes of their own.
    """
    category = max((folder.name for folder in data_root.iterdir() if model.name.startswith(folder.name)), key=len)
    if (model / FILE).is_file():
        pipe = Detector(model, threads=1)
    else:
        pipe = DiffADPipeline.from_pretrained(model).with_profile(profile)
        pipe.set_progress_bar_config(disable=True)
    for name, images in tqdm(variants(data_root / category / "test", seed, changes), desc=model.name, disable=None):
        yield {
            "kind": "streams",
            **{"model": model.name, "profile": profile, "variant": name, "seed": seed},
            **measure_variant(pipe, images, seed),
        }


def variants(test: Path, seed: int, changes: Sequence[str]) -> list[tuple[str, list[Image.Image]]]:
    """Names of changes with the images; folders beside that of good images are changes of their own."""
    good = _some(test / "good", seed, MOST_PARTS)
    found = [(name, [IMAGE_CHANGES[name](image) for image in good]) for name in changes]
    others = sorted(folder for folder in test.iterdir() if folder.name != "good")
    return found + [(f"images of {folder.name}", _some(folder, seed, len(good))) for folder in others]


def measure_variant(pipe: DiffADPipeline | Detector, images: Sequence[Image.Image], seed: int) -> dict:
    """What the monitor says of streams of these images."""
    output = pipe(images, 8, return_features=True, map_size=(8, 8))
    scores, features = output.image_scores.astype(float), output.pooled_features
    calibration, rate = pipe.calibration.calibration_scores_of(), pipe.calibration.supported_rate()
    parts = pipe.calibration.reference_parts()
    reference, _ = embedding_reference(parts, rate)
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(images)) for _ in range(STREAMS)])
    of_streams = np.tile(calibration, (STREAMS, 1)), scores[orders], rate, LEVEL
    alone = np.minimum(*monitor_alarms(*of_streams).values())
    alarms = monitor_alarms(*of_streams, with_embeddings=True)
    alarms[EMBEDDINGS] = embedding_alarms([reference] * STREAMS, features[orders], output.is_defective[orders], LEVEL)
    first = np.min(list(alarms.values()), axis=0)
    earliest = [min(alarms, key=lambda test: alarms[test][i]) for i in np.flatnonzero(np.isfinite(first))]
    found = suggested_changes(parts, images[:RECENT_PARTS])
    return {
        **{"n": len(calibration), "images": len(images), "streams": STREAMS},
        "reject_rate": float(output.is_defective.mean()),
        "auroc": float(roc_auc_score([0] * len(calibration) + [1] * len(scores), [*calibration, *scores])),
        "median": _median(first),
        "alarmed": float(np.isfinite(first).mean()),
        "by_test": {test: float(np.isfinite(alarms[test]).mean()) for test in (SCORES, REJECTS, EMBEDDINGS)},
        "first_test": max(sorted(set(earliest)), key=earliest.count) if earliest else "none",
        **{"median_without": _median(alone), "alarmed_without": float(np.isfinite(alone).mean())},
        "suggestions": "; ".join(suggestion.words for suggestion in found) or "none",
    }


def _median(first: np.ndarray) -> float | None:
    median = float(np.quantile(first, 0.5, method="higher"))
    return median if np.isfinite(median) else None


def _some(folder: Path, seed: int, most: int) -> list[Image.Image]:
    paths = sorted(folder.iterdir())
    return [read_image(paths[i]) for i in np.random.default_rng(seed).permutation(len(paths))[:most]]
