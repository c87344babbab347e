"""DiffADPipeline: images in; scores, maps and verdicts out (paper Sec. 3.2), and repaired images (Sec. 3.3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image

from .deprecation import accepts_former_names
from .diffusion.chain import check_scheduler
from .imaging.maps import resize_map
from .imaging.preprocessing import ImageInput, as_image_list
from .model_index import OPTIONAL_COMPONENTS
from .models.discriminant import LinearDiscriminant
from .models.feature_denoiser import FeatureDenoiser
from .models.feature_extractor import FeatureExtractor
from .models.gaussian import PadimGaussian
from .models.multiscale import MultiscaleFeatures
from .models.reference_images import ReferenceImages
from .models.unet_joint import JointUNet2DModel
from .pipeline_former_names import FormerNames
from .pipeline_inputs import ChecksInputs
from .pipeline_output import DiffADOutput, ReconstructionOutput
from .pipeline_profiles import ScoresByProfile
from .pipeline_saving import SavedWhole
from .repair.binding import ContextBuilder
from .repair.presets import RepairMethod, resolve_method
from .repair.recorder import check_kept_steps
from .repair.run import StepCallback, repair_batch, step_callback
from .scoring.calibrated_profiles import CalibratedProfiles
from .scoring.calibration import Calibration
from .scoring.categories import Categories, names_of
from .scoring.fitting import fit_calibrations
from .scoring.inputs import InputReader
from .scoring.integers import check_timesteps_and_seed


class DiffADPipeline(FormerNames, ChecksInputs, ScoresByProfile, SavedWhole, DiffusionPipeline):
    """Anomaly detection and localization by a joint diffusion model of pixels and features.

    Args:
        unet: rebuilds noise or image, variance and features from a noisy image.
        scheduler: with `variance_type="learned_range"` and `prediction_type` `epsilon` or `sample`;
            `timestep_spacing="linspace"` makes the paper's timesteps part of its respaced chain.
        feature_extractor: frozen backbone that the UNet learned to predict.
        gaussian: features of good parts at every position.
        residual_gaussian: what the UNet gets wrong in them on good parts, at every position; None while it is not trained,
            and the model scores by its profile `gaussian` alone.
        calibration: how scores are formed, and what good images score.
        multiscale: features of good parts at further scales; models saved with diffad 0.1 have none.
        discriminant: names and recognises the categories of a model trained on several; such a model's UNet, Gaussians and
            calibration hold one class for each.
        feature_denoiser: a diffusion model of features alone, by which the profile `fast` scores; former models have none.
        profiles: how the model scores besides, faster or better; see [`diffad.scoring.profiles`].
        references: images of good parts, from which repair takes content; scores don't depend on them.

    Raises:
        ValueError: if the UNet predicts no features, or the scheduler is not supported.
    """

    model_cpu_offload_seq = "feature_extractor->feature_denoiser->unet"
    # They hold no parameters, by which hooks tell where a model is; the calibration has no forward pass to be hooked either.
    _exclude_from_cpu_offload = ["gaussian", "calibration", *(set(OPTIONAL_COMPONENTS) - {"feature_denoiser"})]
    _optional_components = list(OPTIONAL_COMPONENTS)

    def __init__(
        self,
        unet: JointUNet2DModel,
        scheduler: DDPMScheduler,
        feature_extractor: FeatureExtractor,
        gaussian: PadimGaussian,
        residual_gaussian: PadimGaussian | None,
        calibration: Calibration,
        discriminant: LinearDiscriminant | None = None,
        multiscale: MultiscaleFeatures | None = None,
        profiles: CalibratedProfiles | None = None,
        feature_denoiser: FeatureDenoiser | None = None,
        references: ReferenceImages | None = None,
    ):
        super().__init__()
        if not hasattr(unet, "feature_head"):
            name = type(unet).__name__
            raise ValueError(f"unet: a {name} predicts no features; wrap it with JointUNet2DModel.from_unet and train it")
        check_scheduler(scheduler)
        parts = {"unet": unet, "scheduler": scheduler, "feature_extractor": feature_extractor, "gaussian": gaussian}
        parts |= {"residual_gaussian": residual_gaussian, "calibration": calibration, "discriminant": discriminant}
        parts |= {"multiscale": multiscale, "profiles": profiles, "feature_denoiser": feature_denoiser}
        self.register_modules(**parts, references=references)

    @property
    def category_names(self) -> list[str] | None:
        """Categories of a model trained on several, in the order of their indices."""
        return None if self.discriminant is None else list(self.discriminant.config.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` at which images, or tiles of them, are scored."""
        return self.unet.image_size

    @accepts_former_names(class_labels="categories", return_partial_maps="return_term_maps")
    @torch.no_grad()
    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 8,
        categories: Categories | None = None,
        false_alarm_rate: float | None = None,
        map_size: tuple[int, int] | None = None,
        return_term_maps: bool = False,
        return_dict: bool = True,
        output_type: Literal["np", "pt"] = "np",
        profile: str | None = None,
        return_features: bool = False,
    ) -> DiffADOutput | tuple[Any, ...]:
        """Scores images.

        Args:
            images: one or many of: path, PIL image, numpy `(H, W[, C])`, tensor `(C, H, W)`; uint8 or float in [0, 1].
            batch_size: images or tiles per forward pass; memory grows with it, scores do not depend on it.
            categories: for a model trained on several, the name or index of each image's category, or one for all images.
                Without it categories are recognised, at the cost of one more pass of the feature extractor.
            false_alarm_rate: share of good parts that may be called defective; sets the thresholds. None is 5 %, or, where
                that is larger, the smallest rate that the calibration supports for the image's category, 1 / (n + 1).
            map_size: `(height, width)` of all returned maps; None returns each at its image's own size.
            return_term_maps: also return the map of every score term that the model can measure, at every timestep.
            return_dict: whether to return the output class instead of a tuple of its fields.
            output_type: `np` for numpy arrays, `pt` for tensors on the pipeline's device.
            profile: how to score, such as `fast`, with thresholds of its own; one of `pipe.profile_names`, None is the first.
            return_features: also return the pooled features that the score has looked at.

        Raises:
            ImageError: if an image can't be used.
            ValueError: if the pipeline is not calibrated, on too few images for the rate, or an argument is wrong.
        """
        # 1. Categories and false-alarm rates of all images; what can't be used is refused
        images = as_image_list(images)
        rate_of_all = false_alarm_rate if categories is None else None
        self.check_inputs(images, batch_size, rate_of_all, map_size, output_type, profile)
        scorer, calibration = self.scorer_of(profile), self.calibration_of(profile)
        terms = scorer.measurable_terms if return_term_maps else None
        reader = InputReader(scorer, self.discriminant, self._execution_device)
        category_of, unknown = reader.categories(images, categories, batch_size)  # N indices or None for one category, (N,)
        rates = calibration.rates(false_alarm_rate, category_of, len(images))  # (N,)

        # 2. Scores and maps, one batch after the other
        kept_on = "cpu" if output_type == "np" else self._execution_device
        image_scores = np.empty(len(images), dtype=np.float32)
        anomaly_maps: list[Any] = [None] * len(images)
        term_maps: list[dict[str, torch.Tensor]] = [{} for _ in images]
        pooled: list[Any] = [None] * len(images)
        keeps_features = return_features and scorer.config.sees_features
        with self.progress_bar(total=len(images)) as progress:
            for indices, pixels, category, detail, originals in reader.batches(images, category_of, batch_size):
                score = scorer(pixels, category, terms, batch_size, detail)  # (B,), (B, H, W), {name: (B, H, W)}
                image_scores[indices] = score.image_scores.cpu().numpy()
                features = score.pooled_features.float().cpu() if keeps_features else None  # (B, D)
                for i, index in enumerate(indices):
                    pooled[index] = None if features is None else features[i]
                    size = map_size or (originals[i].height, originals[i].width)
                    anomaly_maps[index] = resize_map(score.anomaly_maps[i][None], size)[0].to(kept_on)  # (height, width)
                    for name, maps in score.term_maps.items() if return_term_maps else ():
                        term_maps[index][name] = resize_map(maps[i][None], size)[0].to(kept_on)
                progress.update(len(indices))
        self.maybe_free_model_hooks()

        # 3. Verdicts, each at the thresholds of its category
        maps = [anomaly_map.cpu().numpy() for anomaly_map in anomaly_maps]
        verdicts = calibration.judge(image_scores, maps, rates, category_of, unknown)
        output = DiffADOutput(
            image_scores=image_scores,
            anomaly_maps=anomaly_maps,
            **verdicts._asdict(),  # p-values, labels, masks, rates and thresholds
            term_maps=term_maps if return_term_maps else None,
            categories=None if category_of is None else names_of(category_of, unknown, self.category_names),
            pooled_features=None if pooled[0] is None else torch.stack(pooled),
        ).converted(output_type, self._execution_device)
        return output if return_dict else output.to_tuple()

    @accepts_former_names(class_labels="categories")
    @torch.no_grad()
    def reconstruct(
        self,
        images: ImageInput | Sequence[ImageInput],
        preset: str | RepairMethod = "default",
        batch_size: int = 8,
        categories: Categories | None = None,
        false_alarm_rate: float | None = None,
        seed: int = 0,
        intermediate_steps: Sequence[int] | Literal["all"] = (),
        callback_on_step_end: StepCallback | None = None,
        return_traces: bool = False,
        return_dict: bool = True,
        output_type: Literal["pil", "np", "pt"] = "pil",
        **settings: Any,
    ) -> ReconstructionOutput | tuple[Any, ...]:
        """Shows what defective parts should have looked like.

        Args:
            images, batch_size, categories, false_alarm_rate, return_dict: as for scoring; the rate decides what is repaired.
            preset: `default` (ours: repairs the marked region only), `paper` (Algorithm 1 as its released code runs it),
                `algorithm_1` (as printed), `gradient_descent` (Eq. 13), `partial_diffusion`, or a method of [`diffad.repair`].
            seed: of all noise; one image's noise does not depend on the others.
            intermediate_steps: steps (from 1) after which the images are kept, or "all".
            callback_on_step_end: called as `callback(pipe, step, batch_start, {"images": (B, 3, H, W)})`; may return others.
            return_traces: also measure the Mahalanobis loss (Eq. 12) of the input and after every step.
            output_type: images as PIL images (`pil`), or all as arrays (`np`) or tensors (`pt`); see [`ReconstructionOutput`].
            settings: of the method, in place of the preset's.

        Raises:
            ImageError, ValueError: as for scoring, or the preset or a setting does not exist or does not fit the model, or the
                model's diffusion model is not trained.
        """
        # 1. What can't be used is refused; categories and thresholds of all images
        if self.residual_gaussian is None:
            raise ValueError("this model can't repair: its diffusion model is not trained (see `diffad info`)")
        images = as_image_list(images)
        rate_of_all = false_alarm_rate if categories is None else None
        self.check_inputs(images, batch_size, rate_of_all, output_type=output_type, output_types=("pil", "np", "pt"))
        check_timesteps_and_seed(seed=seed)
        check_kept_steps(intermediate_steps)
        method = resolve_method(preset, settings)
        scorer, device = self.scorer, self._execution_device
        reader = InputReader(scorer, self.discriminant, device)
        category_of, _ = reader.categories(images, categories, batch_size)
        rates = self.calibration.rates(false_alarm_rate, category_of, len(images))  # (N,)
        thresholds = torch.from_numpy(self.calibration.thresholds(rates, category_of)).float().to(device)  # (2, N)
        builder = ContextBuilder(scorer, self.scheduler, self.unet.output_stride, seed, batch_size, device, self.references)

        # 2. Repair, one batch after the other
        repaired: list[Any] = [None] * len(images)
        with self.progress_bar(total=len(images)) as progress:
            for batch in reader.batches(images, category_of, batch_size):
                context = builder.context(batch, *thresholds[:, batch.indices])
                callback = callback_on_step_end and step_callback(callback_on_step_end, self, batch.indices[0])
                overlap = scorer.config.tile_overlap
                of_batch = repair_batch(method, batch, context, overlap, callback, intermediate_steps, return_traces)
                for index, of_image in zip(batch.indices, of_batch, strict=True):
                    repaired[index] = of_image
                progress.update(len(batch.indices))
        self.maybe_free_model_hooks()
        output = ReconstructionOutput.of(repaired, return_traces).converted(output_type, device)
        return output if return_dict else output.to_tuple()

    @accepts_former_names(class_labels="categories", normal_images="calibration_images")
    @torch.no_grad()
    def calibrate(
        self,
        calibration_images: Sequence[ImageInput],
        batch_size: int = 8,
        categories: Categories | None = None,
        roi: str | Path | Image.Image | np.ndarray | None = None,
        groups: Sequence[str] | None = None,
        **score_settings: Any,
    ) -> Calibration:
        """Measures good images and sets `calibration`; needed once after training, or for new conditions.

        Args:
            calibration_images: of good parts that neither the UNet nor the Gaussians were fitted on. One in ten gives the
                statistics of standardisation, the others the thresholds.
            batch_size, categories: as for scoring; every category of a model of several needs images.
            roi: region of interest in the images' framing, one for all categories: mask file or image (white is inside) or bool
                array `(H, W)`. From then on scores, thresholds and masks are of its pixels alone, and maps normal outside.
                It is saved with the model. None keeps the present one, a mask of all pixels removes it.
            groups: name of each image's group, such as the part that several images show; thresholds then count groups.
            score_settings: of [`ScoreConfig`], in place of the present ones, or `score="paper"` or `"default"` for all of them.
                They change the default profile, and leave the others as they are; without any, all profiles are calibrated.

        Returns:
            The calibration of the default profile.

        Raises:
            ImageError, ValueError: if an image or setting can't be used, or there are too few. The old calibrations stay.
        """
        images = as_image_list(calibration_images)
        calibrations = self.unfitted_calibrations(roi, score_settings)
        default = next(iter(calibrations.values()))
        reader = InputReader(self.make_scorer(default), self.discriminant, self._execution_device)
        category_of, _ = reader.categories(images, categories, batch_size)
        fit_calibrations(list(calibrations.values()), self.make_scorer, reader, images, category_of, batch_size, groups)
        reader.fit_unknown(images, batch_size)
        self.set_calibrations(calibrations)
        self.maybe_free_model_hooks()
        return default
