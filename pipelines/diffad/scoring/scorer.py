"""The score as one module: images in the model's range to term maps, anomaly map and image score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from ..diffusion.denoiser import Denoiser, Prediction
from ..diffusion.noise import timestep_noise
from ..imaging.maps import resize_map, smooth_map
from . import terms as score_terms
from .calibration import Calibration
from .config import TERMS
from .tiling import add_tiles, blend_weights, cut, tile_corners

TermMaps = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Score:
    """Score of a batch.

    Args:
        image_scores: `(B,)`, higher is more anomalous.
        anomaly_maps: `(B, H, W)` at the images' size.
        term_maps: standardised map `(B, H, W)` of every term that was asked for, by name (`kl@20`, ..., `mahalanobis`).
    """

    image_scores: torch.Tensor
    anomaly_maps: torch.Tensor
    term_maps: TermMaps


torch.export.register_dataclass(Score, serialized_type_name="diffad.Score")  # so that an exported scorer can be saved


class Scorer(torch.nn.Module):
    """Scores images with the parts of a pipeline, without a decision on data: the whole of it is one graph.

    Noise and constants of the reverse steps are buffers, made once. Nothing in it changes after construction, so that threads
    can share it.

    Args:
        unet, scheduler, feature_extractor, gaussian, residual_gaussian, calibration: components of the pipeline; they stay
            where they are.
        image_size: `(height, width)`, the model's resolution: that of the images, or of tiles of them.
        device: of noise and constants.

    Raises:
        ValueError: if the scheduler is not supported, or a timestep is not in its (respaced) chain.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: DDPMScheduler,
        feature_extractor: torch.nn.Module,
        gaussian: torch.nn.Module,
        residual_gaussian: torch.nn.Module,
        calibration: Calibration,
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
    ):
        super().__init__()
        config = calibration.score_config
        self.denoiser = Denoiser(unet, scheduler, config.num_inference_steps, device)
        self.denoiser.chain.check_timesteps(config.timesteps)
        self.feature_extractor, self.gaussian, self.residual_gaussian = feature_extractor, gaussian, residual_gaussian
        self.calibration = calibration
        self.config = config
        self.image_size = tuple(image_size)
        noise = [timestep_noise((unet.config.in_channels, *self.image_size), t, config.seed) for t in config.timesteps]
        self.register_buffer("noise", torch.stack(noise).to(device))  # (T, C, H, W)
        self.register_buffer("timesteps", torch.tensor(config.timesteps, device=device))  # (T,)

    def forward(
        self,
        images: torch.Tensor,
        category: torch.Tensor | int | None = None,
        terms: Sequence[str] | None = None,
        tiles_per_pass: int = 8,
    ) -> Score:
        """Scores a batch.

        Args:
            images: `(B, 3, H, W)` in [-1, 1].
            category: of a model of several categories one for all images, or integers `(B,)` or `(1,)`.
            terms: whose maps are wanted; at least those that the score weighs, which are the default.
            tiles_per_pass: of images larger than the model's resolution.
        """
        raw = self.raw_term_maps(images, category, self.config.terms if terms is None else terms, tiles_per_pass)
        term_maps = self.calibration.standardize(raw, category)
        anomaly_maps = self.calibration.combine(term_maps)  # (B, H, W)
        return Score(self.calibration.image_scores(anomaly_maps), anomaly_maps, term_maps)

    def raw_term_maps(
        self,
        images: torch.Tensor,
        category: torch.Tensor | int | None = None,
        terms: Sequence[str] = TERMS,
        tiles_per_pass: int = 8,
    ) -> TermMaps:
        """Every term at every timestep, smoothed, not standardised, `(B, H, W)` each: one UNet pass per timestep for all terms.

        Images larger than the model's resolution are measured in tiles, which are blended.
        """
        if tuple(images.shape[-2:]) == self.image_size:
            maps = self._term_maps_of_whole_images(images, category, terms)
        else:
            maps = self._blended_term_maps(images, category, terms, tiles_per_pass)
        return {name: smooth_map(term_map, self.config.smoothing_sigma) for name, term_map in maps.items()}

    def feature_residuals(self, images: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """What `residual_gaussian` is fitted on: `(B, D, h, w)` of images `(B, 3, H, W)` at the model's resolution."""
        predicted = [self._predict(images, category, i).features for i in range(len(self.config.timesteps))]
        return score_terms.feature_residual(self.feature_extractor(images), predicted)

    def _term_maps_of_whole_images(
        self, images: torch.Tensor, category: torch.Tensor | int | None, terms: Sequence[str]
    ) -> TermMaps:
        size = tuple(images.shape[-2:])
        maps: TermMaps = {}
        needs_features = not {"feature", "residual", "mahalanobis"}.isdisjoint(terms)
        features = self.feature_extractor(images) if needs_features else None  # (B, D, h, w)
        predicted_features = []
        for i, t in enumerate(self.config.timesteps if set(terms) - {"mahalanobis"} else ()):
            prediction = self._predict(images, category, i)
            predicted_features.append(prediction.features)  # (B, D, h, w)
            if "kl" in terms:
                maps[f"kl@{t}"] = score_terms.pixel_score(
                    self.denoiser.kl_divergence(images, prediction, self.timesteps[i : i + 1])
                )
            if "rgb" in terms:
                maps[f"rgb@{t}"] = score_terms.rgb_error(images, prediction.x0)
            if "feature" in terms:
                maps[f"feature@{t}"] = resize_map(score_terms.feature_error(features, prediction.features), size)
        if "residual" in terms:
            residual = score_terms.feature_residual(features, predicted_features)
            maps["residual"] = self._distance_map(self.residual_gaussian, residual, category, size)
        if "mahalanobis" in terms:
            maps["mahalanobis"] = self._distance_map(self.gaussian, features, category, size)
        return maps

    def _predict(self, images: torch.Tensor, category: torch.Tensor | int | None, index: int) -> Prediction:
        """What the UNet says of the images noised to the timestep of that index."""
        timestep = self.timesteps[index : index + 1]
        return self.denoiser(self.denoiser.add_noise(images, self.noise[index], timestep), timestep, category)

    @staticmethod
    def _distance_map(
        gaussian: torch.nn.Module, vectors: torch.Tensor, category: torch.Tensor | int | None, size: tuple[int, int]
    ) -> torch.Tensor:
        return resize_map(score_terms.mahalanobis_distance(gaussian(vectors, category)), size)

    def _blended_term_maps(
        self, images: torch.Tensor, category: torch.Tensor | int | None, terms: Sequence[str], tiles_per_pass: int
    ) -> TermMaps:
        size, tile = tuple(images.shape[-2:]), self.image_size
        corners = tile_corners(size, tile, self.config.tile_overlap)
        weights = blend_weights(size, corners, tile).to(images)
        blended: TermMaps = {}
        for i, image in enumerate(images):
            of_image = category[i : i + 1] if isinstance(category, torch.Tensor) and category.shape[0] > 1 else category
            for start in range(0, len(corners), tiles_per_pass):
                part = slice(start, start + tiles_per_pass)
                tiles = cut(image[None], corners[part], tile)  # (tiles, 3, *tile)
                for name, maps in self._term_maps_of_whole_images(tiles, of_image, terms).items():
                    canvas = blended.setdefault(name, images.new_zeros((len(images), *size)))[i]
                    add_tiles(canvas, maps, weights[part], corners[part])
        return blended
