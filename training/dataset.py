"""Decoded images and extracted features on disk, so that no training step repeats that work."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffad.data import Sample
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import cut, to_model_range
from diffad.models.feature_extractor import FeatureExtractor
from diffad.scoring.tiling import tile_corners, working_size
from diffad.system.atomic import write_text
from diffad.system.disk_space import reserve
from diffad.system.file_digest import file_digest
from filelock import FileLock
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm

MARKER = "cache.json"


class CachedDataset(Dataset):
    """Good images or tiles of them, `(3, S, S)` uint8, their raw features `(D, h, w)` float16 and their categories.

    Images and features are memory-mapped arrays: nothing but the pages in use occupies memory, however many images there are.

    Args:
        folder: that [`build_cache`] filled.

    Attributes:
        owners: `(N,)`, the sample that each entry was cut from.
        digest: of names, categories and pixels: equal where the images are, on whatever machine.
    """

    def __init__(self, folder: Path):
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.features = np.load(folder / "features.npy", mmap_mode="r")
        self.owners = np.load(folder / "owners.npy")
        self.categories = np.load(folder / "categories.npy")
        self.digest: str = json.loads((folder / MARKER).read_text(encoding="utf-8"))["images"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "images": torch.from_numpy(self.images[index].copy()),
            "features": torch.from_numpy(self.features[index].copy()),
            "categories": torch.tensor(self.categories[index]),
        }

    def entries_of(self, samples: Sequence[int]) -> list[int]:
        """Indices of the images or tiles of these samples."""
        return np.flatnonzero(np.isin(self.owners, samples)).tolist()


def build_cache(
    samples: Sequence[Sample],
    extractor: FeatureExtractor,
    image_size: tuple[int, int],
    folder: Path,
    batch_size: int = 16,
    short_side: int | None = None,
    tile_overlap: float = 0.25,
) -> None:
    """Fills `folder` for [`CachedDataset`], or keeps it when it already holds just these samples and features.

    Decoding every image here also means that a damaged one stops the run before training starts. A run that finds another one
    filling the folder waits for it.

    Raises:
        ImageError: naming an image that can't be read.
        DiskFullError: before anything is decoded, naming the file and the space that it takes.
    """
    source = _source(samples, extractor, image_size, short_side, tile_overlap)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if _source_of(folder) != source:
            (folder / MARKER).unlink(missing_ok=True)
            digest = _fill(samples, extractor, image_size, folder, batch_size, short_side, tile_overlap)
            write_text(folder / MARKER, json.dumps({"source": source, "images": digest}))


def cache_mark(folder: Path) -> int:
    """Tells what a folder holds for [`CachedDataset`], in a number that processes can compare; 0 for nothing."""
    path = folder / MARKER
    return int(file_digest(path)[:15], 16) if path.is_file() else 0


def _fill(
    samples: Sequence[Sample],
    extractor: FeatureExtractor,
    image_size: tuple[int, int],
    folder: Path,
    batch_size: int,
    short_side: int | None,
    tile_overlap: float,
) -> str:
    """Writes the arrays and returns the digest of the images."""
    tile = tuple(image_size)
    sizes = [tile] * len(samples)
    if short_side is not None:
        originals = (sample.read() for sample in tqdm(samples, desc="reading sizes", disable=None))
        sizes = [working_size((image.height, image.width), short_side) for image in originals]
    corners = [tile_corners(size, tile, tile_overlap) for size in sizes]
    owners = np.repeat(np.arange(len(samples)), [len(of_sample) for of_sample in corners])
    np.save(folder / "owners.npy", owners)
    np.save(folder / "categories.npy", np.array([sample.category for sample in samples])[owners])

    images = _new_array(folder / "images.npy", (len(owners), 3, *tile), np.uint8)
    grid = [side // extractor.config.stride for side in tile]
    features = _new_array(folder / "features.npy", (len(owners), extractor.config.channels, *grid), np.float16)
    digest = hashlib.sha256()
    for i, sample in enumerate(tqdm(samples, desc="reading images", disable=None)):
        image = torch.from_numpy(resize_rgb(sample.read(), sizes[i]).copy())
        images[owners == i] = cut(image[None], corners[i], tile).numpy()
        digest.update(f"{sample.category}:{sample.name}\n".encode(errors="surrogateescape"))
        digest.update(images[owners == i].tobytes())
    for start in tqdm(range(0, len(owners), batch_size), desc="extracting features", disable=None):
        batch = torch.from_numpy(images[start : start + batch_size]).to(extractor.device)
        with torch.inference_mode():
            features[start : start + batch_size] = extractor.raw_features(to_model_range(batch)).cpu().numpy()
    images.flush()
    features.flush()
    return digest.hexdigest()


def channel_statistics(features: np.ndarray, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation `(D,)` per channel over the chosen images of a `(N, D, h, w)` array, in float64."""
    channels = features.shape[1]
    total, total_square = np.zeros(channels), np.zeros(channels)
    for index in indices:
        values = features[index].reshape(channels, -1).astype(np.float64)
        total += values.mean(axis=1)
        total_square += np.square(values).mean(axis=1)
    mean = total / len(indices)
    variance = np.maximum(total_square / len(indices) - mean**2, 0)
    return torch.from_numpy(mean), torch.from_numpy(variance).sqrt()


