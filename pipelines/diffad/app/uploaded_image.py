"""gradio's image input without gradio's reading of images. On its own, because gradio writes a stub file beside the source of
every subclass of a component."""

from typing import Any

from .silent_gradio import gr


class UploadedImage(gr.Image):
    """Hands over the path of the file as it came, so that it is read, or refused, as everywhere else in diffad."""

    is_template = True  # shown by gradio's own Image

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path
