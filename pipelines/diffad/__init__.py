"""diffad: visual anomaly detection, localization and repair for industrial inspection on Hugging Face diffusers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .system.telemetry import refuse_telemetry

__version__ = "0.2.0"

refuse_telemetry()  # diffusers imports ONNX Runtime where it is installed

# Where the public names come from. Modules are imported when a name is first asked for: torch and diffusers take seconds,
# which `diffad --help` has no use for.
_SOURCES = {
    "CalibratedProfiles": ".scoring.calibrated_profiles",
    "Calibration": ".scoring.calibration",
    "DiffADOutput": ".pipeline_output",
    "DiffADPipeline": ".pipeline_diffad",
    "DriftMonitor": ".monitoring.drift_monitor",
    "FeatureDenoiser": ".models.feature_denoiser",
    "FeatureExtractor": ".models.feature_extractor",
    "ImageError": ".imaging.reading",
    "JointUNet2DModel": ".models.unet_joint",
    "JointUNet2DOutput": ".models.unet_joint",
    "LinearDiscriminant": ".models.discriminant",
    "ModelMixin": "diffusers",  # this one and SchedulerMixin are looked up here by diffusers, as base classes of components
    "MultiscaleFeatures": ".models.multiscale",
    "PadimGaussian": ".models.gaussian",
    "ReferenceImages": ".models.reference_images",
    "SchedulerMixin": "diffusers",
    "detection_metrics": ".evaluation.metrics",
    "localization_metrics": ".evaluation.metrics",
    "push": ".hub.push",
}
__all__ = list(_SOURCES)

if TYPE_CHECKING:  # the same, as type checkers and editors read it
    from diffusers import ModelMixin as ModelMixin
    from diffusers import SchedulerMixin as SchedulerMixin

    from .evaluation.metrics import detection_metrics as detection_metrics
    from .evaluation.metrics import localization_metrics as localization_metrics
    from .hub.push import push as push
    from .imaging.reading import ImageError as ImageError
    from .models.discriminant import LinearDiscriminant as LinearDiscriminant
    from .models.feature_denoiser import FeatureDenoiser as FeatureDenoiser
    from .models.feature_extractor import FeatureExtractor as FeatureExtractor
    from .models.gaussian import PadimGaussian as PadimGaussian
    from .models.multiscale import MultiscaleFeatures as MultiscaleFeatures
    from .models.reference_images import ReferenceImages as ReferenceImages
    from .models.unet_joint import JointUNet2DModel as JointUNet2DModel
    from .models.unet_joint import JointUNet2DOutput as JointUNet2DOutput
    from .monitoring.drift_monitor import DriftMonitor as DriftMonitor
    from .pipeline_diffad import DiffADPipeline as DiffADPipeline
    from .pipeline_output import DiffADOutput as DiffADOutput
    from .scoring.calibrated_profiles import CalibratedProfiles as CalibratedProfiles
    from .scoring.calibration import Calibration as Calibration


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_SOURCES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
