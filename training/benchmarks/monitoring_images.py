"""Real good images, as they are and changed as cameras change them, for the benchmark of the monitor."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from diffad import DiffADPipeline
from diffad.data import evaluation_samples, training_samples
from diffad.imaging.image_statistics import look_of, statistics_of
from diffad.jobs.monitor import pooled_features
from diffad.monitoring.drift_monitor import EMBEDDINGS, shares_of_level
from diffad.monitoring.embedding_test import block_level, permutation_p_value
from diffad.monitoring.suggestions import suggestions
from diffad_training.benchmarks.image_changes import Change, as_jpeg, blurred, rotated, with_brightness
from diffad_training.benchmarks.monitoring_streams import monitor_alarms
from diffad_training.good_images import read_held_out
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

STREAMS = 200
PARTS = 1000
WITHIN = 200  # parts
MOST_IMAGES = 100  # of each set
LEVEL = 0.05


CHANGES: dict[str, Change] = {
    "none": lambda image: image,
    "brightness x 0.9": partial(with_brightness, factor=0.9),
    "blur of 1 pixel": partial(blurred, pixels=1),
    "2 degrees": partial(rotated, degrees=2),
    "JPEG 40": partial(as_jpeg, quality=40),
}


def measure_images(model: Path, data_root: Path, profile: str | None, seed: int) -> Iterator[dict]:
    """One result for every change.

    The stream is drawn with replacement from good test images, which the model has not seen, and ranked among the model's own
    calibration scores. Repeated images are no independent parts, so that the embedding test, whose p-value assumes them, is
    made once with every test image, against training images; their scores play no part in it.
    """
    category = Path(json.loads((model / "training_config.json").read_text())["data"]).name
    rng = np.random.default_rng(seed)
    pipe = DiffADPipeline.from_pretrained(model).with_profile(profile)
    pipe.set_progress_bar_config(disable=True)
    test = evaluation_samples(str(data_root / category))
    images = [sample.read() for sample in _some(test, rng, lambda sample: not sample.is_defective)]
    held_out = set(read_held_out(model))
    training = training_samples(str(data_root / category))
    reference = [sample.read() for sample in _some(training, rng, lambda sample: sample.name not in held_out)]
    looks = [look_of(image) for image in reference]
    mean = np.mean([look.square for look in looks], axis=0)
    before = [statistics_of(look, mean) for look in looks]
    reference_features = _features(pipe, reference)
    calibration = pipe.calibration.calibration_scores_of()
    rate = pipe.calibration.supported_rate()
    allowed = block_level(0, shares_of_level(with_embeddings=True)[EMBEDDINGS] * LEVEL)
    for name, change in tqdm(CHANGES.items(), desc=model.name, disable=None):
        changed = [change(image) for image in images]
        output = pipe(changed)
        scores = output.image_scores.astype(float)
        streams = scores[np.random.default_rng(seed).integers(len(scores), size=(STREAMS, PARTS))]
        alarms = monitor_alarms(np.tile(calibration, (STREAMS, 1)), streams, rate, LEVEL)
        first = np.minimum(*alarms.values())
        earliest = [min(alarms, key=lambda test: alarms[test][i]) for i in np.flatnonzero(np.isfinite(first))]
        median = float(np.quantile(first, 0.5, method="higher"))
        found = suggestions(before, [statistics_of(look_of(image), mean) for image in changed])
        p_value = permutation_p_value(reference_features, _features(pipe, changed), allowed, (seed,))
        yield {
            "kind": "images",
            **{"model": model.name, "profile": profile or pipe.profile_names[0], "variant": name, "seed": seed},
            **{"n": len(calibration), "images": len(images), "streams": STREAMS, "parts": PARTS},
            "reject_rate": float(output.is_defective.mean()),
            "auroc": float(roc_auc_score([0] * len(calibration) + [1] * len(scores), [*calibration, *scores])),
            "median": median if np.isfinite(median) else None,
            "never": float(np.isinf(first).mean()),
            "within": float((first <= WITHIN).mean()),
            "first_test": max(set(earliest), key=earliest.count) if earliest else "none",
            **{"embedding_p_value": p_value, "embedding_limit": allowed},
            "suggestions": "; ".join(suggestion.words for suggestion in found) or "none",
        }


def _some(samples: list, rng: np.random.Generator, keep: Callable) -> list:
    kept = [sample for sample in samples if keep(sample)]
    return [kept[i] for i in rng.permutation(len(kept))[:MOST_IMAGES]]


def _features(pipe: DiffADPipeline, images: list[Image.Image]) -> np.ndarray:
    return np.concatenate([pooled_features(pipe, images[start : start + 8]) for start in range(0, len(images), 8)])