def balanced_statistics(features: np.ndarray, groups: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the groups' means and spread within groups, `(D,)`; every group of images counts the same whatever its size."""
    means, stds = (torch.stack(values) for values in zip(*(channel_statistics(features, group) for group in groups)))
    return means.mean(dim=0), stds.square().mean(dim=0).sqrt()


class BalancedSampler(Sampler[int]):
    """Draws from every group equally often, a small group's images more than once; an epoch has as many draws as images.

    Every group is gone through in a random order before it is begun anew. The draws depend on seed and epoch only, so that a
    resumed run and several processes see the same.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int):
        self.groups, self.seed, self.epoch = groups, seed, 0

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**32)
        share = math.ceil(len(self) / len(self.groups))
        columns = []
        for group in self.groups:
            rounds = math.ceil(share / len(group))
            order = torch.cat([torch.randperm(len(group), generator=generator) for _ in range(rounds)])[:share]
            columns.append(torch.as_tensor(group)[order])
        # Every row holds one image of each group, in random order: batches are balanced, too.
        rows = torch.stack(columns, dim=1)
        rows = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows])
        yield from rows.flatten()[: len(self)].tolist()


def augment(images: torch.Tensor, names: Sequence[str], generator: torch.Generator | None = None) -> torch.Tensor:
    """Random flips and quarter turns of a `(B, C, S, S)` batch, drawn for each image."""

    def half(batch: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        chosen = torch.rand(len(batch), generator=generator, device=batch.device) < 0.5
        return torch.where(chosen.view(-1, 1, 1, 1), changed, batch)

    if "hflip" in names:
        images = half(images, images.flip(3))
    if "vflip" in names:
        images = half(images, images.flip(2))
    if "rot90" in names:
        # A quarter and a half turn, each by chance, give all four.
        images = half(images, images.rot90(1, (2, 3)))
        images = half(images, images.rot90(2, (2, 3)))
    return images


def _new_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A memory-mapped file whose space is taken: a full disk would otherwise kill the process on writing."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        start = file.tell()
    reserve(path, start + math.prod(shape) * np.dtype(dtype).itemsize)
    return np.load(path, mmap_mode="r+")


def _source_of(folder: Path) -> dict | None:
    """What a complete cache was made from."""
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8")).get("source")
    except (OSError, ValueError, AttributeError):  # none, or damaged
        return None


def _source(
    samples: Sequence[Sample],
    extractor: FeatureExtractor,
    image_size: tuple[int, int],
    short_side: int | None,
    tile_overlap: float,
) -> dict:
    """Changes whenever a cached number could: files, their contents, the extractor's weights, the resolution or the tiles."""
    digest = hashlib.sha256()
    for sample in samples:
        path = getattr(sample.read, "args", [None])[0]
        stat = f"{path.stat().st_size}:{path.stat().st_mtime_ns}" if isinstance(path, Path) else ""
        digest.update(f"{sample.category}:{sample.name}:{stat}\n".encode(errors="surrogateescape"))
    weights = hashlib.sha256()
    for tensor in extractor.network.state_dict().values():
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    return {
        "samples": digest.hexdigest(),
        "extractor": weights.hexdigest(),
        "levels": list(extractor.config.levels),
        "stride": extractor.config.stride,
        "image_size": list(image_size),
        "tiles": None if short_side is None else [short_side, tile_overlap],
    }
