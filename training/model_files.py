"""What training leaves in a model's folder: the pipeline, its settings, its held-out images and a summary."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffad.data import Sample
from diffad.imaging.drawing import outline, save_sheet
from diffad.system.atomic import writing
from diffad_training.config import TrainingConfig, save_config
from diffad_training.fitting import FittedModel
from diffad_training.good_images import save_held_out
from diffad_training.likely_defects import KINDS
from diffad_training.map_choice import MapChoice

SUMMARY = "training_summary.json"


def save_model(
    fitted: FittedModel, folder: Path, config: TrainingConfig, held_out: Sequence[Sample], summary: Mapping[str, object]
) -> None:
    """Writes all of them together, or nothing.

    Args:
        summary: of training, such as its seconds.
    """
    with writing(folder, whole=True) as unfinished:
        fitted.pipe.save_pretrained(unfinished)
        save_config(config, unfinished / "training_config.json")
        save_held_out(held_out, unfinished)
        choice = fitted.map_choice
        if choice is not None:
            summary = {**summary, "map_choice": choice.to_dict()}
            save_pictures(choice, unfinished / "synthetic_defects.png")
        if fitted.moments is not None:
            fitted.moments.save(unfinished)
        (unfinished / SUMMARY).write_text(json.dumps(dict(summary), indent=2) + "\n")


def save_pictures(choice: MapChoice, path: Path) -> None:
    """Some of the synthetic defects that chose the map, outlined: a column for each kind."""
    pictures = [outline(image, mask, (255, 0, 0)) for image, mask in choice.pictures]
    rows = [("", pictures[start : start + len(KINDS)]) for start in range(0, len(pictures) - len(KINDS) + 1, len(KINDS))]
    if rows:
        save_sheet(path, KINDS, rows)
