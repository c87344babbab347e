"""gradio, kept from reporting to anyone, which it decides when it is imported."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

__all__ = ["gr"]
