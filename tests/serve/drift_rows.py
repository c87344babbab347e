"""What a server's monitors are given in tests: models, rows of judged images, and features."""

import hashlib

import numpy as np
from diffad.serve.messages import ModelInfo
from stub_model import SCORES, stub_features, stub_reference_parts, textured

ONE = ModelInfo("one", None, None, (SCORES,), (0.05,))
TWO = ModelInfo("two", ("nut", "bolt"), None, (SCORES, SCORES), (0.05, 0.1))
REFERENCE = stub_reference_parts()


def rows(*scores: float, category: str | None = None, label: str = "good") -> list[dict]:
    return [{"score": s, "category": category, "label": label, "name": f"{s:g}.png", "digest": digest(s)} for s in scores]


def digest(score: float) -> str:
    return hashlib.sha256(f"{score:g}".encode()).hexdigest()


def features_of(count: int, tilt: float) -> list[np.ndarray]:
    return [stub_features(textured(90, seed, tilt)) for seed in range(count)]
