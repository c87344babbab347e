"""Base of the components whose numbers keep float32 when a pipeline is cast to half precision."""

from typing import Any

import torch
from diffusers import ModelMixin

from ..system.autocast import without_autocast
from .saved_state import ChecksSavedState


class Float32ModelMixin(ChecksSavedState, ModelMixin):
    """ModelMixin that follows the device of its pipeline but not the dtype, neither a cast nor autocast.

    Precision matrices overflow in half precision, and reference features must not depend on the UNet's type. A subclass
    lists its top-level parameters and buffers in `_keep_in_fp32_modules`, which `from_pretrained(torch_dtype=...)` obeys.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with without_autocast(self.device.type):
            return super().__call__(*args, **kwargs)

    def _apply(self, fn, recurse: bool = True):
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
