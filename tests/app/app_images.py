"""Images of parts that users might send."""

from PIL import Image
from tiny_pipeline import smooth_images


def part(seed: int, size: tuple[int, int] = (48, 32), defective: bool = False) -> Image.Image:
    image = smooth_images(1, seed, size)[0]
    if defective:
        image.paste((255, 255, 255), (8, 8, 28, 24))
    return image
