"""DiffADPipeline: images in; scores, maps and verdicts out (paper Sec. 3.2), and repaired images (Sec. 3.3)."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from PIL import Image

from .diffusion.chain import ChainStep, add_noise, chain_step, clamp_to_range, model_log_variance, posterior_mean, predict_x0
from .diffusion.noise import timestep_noise
from .imaging.blending import blend_change
from .imaging.maps import resize_map, smooth_map
from .imaging.preprocessing import ImageInput, as_image_list, load_region, load_rgb, resize_rgb, to_model_range, to_pil
from .model_index import PACKAGE, with_installed_classes
from .models.discriminant import LinearDiscriminant
from .models.feature_extractor import FeatureExtractor
from .models.gaussian import PadimGaussian
from .models.unet_joint import JointUNet2DModel, JointUNet2DOutput
from .pipeline_output import DiffADOutput, ReconstructionOutput
from .repair.context import RepairContext
from .repair.gradient_denoising import mahalanobis_loss
from .repair.inpainting import Inpainting
from .repair.presets import RepairMethod, resolve_method
from .scoring import terms as score_terms
from .scoring.calibration import TERMS, Calibration
from .scoring.tiling import add_tiles, blend_weights, cut, tile_corners, working_size

# diffusers finds a component's class by looking its library up here and its base classes up in that library; without
# the entry a pipeline loads from a folder but not from the Hub.
LOADABLE_CLASSES.setdefault(
    PACKAGE, {name: ["save_pretrained", "from_pretrained"] for name in ("ModelMixin", "SchedulerMixin")}
)
# The category of every image by name or index, or one for all.
Categories = str | int | Sequence[str | int]


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

    model_cpu_offload_seq = "feature_extractor->unet"
    # They hold no parameters, by which hooks tell where a model is; the calibration has no forward pass to be hooked either.
    _exclude_from_cpu_offload = ["discriminant", "gaussian", "residual_gaussian", "calibration"]
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

    @classmethod
    def _dict_from_json_file(cls, *args, **kwargs) -> dict:
        # A repository's own code is for readers without diffad. This class needs none of it, nor trust in it.
        return with_installed_classes(super()._dict_from_json_file(*args, **kwargs))

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Uploads a complete model repository; options and errors are those of [`diffad.hub.push`]."""
        from .hub.push import push

        return push(self, repo_id, **options)

    @property
    def category_names(self) -> list[str] | None:
        """Categories of a model trained on several, in the order of their indices."""
        return None if self.discriminant is None else list(self.discriminant.config.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` at which images, or tiles of them, are scored."""
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

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
    ) -> DiffADOutput | tuple:
        """Scores images.

        Args:
            images: one or many of: path, PIL image, numpy `(H, W[, C])`, tensor `(C, H, W)`; uint8 or float in [0, 1].
            batch_size: images or tiles per forward pass; memory grows with it, scores do not depend on it.
            categories: for a model trained on several categories, the name or index of each image's category, or one for
                all images. Without it categories are recognised, at the cost of one more pass of the feature extractor.
            false_alarm_rate: share of normal parts that may be called defective; sets the thresholds. None is 5 %, or, where
                that is larger, the smallest rate that the calibration supports for the image's category, 1 / (n + 1).
            map_size: `(height, width)` of all returned maps; None returns each at its image's own size.
            return_term_maps: also return the map of every score term at every timestep.
            return_dict: whether to return a [`DiffADOutput`] instead of a tuple of its fields.

        Raises:
            ImageError: if an image can't be used.
            ValueError: if the pipeline is not calibrated, on too few images for the requested false-alarm rate, or the class
                labels do not match.
        """
        images = as_image_list(images)
        self.check_inputs(images, batch_size)
        categories, rates = self._classes_and_rates(images, categories, false_alarm_rate, batch_size)
        image_thresholds, pixel_thresholds = self._thresholds(rates, categories)
        terms = TERMS if return_term_maps else tuple(self.calibration.config.weights)

        scores, maps, term_maps = [], [], []
        with self.progress_bar(total=len(images)) as progress:
            for batch, labels, originals in self._batches(images, categories, batch_size):
                partials = self._standardized_maps(batch, labels, terms, batch_size)
                anomaly_map = self.calibration.combine(partials)  # (B, H, W)
                scores.append(self.calibration.image_scores(anomaly_map).cpu().numpy())
                for i, original in enumerate(originals):
                    size = map_size or (original.height, original.width)
                    maps.append(_numpy_map(anomaly_map[i], size))
                    if return_term_maps:
                        term_maps.append({name: _numpy_map(partials[name][i], size) for name in partials})
                progress.update(len(batch))
        self.maybe_free_model_hooks()

        image_scores = np.concatenate(scores)
        if not np.isfinite(image_scores).all():
            broken = np.flatnonzero(~np.isfinite(image_scores))[0]
            raise ValueError(f"the score of image {broken} is not finite; use float32 or bfloat16 weights")
        output = DiffADOutput(
            image_scores=image_scores,
            p_values=self.calibration.p_values(image_scores, categories),
            is_defective=image_scores > image_thresholds,
            anomaly_maps=maps,
            masks=[
                (m > threshold) & self.calibration.inside(m.shape).cpu().numpy()
                for m, threshold in zip(maps, pixel_thresholds, strict=True)
            ],
            false_alarm_rates=rates,
            image_thresholds=image_thresholds,
            pixel_thresholds=pixel_thresholds,
            term_maps=term_maps if return_term_maps else None,
            categories=None if categories is None else [self.category_names[i] for i in categories],
        )
        return output if return_dict else output.to_tuple()

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
        callback_on_step_end: Callable[["DiffADPipeline", int, int, dict], dict | None] | None = None,
        return_traces: bool = False,
        **settings,
    ) -> ReconstructionOutput:
        """Shows what defective parts should have looked like.

        A model that scores images in tiles repairs the marked regions of its stitched maps, at the size at which it scores
        images and in windows of a tile's size: with more steps where a region is larger than such a window.

        Args:
            images: as for scoring.
            preset: `default` (ours: repairs the marked region only), `paper` (Algorithm 1), `gradient_descent` (Eq. 13),
                `partial_diffusion`, or a method of [`diffad.repair.presets`]. The paper's change whole images at the model's
                resolution, which a model that scores images in tiles does not have: it takes `default` only.
            batch_size, categories, false_alarm_rate: as for scoring; the rate decides what the default preset repairs.
            seed: of all noise; one image's noise does not depend on the others.
            intermediate_steps: steps (from 1) after which the images are kept, or "all".
            callback_on_step_end: called as `callback(pipe, step, batch_start, {"images": (B, 3, H, W)})` after every step;
                images it returns in a dict are taken in place of the current ones.
            return_traces: also measure the Mahalanobis loss (Eq. 12) of the input and after every step.
            settings: of the method, in place of the preset's.

        Raises:
            ImageError: if an image can't be used.
            ValueError: if the pipeline is not calibrated, on too few images for the requested false-alarm rate, or a preset or
                setting does not exist, or a score is not finite, or the preset is not one for a model that scores images in
                tiles.
        """
        images = as_image_list(images)
        self.check_inputs(images, batch_size)
        method = resolve_method(preset, settings)
        if self.calibration.config.short_side is not None and not isinstance(method, Inpainting):
            raise ValueError(
                f"{type(method).__name__} changes whole images at the model's resolution, but this model scores them in tiles: "
                "repair with the default preset, which changes marked regions only"
            )
        categories, rates = self._classes_and_rates(images, categories, false_alarm_rate, batch_size)
        thresholds = torch.from_numpy(self._thresholds(rates, categories)).float()
        thresholds = thresholds.to(self._execution_device)
        output = ReconstructionOutput(images=[], difference_maps=[], intermediates=[], traces=[] if return_traces else None)
        with self.progress_bar(total=len(images)) as progress:
            for batch, labels, originals in self._batches(images, categories, batch_size):
                done = len(output.images)
                context = self._reconstruction_models(labels, *thresholds[:, done : done + len(batch)], seed, batch_size)
                recorder = _StepRecorder(
                    self,
                    callback_on_step_end,
                    intermediate_steps,
                    done,
                    (lambda x, context=context: self._mahalanobis_loss(context, x)) if return_traces else None,
                )
                recorder.measure(batch)
                result = method.run(batch, context, recorder)
                for i, original in enumerate(originals):
                    image = blend_change(original, batch[i], result.images[i], result.replaced[i])
                    output.images.append(image)
                    change = np.abs(np.asarray(image, dtype=np.float32) - np.asarray(original, dtype=np.float32))
                    output.difference_maps.append(change.mean(axis=2) / 255)
                    output.intermediates.append([kept[i] for kept in recorder.intermediates])
                    if return_traces:
                        output.traces.append(np.array([loss[i] for loss in recorder.losses], dtype=np.float32))
                progress.update(len(batch))
        self.maybe_free_model_hooks()
        return output

    @torch.no_grad()
    def calibrate(
        self,
        normal_images: Sequence[ImageInput],
        batch_size: int = 8,
        categories: Categories | None = None,
        roi: str | Path | Image.Image | np.ndarray | None = None,
        **recipe,
    ) -> Calibration:
        """Measures held-out normal images and sets `calibration`; needed once after training, or for new conditions.

        Args:
            normal_images: images of good parts that neither the UNet nor the Gaussian was fitted on. One in ten of them gives
                the statistics of standardisation, the others the thresholds.
            batch_size, categories: as for scoring; every category of a model of several needs images.
            roi: region of interest, for parts that lie alike in all images: mask file or image (white is inside) or bool array
                `(H, W)` in the images' framing. From then on statistics, scores, thresholds and masks are those of its pixels
                alone, and maps normal outside. It is saved with the model, because thresholds hold for no other region. None
                keeps the present one; a mask of all pixels removes it. Several categories have one region in common.
            recipe: arguments of [`Calibration`] that differ from the present one.

        Raises:
            ImageError: if an image or the region can't be used.
            ValueError: if there are too few images, or the model does not fit tiles that the recipe asks for.
        """
        images = list(normal_images)
        calibration = self.calibration.unfitted(**recipe)
        self._check_tiles(calibration)
        categories = self.category_indices(categories, len(images))
        if categories is None and self.discriminant is not None:
            categories = self._recognize(images, batch_size)
        if categories is not None and (unseen := set(range(len(self.category_names))) - set(categories)):
            names = ", ".join(self.category_names[i] for i in sorted(unseen))
            raise ValueError(f"calibration needs normal images of {names}, too")
        previous, self.calibration = self.calibration, calibration
        try:
            calibration.set_roi(previous.roi if roi is None else self._region(roi))
            # On disk, because the maps of many images do not fit in memory.
            with tempfile.TemporaryFile() as file:
                calibration.fit(self._measure(images, categories, batch_size, file), categories)
        except BaseException:
            self.calibration = previous
            raise
        calibration.to(self._execution_device)
        self.maybe_free_model_hooks()
        return calibration

    def term_maps(
        self,
        images: torch.Tensor,
        categories: torch.Tensor | None,
        terms: Sequence[str] = TERMS,
        tiles_per_pass: int = 8,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Every term at every timestep, smoothed, not standardised: one UNet pass per timestep for all terms.

        Images larger than the model's resolution are measured in tiles, `tiles_per_pass` at a time, which are blended.

        Yields:
            `(name, map)` in the order of `calibration.term_map_names`, each map `(batch, height, width)`.
        """
        if tuple(images.shape[-2:]) == self.image_size:
            maps = self._raw_maps(images, categories, terms)
        else:
            maps = self._blended_maps(images, categories, terms, tiles_per_pass)
        for name, partial in maps:
            yield name, smooth_map(partial, self.calibration.config.smoothing_sigma)

    def _blended_maps(
        self, images: torch.Tensor, categories: torch.Tensor | None, terms: Sequence[str], tiles_per_pass: int
    ) -> Iterator[tuple[str, torch.Tensor]]:
        size, tile = tuple(images.shape[-2:]), self.image_size
        corners = tile_corners(size, tile, self.calibration.config.tile_overlap)
        weights = blend_weights(size, corners, tile).to(images)
        blended: dict[str, torch.Tensor] = {}
        for i, image in enumerate(images):
            for start in range(0, len(corners), tiles_per_pass):
                part = slice(start, start + tiles_per_pass)
                tiles = cut(image[None], corners[part], tile)
                labels = None if categories is None else categories[i].expand(len(tiles))
                for name, maps in self._raw_maps(tiles, labels, terms):
                    canvas = blended.setdefault(name, images.new_zeros((len(images), *size)))[i]
                    add_tiles(canvas, maps, weights[part], corners[part])
        yield from blended.items()

    def _raw_maps(
        self, images: torch.Tensor, categories: torch.Tensor | None, terms: Sequence[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Term maps of images at the model's resolution, not smoothed."""
        size = tuple(images.shape[-2:])
        features = self.feature_extractor(images) if set(terms) & {"feature", "residual", "mahalanobis"} else None
        predictions = []
        for t, noisy, step, output in self._unet_passes(images, categories) if set(terms) - {"mahalanobis"} else ():
            x0_predicted, v = self._clean_image_and_variance(noisy, output.sample, step)
            predictions.append(output.features.float())  # (B, D, h, w)
            if "kl" in terms:
                yield f"kl@{t}", score_terms.kl_map(images, x0_predicted, v, step)
            if "rgb" in terms:
                yield f"rgb@{t}", score_terms.rgb_error_map(images, x0_predicted)
            if "feature" in terms:
                yield f"feature@{t}", resize_map(score_terms.feature_map(features, predictions[-1]), size)
        # Distances, not their squares, whose heavy tail would drown the other terms.
        if "residual" in terms:
            residual = score_terms.feature_residual(features, predictions)
            yield "residual", resize_map(self.residual_gaussian(residual, categories).sqrt(), size)
        if "mahalanobis" in terms:
            yield "mahalanobis", resize_map(self.gaussian(features, categories).sqrt(), size)

    def feature_residuals(self, images: torch.Tensor, categories: torch.Tensor | None = None) -> torch.Tensor:
        """What `residual_gaussian` is fitted on: `(batch, D, h, w)` for images `(batch, 3, height, width)` in [-1, 1]."""
        predictions = [output.features.float() for _, _, _, output in self._unet_passes(images, categories)]
        return score_terms.feature_residual(self.feature_extractor(images), predictions)

    def _unet_passes(
        self, images: torch.Tensor, categories: torch.Tensor | None
    ) -> Iterator[tuple[int, torch.Tensor, ChainStep, JointUNet2DOutput]]:
        """Timestep, noisy image, reverse step and the UNet's output, once for every timestep of the recipe."""
        recipe = self.calibration.config
        self.scheduler.set_timesteps(recipe.num_inference_steps or self.scheduler.config.num_train_timesteps)
        for t in recipe.timesteps:
            noise = timestep_noise(images.shape[1:], t, recipe.seed).to(images)
            step = chain_step(self.scheduler, torch.tensor([t])).to(images)
            noisy = add_noise(images, noise, step)
            yield t, noisy, step, self.unet(noisy.to(self.unet.dtype), t, categories)

    def _clean_image_and_variance(
        self, noisy: torch.Tensor, sample: torch.Tensor, step: ChainStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the UNet's `sample` says of x_0, and its variance channels, `(B, 3, H, W)` each."""
        prediction, v = sample.float().chunk(2, dim=1)
        return predict_x0(noisy, prediction, step, self.scheduler.config.prediction_type), clamp_to_range(v)

    def check_inputs(self, images: list, batch_size: int) -> None:
        """Refuses wrong arguments before work starts."""
        if not images:
            raise ValueError("no images given")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not self.calibration.is_fitted:
            raise ValueError("the pipeline is not calibrated: call pipe.calibrate(normal_images) first")

    def _classes_and_rates(
        self, images: list, categories: Categories | None, false_alarm_rate: float | None, batch_size: int
    ) -> tuple[list[int] | None, np.ndarray]:
        """Category indices and `(N,)` false-alarm rates; what can't be used is refused before anything is measured."""
        indices = self.category_indices(categories, len(images))
        if indices is None and self.discriminant is not None:
            if false_alarm_rate is not None:
                self.calibration.supported_rates(false_alarm_rate)
            indices = self._recognize(images, batch_size)
        labels = _class_or_0(indices, len(images))
        rates = self.calibration.supported_rates(false_alarm_rate, labels)
        return indices, np.array([rates[label] for label in labels])

    def category_indices(self, categories: Categories | None, count: int) -> list[int] | None:
        """The category index of each of `count` images from what the caller gave; None if that is None.

        Raises:
            ValueError: if a category does not exist, or their number is wrong.
        """
        if categories is None:
            return None
        if self.discriminant is None:
            raise ValueError("categories given, but this model was trained without classes")
        given = [categories] * count if isinstance(categories, str | int) else list(categories)
        if len(given) != count:
            raise ValueError(f"{len(given)} class labels for {count} images: give one per image, or one name for all")
        known = {name_or_index: i for i, name in enumerate(self.category_names) for name_or_index in (name, i)}
        unknown = [label for label in given if label not in known]
        if unknown:
            raise ValueError(
                f"class label {unknown[0]!r} is none of {', '.join(self.category_names)} (or 0..{len(self.category_names) - 1})"
            )
        return [known[label] for label in given]

    def _recognize(self, images: list[ImageInput], batch_size: int) -> list[int]:
        """The category index of every image; of one that is scored in tiles, by the mean of its tiles."""
        indices = []
        for batch, _, _ in self._batches(images, None, batch_size):
            tiles, count = batch, len(batch)
            if tuple(batch.shape[-2:]) != self.image_size:
                corners = tile_corners(tuple(batch.shape[-2:]), self.image_size, self.calibration.config.tile_overlap)
                tiles = cut(batch, corners, self.image_size)
            scores = torch.cat([self.discriminant(self.feature_extractor(part)) for part in tiles.split(batch_size)])
            indices += scores.view(count, -1, scores.shape[1]).mean(dim=1).argmax(dim=1).tolist()
        return indices

    def _thresholds(self, rates: np.ndarray, categories: list[int] | None) -> np.ndarray:
        """`(2, N)`: the image and the pixel threshold for each image, those of its category at its rate."""
        labelled = list(zip(rates.tolist(), _class_or_0(categories, len(rates)), strict=True))
        of_class = {
            key: (self.calibration.image_threshold(*key), self.calibration.pixel_threshold(*key)) for key in set(labelled)
        }
        return np.array([of_class[key] for key in labelled]).T

    def _batches(
        self, images: list[ImageInput], categories: list[int] | None, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, list[Image.Image]]]:
        """Preprocessed batches on the device, their labels and the images as they came, in RGB.

        Images that are scored in tiles come one by one, because their sizes differ and each has a batch of tiles.
        """
        device = self._execution_device
        batch_size = batch_size if self.calibration.config.short_side is None else 1
        for start in range(0, len(images), batch_size):
            stop = min(start + batch_size, len(images))
            loaded = [load_rgb(images[i], f"image {i}") for i in range(start, stop)]
            pixels = np.stack([resize_rgb(image, self._scored_size(image.height, image.width)) for image in loaded])
            labels = None if categories is None else torch.tensor(categories[start:stop], device=device)
            yield to_model_range(torch.from_numpy(pixels).to(device)), labels, loaded

    def _standardized_maps(
        self, images: torch.Tensor, categories: torch.Tensor | None, terms: Sequence[str], tiles_per_pass: int = 8
    ) -> dict[str, torch.Tensor]:
        maps = self.term_maps(images, categories, terms, tiles_per_pass)
        return {name: self.calibration.standardize(name, raw, categories) for name, raw in maps}

    def _scored_size(self, height: int, width: int) -> tuple[int, int]:
        short_side = self.calibration.config.short_side
        return self.image_size if short_side is None else working_size((height, width), short_side)

    def _region(self, roi: str | Path | Image.Image | np.ndarray) -> torch.Tensor:
        region = torch.from_numpy(load_region(roi)).float()
        region = resize_map(region[None], self._scored_size(*region.shape))[0] >= 0.5
        if not region.any():
            raise ValueError("roi: the region of interest is too small for the resolution at which images are scored")
        return region

    def _check_tiles(self, calibration: Calibration) -> None:
        short_side = calibration.config.short_side
        if short_side is None:
            return
        if short_side < max(self.image_size):
            raise ValueError(f"short_side must be at least the model's resolution {max(self.image_size)}, got {short_side}")
        if self.gaussian.config.grid is not None:
            raise ValueError("short_side needs one Gaussian for all positions, which tiles share: train with shared_gaussian")

    def _mahalanobis_loss(self, context: RepairContext, images: torch.Tensor) -> torch.Tensor:
        """Eq. 12 of images `(B, 3, H, W)`, `(B,)`: of those that are scored in tiles, the mean over their tiles."""
        corners = tile_corners(tuple(images.shape[-2:]), context.size, self.calibration.config.tile_overlap)
        index = torch.arange(len(images), device=images.device).repeat_interleave(len(corners))
        loss = mahalanobis_loss(context.select(index).distance(cut(images, corners, context.size)))
        return loss.view(len(images), -1).mean(dim=1)

    def _reconstruction_models(
        self,
        categories: torch.Tensor | None,
        image_threshold: torch.Tensor,
        pixel_threshold: torch.Tensor,
        seed: int,
        batch_size: int,
    ) -> RepairContext:
        """The pipeline's parts as the functions that methods of repair work with.

        Networks get at most `batch_size` images, or windows of them, at a time.
        """
        terms = tuple(self.calibration.config.weights)
        full_chain = self.scheduler.config.num_train_timesteps

        def step_of(t: int, chain_length: int, like: torch.Tensor) -> ChainStep:
            self.scheduler.set_timesteps(chain_length)
            return chain_step(self.scheduler, torch.tensor([t])).to(like)

        def noised(images: torch.Tensor, t: int) -> torch.Tensor:
            return add_noise(images, timestep_noise(images.shape[1:], t, seed).to(images), step_of(t, full_chain, images))

        def in_parts(network: Callable, images: torch.Tensor) -> torch.Tensor:
            parts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
            labels = [None if categories is None else categories[part] for part in parts]
            return torch.cat([network(images[part], of_part) for part, of_part in zip(parts, labels, strict=True)])

        def denoised(xt: torch.Tensor, t: int, step: ChainStep) -> tuple[torch.Tensor, torch.Tensor]:
            sample = in_parts(lambda part, labels: self.unet(part, t, labels).sample, xt.to(self.unet.dtype))
            return self._clean_image_and_variance(xt, sample, step)

        def distance(images: torch.Tensor) -> torch.Tensor:
            return in_parts(lambda part, labels: self.gaussian(self.feature_extractor(part), labels), images)

        def reverse_step(xt: torch.Tensor, t: int, chain_length: int, draw: int | None) -> torch.Tensor:
            step = step_of(t, chain_length, xt)
            x0, v = denoised(xt, t, step)
            mean = posterior_mean(x0, xt, step)
            if draw is None:
                return mean
            noise = timestep_noise(xt.shape[1:], full_chain + draw, seed).to(xt)
            return mean + torch.exp(0.5 * model_log_variance(v, step)) * noise

        def chain_timesteps(length: int) -> list[int]:
            self.scheduler.set_timesteps(length)
            return self.scheduler.timesteps.tolist()

        def select(index: torch.Tensor) -> RepairContext:
            labels = None if categories is None else categories[index]
            return self._reconstruction_models(labels, image_threshold[index], pixel_threshold[index], seed, batch_size)

        def anomaly_map(images: torch.Tensor) -> torch.Tensor:
            return self.calibration.combine(self._standardized_maps(images, categories, terms, batch_size))

        return RepairContext(
            size=self.image_size,
            # The feature head has a grid of its own.
            stride=math.lcm(self.unet.stride, self.unet.config.feature_stride),
            select=select,
            distance=distance,
            add_noise=noised,
            predict_x0=lambda xt, t: denoised(xt, t, step_of(t, full_chain, xt))[0],
            reverse_step=reverse_step,
            chain_timesteps=chain_timesteps,
            anomaly_map=anomaly_map,
            image_score=self.calibration.image_scores,
            image_threshold=image_threshold,
            pixel_threshold=pixel_threshold,
        )

    def _measure(self, images: list, categories, batch_size: int, file: BinaryIO) -> list[np.ndarray]:
        """Raw term maps `(partials, H, W)` of every image, memory-mapped from an empty file."""
        shapes = []
        with self.progress_bar(total=len(images)) as progress:
            for batch, labels, _ in self._batches(images, categories, batch_size):
                maps = [partial for _, partial in self.term_maps(batch, labels, tiles_per_pass=batch_size)]
                for image_maps in torch.stack(maps, dim=1).cpu().numpy():  # (B, partials, H, W)
                    file.write(image_maps.tobytes())
                    shapes.append(image_maps.shape)
                progress.update(len(batch))
        if not shapes:
            return []
        file.flush()
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        flat = np.memmap(file, dtype=np.float32, mode="r")
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


class _StepRecorder:
    """Keeps what a reconstruction passes by, and lets the caller's callback look at it and change it."""

    def __init__(
        self,
        pipe: DiffADPipeline,
        callback: Callable | None,
        wanted: Sequence[int] | Literal["all"],
        batch_start: int,
        loss: Callable[[torch.Tensor], torch.Tensor] | None,
    ):
        self.pipe, self.callback, self.wanted, self.batch_start = pipe, callback, wanted, batch_start
        self.loss = loss
        self.step = 0
        self.losses: list[np.ndarray] = []
        self.intermediates: list[list[Image.Image]] = []  # of every step, for every image

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.step += 1
        if self.callback is not None:
            answer = self.callback(self.pipe, self.step, self.batch_start, {"images": images})
            images = (answer or {}).get("images", images)
        self.measure(images)
        if self.wanted == "all" or self.step in self.wanted:
            self.intermediates.append([to_pil(image) for image in images])
        return images

    def measure(self, images: torch.Tensor) -> None:
        if self.loss is not None:
            self.losses.append(self.loss(images).cpu().numpy())


def _class_or_0(categories: list[int] | None, count: int) -> list[int]:
    return [0] * count if categories is None else categories


def _numpy_map(score_map: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    return resize_map(score_map[None], size)[0].cpu().numpy()
