"""A page that inspects parts with a model of the Hugging Face Hub; `diffad push --space` copies this file to the Space.

It needs no installed diffad: the model's repository has the code.
"""

import gradio as gr
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from scipy.ndimage import binary_dilation

MODEL = "OWNER/NAME"
RED = (255, 60, 60)

# The owner of this Space pushed that repository, code included.
pipe = DiffusionPipeline.from_pretrained(MODEL, trust_remote_code=True)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
pipe.set_progress_bar_config(disable=True)


def inspect(image: Image.Image | None, percent: float) -> tuple[str, Image.Image | None, Image.Image | None]:
    """The verdict in words, the image with its defects outlined, and what the part should have looked like.

    Args:
        image: in RGB; None where none is given.
        percent: of good parts that may be called defective.
    """
    if image is None:
        return "", None, None
    output = pipe(image, false_alarm_rate=percent / 100)
    is_unknown = output.categories is not None and output.categories[0] is None
    label = "of an unknown product" if is_unknown else "defective" if output.is_defective[0] else "good"
    verdict = f"**{label}**: {100 * output.p_values[0]:.2g} % of good parts score at least as high."
    repaired = pipe.reconstruct(image, false_alarm_rate=percent / 100).images[0] if label == "defective" else None
    return verdict, outlined(image, output.masks[0]), repaired


def outlined(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """A copy of the image with a line around what a mask `(height, width)` marks."""
    pixels = np.array(image)
    pixels[binary_dilation(mask, iterations=2) & ~mask] = RED
    return Image.fromarray(pixels)


with gr.Blocks(title=MODEL) as page:
    gr.Markdown(f"# Inspection with [{MODEL}](https://huggingface.co/{MODEL})")
    with gr.Row():
        source = gr.Image(type="pil", image_mode="RGB", label="A part")
        marked = gr.Image(label="Defects", interactive=False)
        should_be = gr.Image(label="As it should be", interactive=False)
    rate = gr.Slider(1, 20, value=5, step=1, label="False alarms in percent of good parts")
    said = gr.Markdown()
    gr.on([source.change, rate.release], inspect, [source, rate], [said, marked, should_be])

if __name__ == "__main__":
    page.launch()
