"""Tiny models and their exports, made once."""

from exported_models import of_categories, openvino, tiles, whole_images

__all__ = ["of_categories", "openvino", "tiles", "whole_images"]
