"""diffad: visual anomaly detection, localization and repair for industrial inspection on Hugging Face diffusers."""

from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .calibration import Calibration
from .discriminant import LinearDiscriminant
from .feature_extractor import FeatureExtractor
from .gaussian import PadimGaussian
from .image_io import ImageError
from .metrics import detection_metrics, localization_metrics
from .pipeline_diffad import DiffADPipeline
from .pipeline_output import DiffADOutput
from .unet_joint import JointUNet2DModel, JointUNet2DOutput

__version__ = "0.1.0"

# diffusers finds a component's class by looking its library up here and its base classes up in that library; without
# the entry a pipeline loads from a folder but not from the Hub.
LOADABLE_CLASSES.setdefault(
    "diffad",
    {
        "ModelMixin": ["save_pretrained", "from_pretrained"],
        "SchedulerMixin": ["save_pretrained", "from_pretrained"],
    },
)

__all__ = [
    "Calibration",
    "DiffADOutput",
    "DiffADPipeline",
    "FeatureExtractor",
    "ImageError",
    "JointUNet2DModel",
    "JointUNet2DOutput",
    "LinearDiscriminant",
    "ModelMixin",
    "PadimGaussian",
    "SchedulerMixin",
    "detection_metrics",
    "localization_metrics",
]
