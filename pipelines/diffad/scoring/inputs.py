"""What the user gives, made ready to be scored: the category of every image, and batches of preprocessed images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..imaging.maps import resize_map
from ..imaging.preprocessing import ImageInput, load_region, load_rgb, resize_rgb
from ..imaging.tensors import to_model_range
from ..models.discriminant import LinearDiscriminant
from .categories import Categories, category_indices
from .scorer import Scorer
from .tiling import scored_size


class CategoriesOfImages(NamedTuple):
    """Categories of N images.

    Args:
        indices: of the categories; None for a model of one category.
        unknown: `(N,)` bool, True for an image of a product that the model has never seen; its index is the nearest one.
    """

    indices: list[int] | None
    unknown: np.ndarray


class ImageBatch(NamedTuple):
    """Images that are scored together.

    Args:
        indices: where they stand among all images.
        pixels: `(B, 3, H, W)` in [-1, 1], on the device.
        category: that of all of them, or None for a model of one category.
        detail: `(B, 3, 2 H, 2 W)`, the same at the scorer's `detail_size`; None where it needs none.
        originals: as they came, in RGB.
    """

    indices: list[int]
    pixels: torch.Tensor
    category: int | None
    detail: torch.Tensor | None
    originals: list[Image.Image]


def select_images(batch: ImageBatch, index: torch.Tensor) -> ImageBatch:
    """Those images of a batch that an index `(N,)` names; each may occur several times."""
    chosen = index.tolist()
    return ImageBatch(
        [batch.indices[i] for i in chosen],
        batch.pixels[index],
        batch.category,
        None if batch.detail is None else batch.detail[index],
        [batch.originals[i] for i in chosen],
    )


def load_region_at(region: str | Path | Image.Image | np.ndarray, size: Callable[[int, int], tuple[int, int]]) -> torch.Tensor:
    """A region of interest, bool `(height, width)` at the size that images of its own height and width are scored at.

    Raises:
        ImageError: if it can't be used.
        ValueError: if nothing of it is left at that size.
    """
    inside = torch.from_numpy(load_region(region)).float()
    inside = resize_map(inside[None], size(*inside.shape))[0] >= 0.5
    if not inside.any():
        raise ValueError("roi: the region of interest is too small for the resolution at which images are scored")
    return inside


class InputReader:
    """Reads images as a scorer takes them.

    Args:
        scorer: says size and tiles.
        discriminant: recognises categories, of a model trained on several.
        device: of the batches.
    """

    def __init__(self, scorer: Scorer, discriminant: LinearDiscriminant | None, device: torch.device):
        self.scorer, self.discriminant, self.device = scorer, discriminant, device

    @property
    def category_names(self) -> list[str] | None:
        """Names of the categories of a model of several, in the order of their indices."""
        return None if self.discriminant is None else list(self.discriminant.config.class_names)

    def categories(self, images: Sequence[ImageInput], given: Categories | None, batch_size: int) -> CategoriesOfImages:
        """The category of every image, given or recognised.

        Raises:
            ValueError: as [`category_indices`].
        """
        indices = category_indices(given, self.category_names, len(images))
        if indices is not None or self.discriminant is None:
            return CategoriesOfImages(indices, np.zeros(len(images), dtype=bool))
        pooled = self.pooled_features(images, batch_size)
        recognised = self.discriminant.scores(pooled).argmax(dim=1).tolist()
        return CategoriesOfImages(recognised, self.discriminant.is_unknown(pooled).cpu().numpy())

    def fit_unknown(self, images: Sequence[ImageInput], batch_size: int) -> None:
        """Sets from calibration images how far from every category an unknown product lies; without effect for one category."""
        if self.discriminant is not None and self.discriminant.config.knows_distances:
            distances = self.discriminant.distances(self.pooled_features(images, batch_size))
            self.discriminant.set_limit(distances.cpu().numpy())

    def pooled_features(self, images: Sequence[ImageInput], batch_size: int) -> torch.Tensor:
        """Spatial means of the features of every image `(N, D)`; of one that is scored in tiles, of all its tiles."""
        batches = self.batches(images, None, batch_size)
        return torch.cat([self.scorer.pooled_features(batch.pixels, batch_size) for batch in batches])

    def batches(
        self,
        images: Sequence[ImageInput],
        categories: Sequence[int] | None,
        batch_size: int,
        chosen: Sequence[int] | None = None,
    ) -> Iterator[ImageBatch]:
        """Preprocessed batches of images of one category each, in the order of the categories.

        Images that are scored in tiles come one by one, because their sizes differ and each has a batch of tiles.

        Args:
            images: all of them.
            categories: category index of each of them, where there are several.
            batch_size: images per batch.
            chosen: indices of the images that are read; None is all.

        Raises:
            ImageError: if an image can't be used.
            ValueError: if the batch size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        of_category: dict[int, list[int]] = {}
        for index in range(len(images)) if chosen is None else chosen:
            of_category.setdefault(0 if categories is None else int(categories[index]), []).append(index)
        image_size, short_side = self.scorer.image_size, self.scorer.config.short_side
        step = batch_size if short_side is None else 1
        for category in sorted(of_category):
            indices = of_category[category]
            for start in range(0, len(indices), step):
                batch = indices[start : start + step]
                originals = [load_rgb(images[i], f"image {i}") for i in batch]
                sizes = [scored_size(image.height, image.width, image_size, short_side) for image in originals]
                detail_size = self.scorer.detail_size
                detail = None if detail_size is None else self._to_model_range(originals, [detail_size] * len(batch))
                of_batch = None if categories is None else category
                yield ImageBatch(batch, self._to_model_range(originals, sizes), of_batch, detail, originals)

    def _to_model_range(self, images: Sequence[Image.Image], sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        pixels = np.stack([resize_rgb(image, size) for image, size in zip(images, sizes, strict=True)])
        return to_model_range(torch.from_numpy(pixels).to(self.device))
