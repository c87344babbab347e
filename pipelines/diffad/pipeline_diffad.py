"""DiffADPipeline: images in; scores, maps and verdicts out (paper Sec. 3.2), and repaired images (Sec. 3.3)."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image

from . import scoring
from .calibration import TERMS, Calibration
from .diffusion import ChainStep, add_noise, chain_step, model_log_variance, posterior_mean, predict_x0
from .discriminant import LinearDiscriminant
from .feature_extractor import FeatureExtractor
from .gaussian import PadimGaussian
from .image_processor import ImageInput, as_image_list, blend_change, load_rgb, resize_rgb, to_model_range, to_pil
from .noise import timestep_noise
from .pipeline_output import DiffADOutput, ReconstructionOutput
from .reconstruction import PRESETS, Models, Recipe
from .unet_joint import JointUNet2DModel, JointUNet2DOutput

# The category of every image by name or index, or one for all.
ClassLabels = str | int | Sequence[str | int]


class DiffADPipeline(DiffusionPipeline):
    """Anomaly detection and localization by a joint diffusion model of pixels and features.

    Args:
        unet: rebuilds noise, variance and features from a noisy image.
        scheduler: DDPMScheduler with `variance_type="learned_range"` and `prediction_type` `epsilon` or `sample`;
            `timestep_spacing="linspace"` makes the paper's timesteps part of its respaced chain.
        feature_extractor: frozen backbone that the UNet learned to predict.
        gaussian: normal features at every position.
        residual_gaussian: what the UNet normally gets wrong in them, at every position.
        calibration: how scores are formed, and what normal images score.
        discriminant: names and recognises the categories of a model trained on several; such a model's UNet, Gaussians and
            calibration hold one class for each.
    """

    model_cpu_offload_seq = "feature_extractor->discriminant->unet->residual_gaussian->gaussian"
    _optional_components = ["discriminant"]

    def __init__(
        self,
        unet: JointUNet2DModel,
        scheduler: DDPMScheduler,
        feature_extractor: FeatureExtractor,
        gaussian: PadimGaussian,
        residual_gaussian: PadimGaussian,
        calibration: Calibration,
        discriminant: LinearDiscriminant | None = None,
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
            gaussian=gaussian,
            residual_gaussian=residual_gaussian,
            calibration=calibration,
            discriminant=discriminant,
        )

    @property
    def class_names(self) -> list[str] | None:
        """Categories of a model trained on several, in the order of their indices."""
        return None if self.discriminant is None else list(self.discriminant.config.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` at which images are scored."""
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @torch.no_grad()
    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 8,
        class_labels: ClassLabels | None = None,
        false_alarm_rate: float = 0.05,
        map_size: tuple[int, int] | None = None,
        return_partial_maps: bool = False,
        return_dict: bool = True,
    ) -> DiffADOutput | tuple:
        """Scores images.

        Args:
            images: one or many of: path, PIL image, numpy `(H, W[, C])`, tensor `(C, H, W)`; uint8 or float in [0, 1].
            batch_size: images per forward pass; memory grows with it, scores do not depend on it.
            class_labels: for a model trained on several categories, the name or index of each image's category, or one for
                all images. Without it categories are recognised, at the cost of one more pass of the feature extractor.
            false_alarm_rate: share of normal parts that may be called defective; sets the thresholds.
            map_size: `(height, width)` of all returned maps; None returns each at its image's own size.
            return_partial_maps: also return the map of every score term at every timestep.
            return_dict: whether to return a [`DiffADOutput`] instead of a tuple of its fields.

        Raises:
            ImageError: if an image can't be used.
            ValueError: if the pipeline is not calibrated or the class labels do not match.
        """
        images = as_image_list(images)
        self.check_inputs(images, batch_size)
        class_labels = self._class_indices(images, class_labels, batch_size)
        image_thresholds, pixel_thresholds = self._thresholds(false_alarm_rate, class_labels, len(images))
        terms = TERMS if return_partial_maps else tuple(self.calibration.config.weights)

        scores, maps, partial_maps = [], [], []
        with self.progress_bar(total=len(images)) as progress:
            for batch, labels, originals in self._batches(images, class_labels, batch_size):
                partials = self._standardized_maps(batch, labels, terms)
                anomaly_map = self.calibration.combine(partials)  # (B, H, W)
                scores.append(scoring.image_score(anomaly_map, self.calibration.config.top_k).cpu().numpy())
                for i, original in enumerate(originals):
                    size = map_size or (original.height, original.width)
                    maps.append(_numpy_map(anomaly_map[i], size))
                    if return_partial_maps:
                        partial_maps.append({name: _numpy_map(partials[name][i], size) for name in partials})
                progress.update(len(batch))
        self.maybe_free_model_hooks()

        image_scores = np.concatenate(scores)
        if not np.isfinite(image_scores).all():
            broken = np.flatnonzero(~np.isfinite(image_scores))[0]
            raise ValueError(f"the score of image {broken} is not finite; use float32 or bfloat16 weights")
        output = DiffADOutput(
            image_scores=image_scores,
            p_values=self.calibration.p_values(image_scores, class_labels),
            labels=image_scores > image_thresholds,
            anomaly_maps=maps,
            masks=[anomaly_map > threshold for anomaly_map, threshold in zip(maps, pixel_thresholds, strict=True)],
            partial_maps=partial_maps if return_partial_maps else None,
            class_labels=None if class_labels is None else [self.class_names[i] for i in class_labels],
        )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def reconstruct(
        self,
        images: ImageInput | Sequence[ImageInput],
        preset: str | Recipe = "default",
        batch_size: int = 8,
        class_labels: ClassLabels | None = None,
        false_alarm_rate: float = 0.05,
        seed: int = 0,
        intermediate_steps: Sequence[int] = (),
        callback_on_step_end: Callable[["DiffADPipeline", int, int, dict], dict | None] | None = None,
        **settings,
    ) -> ReconstructionOutput:
        """Shows what defective parts should have looked like.

        Args:
            images: as for scoring.
            preset: `default` (ours: repairs the marked region only), `paper` (Algorithm 1), `gradient_descent` (Eq. 13),
                `partial_diffusion`, or a recipe of [`diffad.reconstruction`].
            batch_size, class_labels, false_alarm_rate: as for scoring; the rate decides what the default preset repairs.
            seed: of all noise; one image's noise does not depend on the others.
            intermediate_steps: steps (from 1) after which the images are kept.
            callback_on_step_end: called as `callback(pipe, step, batch_start, {"images": (B, 3, H, W), "loss": (B,) or None})`
                after every step; images it returns in a dict are taken in place of the current ones. The default preset
                counts each of its attempts as one step and reports no loss.
            settings: of the recipe, in place of the preset's.

        Raises:
            ImageError: if an image can't be used.
            ValueError: if the pipeline is not calibrated, or a preset or setting does not exist.
        """
        images = as_image_list(images)
        self.check_inputs(images, batch_size)
        recipe = _resolve_recipe(preset, settings)
        class_labels = self._class_indices(images, class_labels, batch_size)
        thresholds = torch.from_numpy(self._thresholds(false_alarm_rate, class_labels, len(images))).float()
        thresholds = thresholds.to(self._execution_device)
        output = ReconstructionOutput(images=[], difference_maps=[], traces=[], intermediates=[])
        with self.progress_bar(total=len(images)) as progress:
            for batch, labels, originals in self._batches(images, class_labels, batch_size):
                recorder = _StepRecorder(self, callback_on_step_end, intermediate_steps, len(output.images))
                done = len(output.images)
                models = self._reconstruction_models(labels, *thresholds[:, done : done + len(batch)], seed)
                repaired = recipe.run(batch, models, recorder)
                for i, original in enumerate(originals):
                    image = blend_change(original, batch[i], repaired[i])
                    output.images.append(image)
                    change = np.abs(np.asarray(image, dtype=np.float32) - np.asarray(original, dtype=np.float32))
                    output.difference_maps.append(change.mean(axis=2) / 255)
                    output.traces.append(np.array([loss[i] for loss in recorder.losses], dtype=np.float32))
                    output.intermediates.append([to_pil(kept[i]) for kept in recorder.intermediates])
                progress.update(len(batch))
        self.maybe_free_model_hooks()
        return output

    @torch.no_grad()
    def calibrate(
        self,
        normal_images: Sequence[ImageInput],
        batch_size: int = 8,
        class_labels: ClassLabels | None = None,
        **recipe,
    ) -> Calibration:
        """Measures held-out normal images and sets `calibration`; needed once after training, or for new conditions.

        Args:
            normal_images: images of good parts that neither the UNet nor the Gaussian was fitted on.
            batch_size, class_labels: as for scoring; every category of a model of several needs images.
            recipe: arguments of [`Calibration`] that differ from the present one.
        """
        images = list(normal_images)
        class_labels = self._class_indices(images, class_labels, batch_size)
        if class_labels is not None and (unseen := set(range(len(self.class_names))) - set(class_labels)):
            raise ValueError(
                f"calibration needs normal images of {', '.join(self.class_names[i] for i in sorted(unseen))}, too"
            )
        calibration = self.calibration.unfitted(**recipe)
        previous, self.calibration = self.calibration, calibration
        try:
            # On disk, because the maps of many images do not fit in memory.
            with tempfile.TemporaryFile() as file:
                shape = (len(images), len(calibration.partial_names), *self.image_size)
                partials = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
                self._measure(images, class_labels, batch_size, partials)
                calibration.fit(partials, class_labels)
        except BaseException:
            self.calibration = previous
            raise
        calibration.to(self.unet.device)
        return calibration

    def partial_maps(
        self, images: torch.Tensor, class_labels: torch.Tensor | None, terms: Sequence[str] = TERMS
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Every term at every timestep, smoothed, not standardised: one UNet pass per timestep for all terms.

        Yields:
            `(name, map)` in the order of `calibration.partial_names`, each map `(batch, height, width)`.
        """
        size = tuple(images.shape[-2:])
        features = self.feature_extractor(images) if set(terms) & {"feature", "residual", "mahalanobis"} else None
        predictions = []
        for t, noisy, step, output in self._unet_passes(images, class_labels) if set(terms) - {"mahalanobis"} else ():
            x0_predicted, v = self._clean_image_and_variance(noisy, output, step)
            predictions.append(output.features.float())  # (B, D, h, w)
            if "kl" in terms:
                yield f"kl@{t}", self._finish(scoring.kl_map(images, x0_predicted, v, step), size)
            if "rgb" in terms:
                yield f"rgb@{t}", self._finish(scoring.rgb_error_map(images, x0_predicted), size)
            if "feature" in terms:
                yield f"feature@{t}", self._finish(scoring.feature_map(features, predictions[-1]), size)
        # Distances, not their squares, whose heavy tail would drown the other terms.
        if "residual" in terms:
            residual = scoring.feature_residual(features, predictions)
            yield "residual", self._finish(self.residual_gaussian(residual, class_labels).sqrt(), size)
        if "mahalanobis" in terms:
            yield "mahalanobis", self._finish(self.gaussian(features, class_labels).sqrt(), size)

    def feature_residuals(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """What `residual_gaussian` is fitted on: `(batch, D, h, w)` for images `(batch, 3, height, width)` in [-1, 1]."""
        predictions = [output.features.float() for _, _, _, output in self._unet_passes(images, class_labels)]
        return scoring.feature_residual(self.feature_extractor(images), predictions)

    def _unet_passes(
        self, images: torch.Tensor, class_labels: torch.Tensor | None
    ) -> Iterator[tuple[int, torch.Tensor, ChainStep, JointUNet2DOutput]]:
        """Timestep, noisy image, reverse step and the UNet's output, once for every timestep of the recipe."""
        recipe = self.calibration.config
        self.scheduler.set_timesteps(recipe.num_inference_steps or self.scheduler.config.num_train_timesteps)
        for t in recipe.timesteps:
            noise = timestep_noise(images.shape[1:], t, recipe.seed).to(images)
            step = chain_step(self.scheduler, torch.tensor([t])).to(images)
            noisy = add_noise(images, noise, step)
            yield t, noisy, step, self.unet(noisy.to(self.unet.dtype), t, class_labels)

    def _clean_image_and_variance(
        self, noisy: torch.Tensor, output: JointUNet2DOutput, step: ChainStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the UNet's output says of x_0, and its variance channels, `(B, 3, H, W)` each."""
        prediction, v = output.sample.float().chunk(2, dim=1)
        return predict_x0(noisy, prediction, step, self.scheduler.config.prediction_type), v

    def check_inputs(self, images: list, batch_size: int) -> None:
        """Refuses wrong arguments before work starts."""
        if not images:
            raise ValueError("no images given")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not self.calibration.is_fitted:
            raise ValueError("the pipeline is not calibrated: call pipe.calibrate(normal_images) first")

    def _class_indices(self, images: list, class_labels: ClassLabels | None, batch_size: int) -> list[int] | None:
        """One category index per image, as given or as recognised; None for a model of one category."""
        if self.discriminant is None:
            if class_labels is not None:
                raise ValueError("class_labels given, but this model was trained without classes")
            return None
        if class_labels is None:
            batches = (batch for batch, _, _ in self._batches(images, None, batch_size))
            return [i for batch in batches for i in self.discriminant(self.feature_extractor(batch)).argmax(dim=1).tolist()]
        given = [class_labels] * len(images) if isinstance(class_labels, str | int) else list(class_labels)
        if len(given) != len(images):
            raise ValueError(f"{len(given)} class labels for {len(images)} images: give one per image, or one name for all")
        known = {name_or_index: i for i, name in enumerate(self.class_names) for name_or_index in (name, i)}
        unknown = [label for label in given if label not in known]
        if unknown:
            raise ValueError(
                f"class label {unknown[0]!r} is none of {', '.join(self.class_names)} (or 0..{len(self.class_names) - 1})"
            )
        return [known[label] for label in given]

    def _thresholds(self, false_alarm_rate: float, class_labels: list[int] | None, count: int) -> np.ndarray:
        """`(2, count)`: the image and the pixel threshold for each image, those of its category."""
        labels = [0] * count if class_labels is None else class_labels
        of_class = {
            label: (
                self.calibration.image_threshold(false_alarm_rate, label),
                self.calibration.pixel_threshold(false_alarm_rate, label),
            )
            for label in set(labels)
        }
        return np.array([of_class[label] for label in labels]).T

    def _batches(
        self, images: list[ImageInput], class_labels: list[int] | None, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, list[Image.Image]]]:
        """Preprocessed batches on the device, their labels and the images as they came, in RGB."""
        device = self._execution_device
        for start in range(0, len(images), batch_size):
            stop = min(start + batch_size, len(images))
            loaded = [load_rgb(images[i], f"image {i}") for i in range(start, stop)]
            pixels = np.stack([resize_rgb(image, self.image_size) for image in loaded])
            labels = None if class_labels is None else torch.tensor(class_labels[start:stop], device=device)
            yield to_model_range(torch.from_numpy(pixels).to(device)), labels, loaded

    def _standardized_maps(
        self, images: torch.Tensor, class_labels: torch.Tensor | None, terms: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        raw = self.partial_maps(images, class_labels, terms)
        return {name: self.calibration.standardize(name, partial, class_labels) for name, partial in raw}

    def _reconstruction_models(
        self, class_labels: torch.Tensor | None, image_threshold: torch.Tensor, pixel_threshold: torch.Tensor, seed: int
    ) -> Models:
        """The pipeline's parts as the functions that recipes of reconstruction work with."""
        terms = tuple(self.calibration.config.weights)
        full_chain = self.scheduler.config.num_train_timesteps

        def step_of(t: int, chain_length: int, like: torch.Tensor) -> ChainStep:
            self.scheduler.set_timesteps(chain_length)
            return chain_step(self.scheduler, torch.tensor([t])).to(like)

        def noised(images: torch.Tensor, t: int) -> torch.Tensor:
            return add_noise(images, timestep_noise(images.shape[1:], t, seed).to(images), step_of(t, full_chain, images))

        def denoised(xt: torch.Tensor, t: int, step: ChainStep) -> tuple[torch.Tensor, torch.Tensor]:
            return self._clean_image_and_variance(xt, self.unet(xt.to(self.unet.dtype), t, class_labels), step)

        def reverse_step(xt: torch.Tensor, t: int, chain_length: int, draw: int | None) -> torch.Tensor:
            step = step_of(t, chain_length, xt)
            x0, v = denoised(xt, t, step)
            mean = posterior_mean(x0, xt, step)
            if draw is None:
                return mean
            noise = timestep_noise(xt.shape[1:], full_chain + draw, seed).to(xt)
            return mean + torch.exp(0.5 * model_log_variance(v, step)) * noise

        def chain(length: int) -> list[int]:
            self.scheduler.set_timesteps(length)
            return self.scheduler.timesteps.tolist()

        def select(index: torch.Tensor) -> Models:
            labels = None if class_labels is None else class_labels[index]
            return self._reconstruction_models(labels, image_threshold[index], pixel_threshold[index], seed)

        return Models(
            select=select,
            distance=lambda images: self.gaussian(self.feature_extractor(images), class_labels),
            add_noise=noised,
            predict_x0=lambda xt, t: denoised(xt, t, step_of(t, full_chain, xt))[0],
            reverse_step=reverse_step,
            chain=chain,
            anomaly_map=lambda images: self.calibration.combine(self._standardized_maps(images, class_labels, terms)),
            image_score=lambda maps: scoring.image_score(maps, self.calibration.config.top_k),
            image_threshold=image_threshold,
            pixel_threshold=pixel_threshold,
        )

    def _finish(self, partial: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """A partial map at the model's resolution, smoothed."""
        return scoring.smooth_map(scoring.resize_map(partial, size), self.calibration.config.smoothing_sigma)

    def _measure(self, images: list, class_labels, batch_size: int, partials: np.ndarray) -> None:
        """Fills `(N, partials, H, W)` with the raw partial maps of every image."""
        done = 0
        with self.progress_bar(total=len(images)) as progress:
            for batch, labels, _ in self._batches(images, class_labels, batch_size):
                for column, (_, partial) in enumerate(self.partial_maps(batch, labels)):
                    partials[done : done + len(batch), column] = partial.cpu().numpy()
                done += len(batch)
                progress.update(len(batch))


class _StepRecorder:
    """Keeps what a reconstruction passes by, and lets the caller's callback look at it and change it."""

    def __init__(self, pipe: DiffADPipeline, callback: Callable | None, wanted: Sequence[int], batch_start: int):
        self.pipe, self.callback, self.wanted, self.batch_start = pipe, callback, frozenset(wanted), batch_start
        self.step = 0
        self.losses: list[np.ndarray] = []
        self.intermediates: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor, loss: torch.Tensor | None) -> torch.Tensor:
        self.step += 1
        if self.callback is not None:
            answer = self.callback(self.pipe, self.step, self.batch_start, {"images": images, "loss": loss})
            images = (answer or {}).get("images", images)
        if loss is not None:
            self.losses.append(loss.cpu().numpy())
        if self.step in self.wanted:
            self.intermediates.append(images.cpu())
        return images


def _resolve_recipe(preset: str | Recipe, settings: dict) -> Recipe:
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    unknown = set(settings) - {field.name for field in dataclasses.fields(preset)}
    if unknown:
        names = ", ".join(field.name for field in dataclasses.fields(preset))
        raise ValueError(f"{type(preset).__name__} has no setting {', '.join(sorted(unknown))}; it has {names}")
    return dataclasses.replace(preset, **settings)


def _numpy_map(score_map: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    return scoring.resize_map(score_map[None], size)[0].cpu().numpy()
