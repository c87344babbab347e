"""What methods of repair may ask, answered by the parts of a pipeline."""

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler

from ..diffusion.denoiser import Denoiser
from ..diffusion.noise import timestep_noise
from ..imaging.blending import carry_over
from ..models.reference_images import ReferenceImages
from ..scoring.inputs import ImageBatch, select_images
from ..scoring.scorer import Scorer
from .context import RepairContext


class ContextBuilder:
    """Makes the context of each batch for one run of repair.

    Args:
        scorer: of the pipeline.
        scheduler: of the pipeline; says the full chain and respaced ones.
        stride: pixels by which the sides of what the UNet takes are divisible.
        seed: of all noise.
        batch_size: images, or windows of them, that networks get at a time, at most.
        device: of the images.
        references: of the pipeline.
    """

    def __init__(
        self,
        scorer: Scorer,
        scheduler: DDPMScheduler,
        stride: int,
        seed: int,
        batch_size: int,
        device: torch.device,
        references: ReferenceImages | None = None,
    ):
        self.scorer, self.scheduler, self.stride = scorer, scheduler, stride
        self.seed, self.batch_size, self.device, self.references = seed, batch_size, device, references
        self._denoisers: dict[int | None, Denoiser] = {}
        self._references: dict[int | None, torch.Tensor] = {}

    def denoiser(self, num_inference_steps: int | None = None) -> Denoiser:
        """Along a respaced chain, or the full one; made when it is first asked for."""
        if num_inference_steps not in self._denoisers:
            unet = self.scorer.denoiser.unet
            self._denoisers[num_inference_steps] = Denoiser(unet, self.scheduler, num_inference_steps, self.device)
        return self._denoisers[num_inference_steps]

    def references_of(self, category: int | None) -> torch.Tensor | None:
        """`(R, 3, height, width)`, a category's images of good parts, made floats when they are first asked for."""
        if self.references is None:
            return None
        if category not in self._references:
            self._references[category] = self.references.of_category(category)
        return self._references[category]

    def noise(self, like: torch.Tensor, number: int) -> torch.Tensor:
        """The one noise image that seed, number and the size of images `(B, C, H, W)` determine, `(C, H, W)`."""
        return timestep_noise(tuple(like.shape[1:]), number, self.seed).to(like)

    def context(self, batch: ImageBatch, image_threshold: torch.Tensor, pixel_threshold: torch.Tensor) -> RepairContext:
        """The context of a batch of B images.

        Args:
            image_threshold, pixel_threshold: `(B,)`.
        """
        category = batch.category
        full_length = self.scheduler.config.num_train_timesteps

        def in_parts(network: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
            parts = zip(*(tensor.split(self.batch_size) for tensor in tensors), strict=True)
            return torch.cat([network(*part) for part in parts])

        def timestep(t: int) -> torch.Tensor:
            return torch.tensor([t], device=self.device)

        def reverse_step(xt: torch.Tensor, t: int, length: int | None, noise: torch.Tensor | None) -> torch.Tensor:
            def step(part: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
                return self.denoiser(length).reverse_step(part, timestep(t), category, noise)

            return in_parts(step, xt) if noise is None else in_parts(step, xt, noise)

        def select(index: torch.Tensor) -> RepairContext:
            return self.context(select_images(batch, index), image_threshold[index], pixel_threshold[index])

        def score(images: torch.Tensor, replaced: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            detail = batch.detail
            if detail is not None and replaced.any():
                levels = carry_over((detail + 1) * 127.5, batch.pixels, images, replaced)
                detail = torch.where(replaced.flatten(1).any(dim=1)[:, None, None, None], levels / 127.5 - 1, detail)
            scored = self.scorer(images, category, tiles_per_pass=self.batch_size, detail=detail)
            return scored.anomaly_maps, scored.image_scores

        return RepairContext(
            size=self.scorer.image_size,
            stride=self.stride,
            select=select,
            distance=lambda images: in_parts(
                lambda part: self.scorer.gaussian(self.scorer.feature_extractor(part), category), images
            ),
            add_noise=lambda images, t: self.denoiser().add_noise(images, self.noise(images, t), timestep(t)),
            predict_x0=lambda xt, t: in_parts(lambda part: self.denoiser()(part, timestep(t), category).x0, xt),
            draw_noise=lambda images, draw: self.noise(images, full_length + draw).expand_as(images),
            reverse_step=reverse_step,
            betas=self.scheduler.betas.double().cpu(),
            chain_timesteps=lambda length: list(self.denoiser(length).chain.timesteps),
            score=score,
            image_threshold=image_threshold,
            pixel_threshold=pixel_threshold,
            references=self.references_of(category),
            parts_turn=self.references is not None and self.references.config.turns,
        )
