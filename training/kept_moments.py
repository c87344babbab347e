"""What `diffad update` needs of the images that a model was fitted to: `moments.safetensors` beside the model.

Only there: neither an exported model nor a repository on the Hub carries it, and scoring never reads it. For every Gaussian
and category it holds count, mean and the lower triangle of the scatter matrix in float64, in the space that the Gaussian is of.
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from diffad.data import DataError, Sample
from diffad.models.moments import StreamingMoments
from diffad.pipeline_saving import MOMENTS
from diffad.system.file_digest import file_digest
from diffad_training.accumulation import Moments
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

POOLED, CATEGORIES = "pooled.features", "pooled.categories"
FITTED, HELD_OUT = "images.fitted", "images.held_out"


class KeptMoments:
    """Tensors by name, as the file has them.

    `TERM.CATEGORY.count` `(1,)`, `.mean` `(P, D)` and `.scatter` `(P, D (D + 1) / 2)` of every Gaussian; of a model of several
    categories the spatial means `(N, D)` of all features and their categories `(N,)`, which the discriminant is fitted to;
    SHA-256 `(N, 32)` of the images that the Gaussians were fitted to, and of those held out.
    """

    def __init__(self, tensors: dict[str, torch.Tensor] | None = None):
        self.tensors = {} if tensors is None else tensors

    def add(self, category: int, moments: Moments) -> None:
        """Takes the moments of one category's images, in place of former ones."""
        for term, of_term in moments.items():
            name = f"{term}.{category}"
            self.tensors[f"{name}.count"] = torch.tensor([of_term.count])
            self.tensors[f"{name}.mean"] = of_term.mean.cpu()
            self.tensors[f"{name}.scatter"] = of_term.lower_triangle.cpu()

    def moments(self, term: str, category: int) -> StreamingMoments:
        """Those of one Gaussian."""
        count, mean, scatter = (self.tensors[f"{term}.{category}.{part}"] for part in ("count", "mean", "scatter"))
        return StreamingMoments.of(int(count), mean, scatter)

    @property
    def terms(self) -> set[str]:
        """Terms of the Gaussians."""
        return {name.partition(".")[0] for name in self.tensors if name.endswith(".scatter")}

    def keep_only(self, terms: Collection[str]) -> None:
        """Drops the moments of Gaussians that a model does not have in the end."""
        for term in self.terms - set(terms):
            for name in [name for name in self.tensors if name.startswith(f"{term}.")]:
                del self.tensors[name]

    def add_pooled(self, features: np.ndarray, categories: np.ndarray) -> None:
        """Takes spatial means of features `(N, D)` and their categories `(N,)`, behind former ones."""
        for name, values in ((POOLED, features), (CATEGORIES, categories.astype(np.int64))):
            former = [self.tensors[name]] if name in self.tensors else []
            self.tensors[name] = torch.cat([*former, torch.from_numpy(values)])

    @property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """What was taken by [`~KeptMoments.add_pooled`]."""
        return self.tensors[POOLED].numpy(), self.tensors[CATEGORIES].numpy()

    def add_images(self, fitted: Sequence[str], held_out: Sequence[str]) -> None:
        """Takes digests of images, behind former ones."""
        for name, digests in ((FITTED, fitted), (HELD_OUT, held_out)):
            joined = [*self._digests(name), *digests]
            rows = np.frombuffer(b"".join(map(bytes.fromhex, joined)), dtype=np.uint8).reshape(-1, 32)
            self.tensors[name] = torch.from_numpy(rows.copy())

    @property
    def fitted(self) -> set[str]:
        """Digests of the images that the Gaussians were fitted to."""
        return set(self._digests(FITTED))

    @property
    def held_out(self) -> set[str]:
        """Digests of the images that were held out."""
        return set(self._digests(HELD_OUT))

    def _digests(self, name: str) -> list[str]:
        return [bytes(row).hex() for row in self.tensors[name].numpy()] if name in self.tensors else []

    def save(self, folder: Path) -> None:
        """Writes the file."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / MOMENTS)

    @classmethod
    def load(cls, model: Path) -> "KeptMoments":
        """Reads the file beside a model.

        Raises:
            DataError: if there is none, or it is damaged.
        """
        path = model / MOMENTS
        if not path.is_file():
            raise DataError(
                f"{path}: no such file. Training leaves it out with --moments false and for several categories or long images; "
                "earlier releases did not write it, and copies of a model by push, export or save_pretrained don't have it. "
                "training/refit.py --moments true writes it from the training images"
            )
        try:
            return cls(load_file(path))
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: damaged ({error}); copy it anew, or write it with training/refit.py") from None


def fitted_images(model: Path) -> set[str]:
    """Digests of the images that a model was fitted to, read alone; none where it has no moments."""
    path = model / MOMENTS
    if not path.is_file():
        return set()
    try:
        with safe_open(path, framework="pt") as file:
            return KeptMoments({FITTED: file.get_tensor(FITTED)}).fitted
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); copy it anew, or remove it") from None


def image_digests(samples: Sequence[Sample]) -> list[str]:
    """SHA-256 of the bytes of every image file, as operators' feedback has it; of an image without a file, of its pixels."""
    return [image_digest(sample) for sample in samples]


def image_digest(sample: Sample) -> str:
    path = image_file(sample)
    if path is not None:
        return file_digest(path)
    image = sample.read()
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def image_file(sample: Sample) -> Path | None:
    """The file that a sample is read from, where it is one."""
    path = getattr(sample.read, "args", [None])[0]
    return path if isinstance(path, Path) else None
