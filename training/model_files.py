"""What training leaves in a model's folder: the pipeline, its settings, its held-out images and a summary."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffad import DiffADPipeline
from diffad.data import Sample
from diffad.system.atomic import writing
from diffad_training.config import TrainingConfig, save_config
from diffad_training.good_images import save_held_out


def save_model(
    pipe: DiffADPipeline, folder: Path, config: TrainingConfig, held_out: Sequence[Sample], summary: Mapping[str, object]
) -> None:
    """Writes all of them together, or nothing.

    Args:
        summary: of training, such as its seconds.
    """
    with writing(folder, whole=True) as unfinished:
        pipe.save_pretrained(unfinished)
        save_config(config, unfinished / "training_config.json")
        save_held_out(held_out, unfinished)
        (unfinished / "training_summary.json").write_text(json.dumps(dict(summary), indent=2) + "\n")
