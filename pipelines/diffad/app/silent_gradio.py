"""gradio, kept from reporting to anyone, which it decides when it is imported, and from keeping what was inspected."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"  # an argument would be unknown before gradio 6.24

import gradio as gr

__all__ = ["gr"]
