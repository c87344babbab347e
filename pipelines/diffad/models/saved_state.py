"""Components that refuse to load what is not, number for number, what was saved."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from .half_precision import store_in_half

DIGESTS = "tensors.json"  # SHA-256 of every tensor, by its name
BYTES_AT_ONCE = 1 << 26
Component = TypeVar("Component")


class ChecksSavedState:
    """Mixin before a ModelMixin: saves a digest of every tensor, and checks names, shapes, digests and values on load.

    A broken calibration would pass every part as good, and a missing weight would be drawn at random: both are refused with the
    folder's and the tensor's name. Sizes are compared with the file before memory is taken. Weights are safetensors only.
    """

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Saves the component with the digests of its tensors; arguments are those of ModelMixin.

        Tensors that float16 holds exactly take half the space; they are loaded as they were.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        for path in _weight_files(folder):
            store_in_half(path)
        digests = {name: _digest(tensor) for name, tensor in _saved_tensors(folder)}
        (folder / DIGESTS).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls: type[Component], pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Component:
        """Loads the component; arguments are those of ModelMixin.

        Raises:
            ValueError: naming the folder and what is wrong in it: settings, or a tensor that is missing, of a wrong shape, not
                as it was saved, or of impossible values.
        """
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            _check_folder(cls, folder)
        model = super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})
        try:
            (model[0] if isinstance(model, tuple) else model).check_state()
        except ValueError as error:
            raise ValueError(f"{folder}: {error}; load a sound copy, or calibrate or train anew") from None
        return model

    @classmethod
    def present_names(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Saved settings or tensors by their present names; overridden where names have changed."""
        return dict(saved)

    def check_state(self) -> None:
        """Refuses values that no fitting gives; subclasses know more than that numbers are finite.

        Raises:
            ValueError: naming the tensor.
        """
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite")


def _check_folder(cls: type, folder: Path) -> None:
    """Compares the settings and tensors of a folder with each other and with the digests, before anything is loaded."""
    settings_path = folder / cls.config_name
    try:
        # On the device of no memory: a setting may ask for more than there is.
        with torch.device("meta"):
            planned = cls.from_config(cls.load_config(folder)).state_dict()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{settings_path}: not the settings of a {cls.__name__} ({reason})") from None
    expected = {name: tuple(tensor.shape) for name, tensor in planned.items()}
    present = {name: shape for path in _weight_files(folder) for name, shape in _shapes(path)}
    present = cls.present_names(present)
    for name in sorted(expected.keys() - present.keys()):
        raise ValueError(f"{folder}: {name} is missing; load a sound copy, or calibrate or train anew")
    for name, shape in sorted(expected.items()):
        if present[name] != shape:
            raise ValueError(f"{folder}: {name} has shape {present[name]}, but {settings_path.name} says {shape}")
    digests_path = folder / DIGESTS
    if digests_path.is_file():
        _check_digests(folder, digests_path)


def _check_digests(folder: Path, path: Path) -> None:
    try:
        digests = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: damaged; load a sound copy") from None
    for name, tensor in _saved_tensors(folder):
        if digests.get(name) != _digest(tensor):
            raise ValueError(f"{folder}: {name} is not as it was saved; load a sound copy, or calibrate or train anew")


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder}: no safetensors weights; files of other formats are not read, because loading them can run code"
        )
    return files


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no dictionary)
                yield name, tuple(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}); load a sound copy") from None


def _saved_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in _weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no dictionary)
                yield name, file.get_tensor(name)


def _digest(tensor: torch.Tensor) -> str:
    data = memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""
    digest = hashlib.sha256()
    for start in range(0, len(data), BYTES_AT_ONCE):
        digest.update(data[start : start + BYTES_AT_ONCE])
    return digest.hexdigest()
