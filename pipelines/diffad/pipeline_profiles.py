"""The scorers of a pipeline: of its own score, and of the profiles that it has besides."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from .scoring.calibrated_profiles import CalibratedProfiles
from .scoring.calibration import Calibration
from .scoring.config import check_fits_model
from .scoring.inputs import load_region_at
from .scoring.profiles import BALANCED, GAUSSIAN, PROFILES
from .scoring.scorer import Scorer, scales_of_parts
from .scoring.tiling import scored_size

Profiled = TypeVar("Profiled")


class ScoresByProfile:
    """Mixin before DiffusionPipeline: one trained model, scored in several ways."""

    _built_scorers: tuple[list[Any], dict[str, Scorer]] = [], {}

    @property
    def profile_names(self) -> list[str]:
        """Names of the scores that the model has; the first is the default, `pipe.calibration`.

        A model whose diffusion model is not trained has `gaussian` only.
        """
        others = () if self.profiles is None else self.profiles.calibrations
        # In one order, which a mapping loses when it is saved
        default = GAUSSIAN if self.residual_gaussian is None else BALANCED
        return [default, *(name for name in PROFILES if name in others)]

    def calibration_of(self, profile: str | None = None) -> Calibration:
        """Settings, statistics and thresholds of a profile; None is the default's.

        Raises:
            ValueError: if the model has no such profile.
        """
        default, *others = self.profile_names
        if profile in (None, default):
            return self.calibration
        if profile not in others:
            raise ValueError(f"the model has no profile {profile!r}; it has {', '.join(self.profile_names)}")
        return self.profiles.calibrations[profile]

    @property
    def scorer(self) -> Scorer:
        """Scorer of the default profile."""
        return self.scorer_of()

    def scorer_of(self, profile: str | None = None) -> Scorer:
        """Images in the model's range to term maps, anomaly map and image score; made anew when a part is replaced or moved.

        Raises:
            ValueError: if the model has no such profile.
        """
        calibrations = [self.calibration_of(name) for name in self.profile_names]
        # Configurations are replaced as a whole when a setting changes
        configs = [self.scheduler.config, *(calibration.config for calibration in calibrations)]
        parts = [*self.components.values(), *configs, self._execution_device]
        built, scorers = self._built_scorers
        if len(built) != len(parts) or any(was is not now and was != now for was, now in zip(built, parts, strict=True)):
            _, scorers = self._built_scorers = parts, {}
        name = self.profile_names[0] if profile is None else profile
        if name not in scorers:
            scorers[name] = self.make_scorer(self.calibration_of(name))
        return scorers[name]

    @property
    def scales(self) -> tuple[str, ...]:
        """Further terms that the model can measure, at other scales and by its feature denoiser."""
        return scales_of_parts(self.multiscale, self.feature_denoiser)

    def make_scorer(self, calibration: Calibration) -> Scorer:
        """A scorer of the pipeline's parts under another calibration."""
        parts = (self.unet, self.scheduler, self.feature_extractor, self.gaussian, self.residual_gaussian, calibration)
        return Scorer(*parts, self.image_size, self._execution_device, self.multiscale, self.feature_denoiser)

    def with_profile(self: Profiled, profile: str | None) -> Profiled:
        """A pipeline of the same parts whose only score is a profile's, for whatever scores or repairs with its default.

        None and the default's name give this pipeline.

        Raises:
            ValueError: if the model has no such profile.
        """
        calibration = self.calibration_of(profile)
        if calibration is self.calibration:
            return self
        pipe = type(self)(**{**self.components, "calibration": calibration, "profiles": None})
        pipe.register_to_config(_name_or_path=self.name_or_path)
        pipe.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipe

    def unfitted_calibrations(
        self, roi: str | Path | Image.Image | np.ndarray | None, score_settings: Mapping[str, Any]
    ) -> dict[str, Calibration]:
        """What [`~diffad.DiffADPipeline.calibrate`] fits, by profile: all, or the default alone where its settings change.

        Raises:
            ImageError, ValueError: if the region or a setting can't be used.
        """
        calibrations = {}
        for name in self.profile_names[:1] if score_settings else self.profile_names:
            present = self.calibration_of(name)
            calibrations[name] = calibration = present.unfitted(**score_settings)
            size = partial(scored_size, image_size=self.image_size, short_side=calibration.config.short_side)
            calibration.set_roi(present.roi if roi is None else load_region_at(roi, size))
            check_fits_model(calibration.score_config, self.image_size, self.gaussian.config.grid)
        return calibrations

    def set_calibrations(self, calibrations: dict[str, Calibration]) -> None:
        """Replaces the calibrations of some profiles, the default's included; those of others stay."""
        default = self.profile_names[0]
        others = {name: self.calibration_of(name) for name in self.profile_names[1:]}
        others |= {name: calibration for name, calibration in calibrations.items() if name != default}
        if default in calibrations:
            self.calibration = calibrations[default]
        if others:
            self.register_modules(profiles=CalibratedProfiles.of(others))
