"""The score as one module: images in the model's range to term maps, anomaly map and image score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from ..diffusion.chain import ReverseChain
from ..diffusion.denoiser import Denoiser, DenoiserOutput
from ..diffusion.noise import timestep_noise
from ..diffusion.reverse_step import add_noise
from ..imaging.maps import enlarge_and_smooth_map, resize_map, smooth_map, smooth_map_by_square_kernel
from ..imaging.tensors import cut
from . import terms as score_terms
from .calibration import Calibration
from .config import DENOISER_TERMS, DETAIL_TERMS, FEATURE_TERMS, TIMESTEP_TERMS, UNET_TERMS
from .tiling import add_tiles, blend_weights, tile_corners

TermMaps = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Score:
    """Score of a batch.

    Args:
        image_scores: `(B,)`, higher is more anomalous.
        anomaly_maps: `(B, H, W)` at the images' size.
        term_maps: standardised map `(B, H, W)` of every term that was asked for, by name (`kl@20`, ..., `mahalanobis`).
        pooled_features: `(B, D)`, spatial means of the features; None where the score looks at none of the whole image.
    """

    image_scores: torch.Tensor
    anomaly_maps: torch.Tensor
    term_maps: TermMaps
    pooled_features: torch.Tensor | None = None


class MeasuredMaps(NamedTuple):
    """Raw term maps of a batch, and its pooled features `(B, D)` where they were on the way, else None."""

    maps: TermMaps
    pooled_features: torch.Tensor | None


torch.export.register_dataclass(Score, serialized_type_name="diffad.Score")  # so that an exported scorer can be saved


class Scorer(torch.nn.Module):
    """Scores images with the parts of a pipeline, without a decision on data: the whole of it is one graph.

    Noise and constants of the reverse steps are buffers, made once. Nothing in it changes after construction, so that threads
    can share it.

    Args:
        unet, scheduler, feature_extractor, gaussian, residual_gaussian, calibration, multiscale, feature_denoiser: components
            of the pipeline; they stay where they are.
        image_size: `(height, width)`, the model's resolution: that of the images, or of tiles of them.
        device: of noise and constants.

    Raises:
        ValueError: if the scheduler is not supported, a timestep is not in its (respaced) chain, the model lacks what a further
            term needs, or the score has terms of a diffusion model that is not trained, for which `residual_gaussian` is None.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: DDPMScheduler,
        feature_extractor: torch.nn.Module,
        gaussian: torch.nn.Module,
        residual_gaussian: torch.nn.Module | None,
        calibration: Calibration,
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
        multiscale: torch.nn.Module | None = None,
        feature_denoiser: torch.nn.Module | None = None,
    ):
        super().__init__()
        config = calibration.score_config
        self.denoiser = Denoiser(unet, scheduler, config.num_inference_steps, device)
        self.denoiser.chain.check_timesteps(config.timesteps)
        if missing := sorted(set(config.scales) - set(scales_of_parts(multiscale, feature_denoiser))):
            raise ValueError(f"the score has the terms {missing}, which the model has nothing fitted for")
        if residual_gaussian is None and not set(UNET_TERMS).isdisjoint(config.terms):
            of_unet = [term for term in config.terms if term in UNET_TERMS]
            raise ValueError(f"the score has the terms {of_unet}, but the model's diffusion model is not trained")
        self.feature_extractor, self.gaussian, self.residual_gaussian = feature_extractor, gaussian, residual_gaussian
        self.multiscale, self.feature_denoiser = multiscale, feature_denoiser
        self.calibration = calibration
        self.config = config
        self.image_size = tuple(image_size)
        noise = [timestep_noise((unet.config.in_channels, *self.image_size), t, config.seed) for t in config.timesteps]
        self.register_buffer("noise", torch.stack(noise).to(device))  # (T, C, H, W)
        if feature_denoiser is not None:
            self.feature_chain, t = ReverseChain(scheduler, device=device), feature_denoiser.config.timestep
            self.feature_chain.check_timesteps((t,))
            grid = (side // feature_extractor.config.stride for side in self.image_size)
            noise = timestep_noise((feature_denoiser.channels, *grid), t, config.seed)
            self.register_buffer("feature_noise", noise.to(device))  # (C, h, w)
            self.register_buffer("feature_timestep", torch.tensor([t], device=device))
        self.register_buffer("timesteps", torch.tensor(config.timesteps, device=device))  # (T,)

    @property
    def measurable_terms(self) -> tuple[str, ...]:
        """Terms that the model can measure: all, or without a trained diffusion model those of the other parts."""
        is_trained = self.residual_gaussian is not None
        return tuple(term for term in self.config.all_terms if is_trained or term not in UNET_TERMS)

    @property
    def detail_size(self) -> tuple[int, int] | None:
        """`(height, width)` of the enlarged images that the score looks at besides; None where it does not."""
        needed = not set(DETAIL_TERMS).isdisjoint(self.config.scales)
        return tuple(2 * side for side in self.image_size) if needed else None

    def forward(
        self,
        images: torch.Tensor,
        category: torch.Tensor | int | None = None,
        terms: Sequence[str] | None = None,
        tiles_per_pass: int = 8,
        detail: torch.Tensor | None = None,
    ) -> Score:
        """Scores a batch.

        Args:
            images: `(B, 3, H, W)` in [-1, 1].
            category: of a model of several categories one for all images, or integers `(B,)` or `(1,)`.
            terms: whose maps are returned; at least those that the score weighs, which are the default.
            tiles_per_pass: of images larger than the model's resolution.
            detail: `(B, 3, 2 H, 2 W)`, the images at `detail_size`, where the score has terms that look at them; None enlarges
                `images`, which hold less.
        """
        measured = self.config.terms if terms is None else terms
        raw, pooled = self.measure(images, category, measured, tiles_per_pass, detail)
        anomaly_maps = self.calibration.anomaly_maps(raw, category)  # (B, H, W)
        image_scores = self.calibration.scores(raw, anomaly_maps, category)
        return Score(image_scores, anomaly_maps, self.calibration.standardize(raw, category), pooled)

    def raw_term_maps(
        self,
        images: torch.Tensor,
        category: torch.Tensor | int | None = None,
        terms: Sequence[str] | None = None,
        tiles_per_pass: int = 8,
        detail: torch.Tensor | None = None,
    ) -> TermMaps:
        """Terms at every timestep, smoothed, not standardised, `(B, H, W)` each: one UNet pass per timestep for all terms.

        Images larger than the model's resolution are measured in tiles, which are blended. `terms` None is all that
        the model can measure.
        """
        return self.measure(images, category, terms, tiles_per_pass, detail).maps

    def measure(
        self,
        images: torch.Tensor,
        category: torch.Tensor | int | None = None,
        terms: Sequence[str] | None = None,
        tiles_per_pass: int = 8,
        detail: torch.Tensor | None = None,
    ) -> MeasuredMaps:
        """[`Scorer.raw_term_maps`] with the pooled features that they come from, at no further cost."""
        terms = self.measurable_terms if terms is None else terms
        size = tuple(images.shape[-2:])
        if size == self.image_size:
            maps, pooled = self._term_maps(images, category, terms, detail)
        else:
            maps, pooled = self._blended_term_maps(images, category, terms, tiles_per_pass)
        return MeasuredMaps({name: self._smoothed(term_map, size) for name, term_map in maps.items()}, pooled)

    def pooled_features(self, images: torch.Tensor, tiles_per_pass: int = 8) -> torch.Tensor:
        """Spatial means `(B, D)` of the features of images `(B, 3, H, W)`; of one that is scored in tiles, of all its tiles."""
        corners = tile_corners(tuple(images.shape[-2:]), self.image_size, self.config.tile_overlap)  # one of a whole image
        parts = cut(images, corners, self.image_size).split(tiles_per_pass)
        means = torch.cat([self.feature_extractor(part).mean(dim=(2, 3)) for part in parts])  # (B tiles, D)
        return means.unflatten(0, (len(images), -1)).mean(dim=1)

    def _smoothed(self, term_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if self.config.fusion != "tails":  # models that diffad 0.1 trained keep their scores to the last digit
            return smooth_map_by_square_kernel(resize_map(term_map, size), self.config.smoothing_sigma)
        if tuple(term_map.shape[-2:]) == size:
            return smooth_map(term_map, self.config.smoothing_sigma)
        return enlarge_and_smooth_map(term_map, size, self.config.smoothing_sigma)

    def feature_residuals(self, images: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """What `residual_gaussian` is fitted on: `(B, D, h, w)` of images `(B, 3, H, W)` at the model's resolution."""
        predicted = [self._predict(images, category, i).features for i in range(len(self.config.timesteps))]
        return score_terms.feature_residual(self.feature_extractor(images), predicted)

    def denoising_residuals(
        self, features: torch.Tensor, images: torch.Tensor, category: torch.Tensor | int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the feature denoiser gets wrong in standardised features, `(B, D, h, w)`, and in the images' thumbnails."""
        clean = self.feature_denoiser.clean(features, images)
        noisy = add_noise(clean, self.feature_noise, self.feature_chain.step(self.feature_timestep))
        predicted = self.feature_denoiser(noisy, self.feature_timestep, category)
        return self.feature_denoiser.split(score_terms.feature_residual(clean, [predicted]))

    def measure_tiles(
        self,
        images: torch.Tensor,
        category: torch.Tensor | int | None,
        terms: Sequence[str],
        detail: torch.Tensor | None = None,
    ) -> MeasuredMaps:
        """Raw term maps `(B, H, W)` of images at the model's size, or of tiles, not smoothed, and their pooled features."""
        maps, pooled = self._term_maps(images, category, terms, detail)
        return MeasuredMaps({name: resize_map(term_map, tuple(images.shape[-2:])) for name, term_map in maps.items()}, pooled)

    def _term_maps(
        self,
        images: torch.Tensor,
        category: torch.Tensor | int | None,
        terms: Sequence[str],
        detail: torch.Tensor | None = None,
    ) -> MeasuredMaps:
        """The same at the resolutions at which they are measured: of the images, or of the grid of features."""
        maps: TermMaps = {}
        squared: TermMaps = {}  # distances to good parts
        pooled = None
        if not FEATURE_TERMS.isdisjoint(terms):
            pyramid = self.feature_extractor.pyramid(images)
            features = self.feature_extractor.standardize(pyramid.fine)  # (B, D, h, w)
            pooled = features.mean(dim=(2, 3))  # (B, D)
        predicted_features = []
        for i, t in enumerate(self.config.timesteps if not {*TIMESTEP_TERMS, "residual"}.isdisjoint(terms) else ()):
            prediction = self._predict(images, category, i)
            predicted_features.append(prediction.features)  # (B, D, h, w)
            if "kl" in terms:
                maps[f"kl@{t}"] = score_terms.pixel_score(
                    self.denoiser.kl_divergence(images, prediction, self.timesteps[i : i + 1])
                )
            if "rgb" in terms:
                maps[f"rgb@{t}"] = score_terms.rgb_error(images, prediction.x0)
            if "feature" in terms:
                maps[f"feature@{t}"] = score_terms.feature_error(features, prediction.features)
        if "residual" in terms:
            residual = score_terms.feature_residual(features, predicted_features)
            squared["residual"] = self.residual_gaussian(residual, category)
        if "mahalanobis" in terms:
            squared["mahalanobis"] = self.gaussian(features, category)
        if "coarse" in terms:
            squared["coarse"] = self.multiscale("coarse", pyramid.coarse, category)
        if not set(DETAIL_TERMS).isdisjoint(terms):
            grid = tuple(side // self.feature_extractor.config.stride for side in images.shape[-2:])
            enlarged = self.feature_extractor.pyramid(self._enlarged(images) if detail is None else detail, grid)
            for name, values in (("detail", enlarged.fine), ("coarse_detail", enlarged.coarse), ("neighbors", enlarged.fine)):
                if name in terms:
                    squared[name] = self.multiscale(name, values, category)
        if not set(DENOISER_TERMS).isdisjoint(terms):
            of_features, of_pixels = self.denoising_residuals(features, images, category)
            if "feature_residual" in terms:
                squared["feature_residual"] = self.feature_denoiser.gaussian(of_features, category)
            if "pixel_residual" in terms:
                squared["pixel_residual"] = self.feature_denoiser.pixel_gaussian(of_pixels, category)
        maps |= {name: score_terms.mahalanobis_distance(distance) for name, distance in squared.items()}
        return MeasuredMaps(maps, pooled)

    def _enlarged(self, images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(images, size=self.detail_size, mode="bilinear", align_corners=False)

    def _predict(self, images: torch.Tensor, category: torch.Tensor | int | None, index: int) -> DenoiserOutput:
        """What the UNet says of the images noised to the timestep of that index."""
        timestep = self.timesteps[index : index + 1]
        return self.denoiser(self.denoiser.add_noise(images, self.noise[index], timestep), timestep, category)

    def _blended_term_maps(
        self, images: torch.Tensor, category: torch.Tensor | int | None, terms: Sequence[str], tiles_per_pass: int
    ) -> MeasuredMaps:
        size, tile = tuple(images.shape[-2:]), self.image_size
        corners = tile_corners(size, tile, self.config.tile_overlap)
        weights = torch.from_numpy(blend_weights(size, corners, tile)).to(images)
        blended: TermMaps = {}
        pooled = []
        for i, image in enumerate(images):
            of_image = category[i : i + 1] if isinstance(category, torch.Tensor) and category.shape[0] > 1 else category
            of_tiles = []
            for start in range(0, len(corners), tiles_per_pass):
                part = slice(start, start + tiles_per_pass)
                tiles = cut(image[None], corners[part], tile)  # (tiles, 3, *tile)
                maps, pooled_of_part = self.measure_tiles(tiles, of_image, terms)
                of_tiles.append(pooled_of_part)
                for name, of_part in maps.items():
                    canvas = blended.setdefault(name, images.new_zeros((len(images), *size)))[i]
                    add_tiles(canvas, of_part, weights[part], corners[part])
            pooled.append(None if of_tiles[0] is None else torch.cat(of_tiles).mean(dim=0))
        return MeasuredMaps(blended, None if pooled[0] is None else torch.stack(pooled))


def scales_of_parts(multiscale: torch.nn.Module | None, feature_denoiser: torch.nn.Module | None) -> tuple[str, ...]:
    """Further terms that a model with these parts can measure."""
    of_multiscale = () if multiscale is None else tuple(multiscale.config.scales)
    return of_multiscale if feature_denoiser is None else (*of_multiscale, *DENOISER_TERMS)
