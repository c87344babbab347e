"""What a method of repair may ask of a model, answered without networks: dark is defective, and nothing is ever noised."""

from collections.abc import Callable

import torch
from diffad.repair.context import Distance, RepairContext


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=1)


def brightness_context(
    predict_x0: Callable[[torch.Tensor, int], torch.Tensor], distance: Distance = brightness, batch: int = 1, stride: int = 1
) -> RepairContext:
    """Maps are 0 where an image is white and 1 where it is black, defective above 0.9."""

    def select(index: torch.Tensor) -> RepairContext:
        return brightness_context(predict_x0, distance, len(index), stride)

    def score(images: torch.Tensor, replaced: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = (1 - brightness(images)) / 2
        return maps, maps.amax(dim=(1, 2))

    return RepairContext(
        size=(32, 32),
        stride=stride,
        select=select,
        distance=distance,
        add_noise=lambda x, t: x,
        predict_x0=predict_x0,
        draw_noise=None,
        reverse_step=None,
        betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
        chain_timesteps=lambda num_inference_steps: list(range(999, -1, -1)),
        score=score,
        image_threshold=torch.full((batch,), 0.9),
        pixel_threshold=torch.full((batch,), 0.9),
    )
