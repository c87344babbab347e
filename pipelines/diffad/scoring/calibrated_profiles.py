"""The calibrations of a model's profiles besides its own score, as one component of its pipeline."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..models.float32 import Float32ModelMixin
from .calibration import Calibration


class CalibratedProfiles(Float32ModelMixin, ConfigMixin):
    """One [`Calibration`] for each profile.

    Args:
        settings: of each profile's calibration, by its name; see [`diffad.scoring.profiles`].
    """

    config_name = "config.json"
    _keep_in_fp32_modules = Calibration._keep_in_fp32_modules

    @register_to_config
    def __init__(self, settings: dict[str, dict[str, Any]]):
        super().__init__()
        self.calibrations = torch.nn.ModuleDict({name: Calibration(**of_one) for name, of_one in settings.items()})

    @classmethod
    def of(cls, calibrations: Mapping[str, Calibration]) -> "CalibratedProfiles":
        """Of calibrations by the names of their profiles, which belong to it from then on."""
        settings = {
            name: {key: value for key, value in calibration.config.items() if not key.startswith("_")}
            for name, calibration in calibrations.items()
        }
        profiles = cls(settings)
        profiles.calibrations = torch.nn.ModuleDict(calibrations)
        return profiles

    def check_state(self) -> None:
        super().check_state()
        for name, calibration in self.calibrations.items():
            try:
                calibration.check_state()
            except ValueError as error:
                raise ValueError(f"calibrations.{name}.{error}") from None
