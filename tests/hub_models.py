"""Model folders and evaluations as evaluation and older versions leave them, for tests of the hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from diffad import DiffADPipeline
from diffad.models.digest import model_digest
from PIL import Image

GOLDEN = Path(__file__).parent / "golden/models"
EVALUATION_METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30")


def write_evaluation(folder: Path, pipe, data: str = "gear", shift: float = 0.0) -> Path:
    """What `diffad evaluate` writes."""
    folder.mkdir()
    values = {name: 0.95 - 0.1 * i + shift for i, name in enumerate(EVALUATION_METRICS)}
    metrics = {
        "scores": {"ensemble": values, "kl": values, "kl@20": values},
        "images": {"good": 2, "defective": 3},
        "operating_point": {
            "requested_false_alarm_rate": 0.1,
            "held_out_normals": 19,
            "realised_false_alarm_rate": 0.5,
            "detection_rate": 2 / 3,
        },
        "recipe": json.loads(pipe.calibration.to_json_string()),
        "cost": {"images_per_second": 5.0, "peak_memory_mib": 1536.0, "unet_parameters": 2e6, "threads": 2, "device": "cpu"},
        "model": str(folder),
        "model_digest": model_digest(pipe.components),
        "data": data,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = ["test/hole/0.png,hole,3,0.01,1", "test/hole/1.png,hole,3,0.01,0", "test/cut/0.png,cut,3,0.01,1"]
    rows += ["test/good/0.png,good,1,0.5,0", "test/good/1.png,good,2,0.2,1"]
    (folder / "scores.csv").write_text("\n".join(["image,defect,score,p_value,called_defective", *rows]) + "\n")
    Image.new("RGB", (8, 8), "red").save(folder / "sheet.png")
    return folder


def change_metrics(folder: Path, copy: Path, change: Callable[[dict], None]) -> Path:
    """A copy of an evaluation whose metrics.json `change` has changed."""
    shutil.copytree(folder, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    change(metrics)
    (copy / "metrics.json").write_text(json.dumps(metrics))
    return copy


def golden_model(name: str, folder: Path) -> DiffADPipeline:
    """A model as diffad 0.1 saved it, in `folder`, and loaded."""
    for part in dict.fromkeys(("one", name)):
        shutil.copytree(GOLDEN / part, folder, dirs_exist_ok=True)
    pipe = DiffADPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
