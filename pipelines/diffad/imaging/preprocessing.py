"""Images in, tensors out: every accepted input type takes the same road, so that it gets the same score."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from .decoding import ImageError
from .masks import read_region
from .reading import read_image, to_rgb, warn_of_unused_range


@runtime_checkable
class TensorLike(Protocol):
    """A torch tensor, known by what it can do, so that torch is not imported where there is none."""

    def detach(self) -> "TensorLike": ...

    def movedim(self, source: int, destination: int) -> "TensorLike": ...


ImageInput = str | Path | Image.Image | np.ndarray | TensorLike | Callable[[], Image.Image]
CHANNELS_FIRST = "channels come last in numpy arrays: array.transpose(1, 2, 0); give grey images as a list"


def as_image_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """One image, a batch array or a sequence of images, as a list of single images.

    Raises:
        ImageError: for a numpy array `(3|4, H, W)`, which can be an image with its channels first or a batch of grey ones.
        TypeError: for anything else that is neither.
    """
    if isinstance(images, (str, Path, Image.Image)) or callable(images):
        return [images]
    if isinstance(images, TensorLike):
        return list(images) if images.ndim > 3 else [images]
    if isinstance(images, np.ndarray):
        if images.ndim < 3 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4)):
            return [images]
        if images.ndim == 3 and images.shape[0] in (3, 4):
            raise ImageError(f"image: array of shape {images.shape}; {CHANNELS_FIRST}")
        return list(images)
    if isinstance(images, Iterable):
        return list(images)
    raise TypeError(f"images must be paths, PIL images, numpy arrays or tensors, got {type(images).__name__}")


def load_rgb(image: ImageInput, name: str = "image") -> Image.Image:
    """Any accepted image as 8-bit RGB.

    Channels are red, green, blue, in this order. OpenCV reads blue, green, red: `image = image[..., ::-1]` converts.

    Args:
        image: path; PIL image of any mode; numpy `(H, W)` or `(H, W, 1|3|4)`; tensor `(1|3|4, H, W)`. Arrays are uint8; uint16,
            read as 16-bit files are; or floats in [0, 1], which are rounded to 8 bits. A function without arguments that
            returns a PIL image is called when its turn comes, so that a long list never lies in memory.
        name: how errors call it.

    Raises:
        ImageError: if it can't be read or has the wrong shape, type or range.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if callable(image):
        image = image()
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    if isinstance(image, TensorLike):
        if image.ndim != 3:
            raise ImageError(f"{name}: tensors must be (C, H, W), got {tuple(image.shape)}")
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).movedim(0, -1).numpy()  # numpy has no bfloat16
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise ImageError(f"{name}: expected a path, PIL image, numpy array or tensor, got {type(image).__name__}")
    if array.size == 0:
        raise ImageError(f"{name}: empty array of shape {tuple(image.shape)}")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        hint = f"; {CHANNELS_FIRST}" if array is image and array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name}: expected 1, 3 or 4 channels, got an array of shape {tuple(image.shape)}{hint}")
    return to_rgb(Image.fromarray(_stored_levels(array, name)), name)


def _stored_levels(array: np.ndarray, name: str) -> np.ndarray:
    """Levels as an image file holds them: 8 bits, or 16 bits of a grey image."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        if array.ndim == 2:
            return array.astype(np.uint16)
        warn_of_unused_range(int(array[..., :3].max()), name)
        return (array >> 8).astype(np.uint8)  # what PNG and TIFF files with 16 bits per colour are decoded to
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"{name}: arrays must be uint8, uint16 or float in [0, 1], got {array.dtype}")
    if not (array.min() >= 0 and array.max() <= 1):
        raise ImageError(f"{name}: float values must lie in [0, 1], got {array.min()}..{array.max()}")
    return np.round(array * 255.0).astype(np.uint8)


def load_region(region: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A mask as `(H, W)` bool: from a file or image, of which the brighter half of grey levels is inside, or a bool array.

    Raises:
        ImageError: if it can't be read, has the wrong shape or type, or nothing is inside.
    """
    inside = read_region(region) if isinstance(region, (str, Path, Image.Image)) else np.asarray(region)
    if inside.dtype != bool or inside.ndim != 2:
        raise ImageError(f"region: arrays must be bool of shape (H, W), got {inside.dtype} of shape {inside.shape}")
    if not inside.any():
        raise ImageError("region: no pixel is inside; white marks the inside")
    return inside


def resize_rgb(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """`(3, height, width)` uint8 at the model's resolution: bilinear with antialiasing."""
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)
