"""What of diffad is timed: scoring, its parts, repair, a training step, the exported folders, and starting them."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffad import DiffADPipeline
from diffad.diffusion.denoiser import Denoiser
from diffad.imaging.maps import enlarge_and_smooth_map
from diffad.scoring.config import DENOISER_TERMS
from diffad.scoring.inputs import ImageBatch, InputReader
from diffad.scoring.scorer import Scorer
from diffad.scoring.terms import mahalanobis_distance
from diffad_training.benchmarks.speed_graphs import UNetPass, load_graph, save_unet
from diffad_training.benchmarks.speed_timing import Contender, computing_in, counted_flops

OURS = "diffad"
PEAK_BATCH = 16  # of a UNet pass beside that of one image
START_PIPELINE = """
import sys
import torch
from diffad import DiffADPipeline
torch.set_num_threads(int(sys.argv[3]))
pipe = DiffADPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
print(pipe(sys.argv[2]).image_scores)
"""


@dataclass(frozen=True)
class Work:
    """The images that everything is timed on.

    Args:
        paths: of the files.
        batch: all of them, as the model takes them.
        defective: file of a defective image, which is repaired.
    """

    paths: list[Path]
    batch: ImageBatch
    defective: Path

    @classmethod
    def of(cls, pipe: DiffADPipeline, paths: Sequence[Path], defective: Path) -> "Work":
        """Reads the files; of a model of several categories all count as its first.

        Raises:
            ValueError: if the model scores images in tiles, of which every image has its own number.
        """
        if pipe.calibration.config.short_side is not None:
            raise ValueError("speed.py times models that score images whole, not in tiles")
        reader = InputReader(pipe.scorer, pipe.discriminant, torch.device("cpu"))
        categories = None if pipe.category_names is None else [0] * len(paths)
        (batch,) = reader.batches(paths, categories, len(paths))
        return cls(list(paths), batch, defective)

    def inputs(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Images `(B, 3, H, W)` and enlarged ones, where there are, in batches of a size."""
        detail = self.batch.detail
        for start in range(0, len(self.paths), size):
            part = slice(start, start + size)
            yield self.batch.pixels[part], None if detail is None else detail[part]


def scoring_labels(name: str, runtime: str, precision: str, batch: int, source: str, **more: object) -> dict:
    """Labels of what scores all images in batches, from preprocessed `tensors` or from `files`."""
    labels = {"group": "scoring", "name": name, "runtime": runtime, "precision": precision, "batch": batch, "input": source}
    return {**labels, **more}


def pipeline_scoring(
    pipe: DiffADPipeline, work: Work, batches: Sequence[int], precisions: Sequence[str]
) -> Iterator[Contender]:
    """The eager pipeline: the score alone, and files to verdicts."""
    for precision in precisions:
        for size in batches:
            yield Contender(
                scoring_labels(OURS, "eager", precision, size, "tensors"),
                tensor_scoring(pipe.scorer, work, size, precision),
                len(work.paths),
            )
            yield Contender(
                scoring_labels(OURS, "eager", precision, size, "files"),
                file_scoring(pipe, work, size, precision),
                len(work.paths),
            )


def tensor_scoring(scorer: Scorer, work: Work, size: int, precision: str) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> None:
        with computing_in(precision):
            for pixels, detail in work.inputs(size):
                scorer(pixels, work.batch.category, detail=detail)

    return call


def file_scoring(pipe: DiffADPipeline, work: Work, size: int, precision: str) -> Callable[[], object]:
    def call() -> None:
        with computing_in(precision):
            pipe(work.paths, batch_size=size, categories=work.batch.category)

    return call


def timestep_scoring(pipe: DiffADPipeline, work: Work, precisions: Sequence[str]) -> Iterator[Contender]:
    """The score alone with the last of the timesteps, the last two and so on.

    Its statistics are not fitted; what they are costs nothing.
    """
    timesteps = pipe.calibration.config.timesteps
    for count in range(1, len(timesteps) + 1):
        scorer = pipe.make_scorer(pipe.calibration.unfitted(timesteps=tuple(timesteps[-count:])))
        for precision in precisions:
            labels = {"group": "timesteps", "name": OURS, "runtime": "eager", "precision": precision, "timesteps": count}
            yield Contender(labels, tensor_scoring(scorer, work, 1, precision), len(work.paths))


def unet_passes(pipe: DiffADPipeline, work: Work, precisions: Sequence[str]) -> Iterator[Contender]:
    """Passes of the UNet over one image, over several, and over one of twice the side."""
    unet_pass = UNetPass(pipe, work.batch.category).eval()
    height, width = pipe.image_size
    for precision in precisions:
        for batch, scale in ((1, 1), (PEAK_BATCH, 1), (1, 2)):
            size = scale * height, scale * width
            inputs = unet_inputs(size, batch)
            call = without_gradients(lambda inputs=inputs: unet_pass(**inputs), precision)
            yield Contender({**unet_labels("eager", precision, batch, size), "flops": counted_flops(call)}, call, batch)


def unet_labels(runtime: str, precision: str, batch: int, size: tuple[int, int]) -> dict:
    labels = {"group": "unet", "name": "UNet pass", "runtime": runtime, "precision": precision, "batch": batch}
    return {**labels, "size": f"{size[0]}x{size[1]}"}


def unet_inputs(size: tuple[int, int], batch: int) -> dict[str, torch.Tensor]:
    """Noise in the place of noisy images: what a pass takes does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    return {"xt": torch.randn(batch, 3, *size, generator=generator), "timestep": torch.tensor([401])}


def without_gradients(call: Callable[[], object], precision: str = "fp32") -> Callable[[], object]:
    def timed() -> None:
        with torch.no_grad(), computing_in(precision):
            call()

    return timed


def parts(pipe: DiffADPipeline, work: Work) -> Iterator[Contender]:
    """What scoring one image is made of, but for the passes of the UNet."""
    scorer, calibration, category = pipe.scorer, pipe.calibration, work.batch.category
    pixels, detail = next(work.inputs(1))
    size, extractor = pipe.image_size, pipe.feature_extractor
    grid = tuple(side // extractor.config.stride for side in size)
    with torch.no_grad():
        fine = extractor.pyramid(pixels)
        features = extractor.standardize(fine.fine)
        distance = pipe.gaussian(features, category)  # (1, h, w)
        enlarged = fine if detail is None else extractor.pyramid(detail, grid)
        raw = scorer.raw_term_maps(pixels, category, scorer.config.terms, detail=detail)
    of_scale = {"coarse": fine.coarse, "coarse_detail": enlarged.coarse}  # the others see the enlarged image's fine features

    def fuse() -> None:
        calibration.scores(raw, calibration.anomaly_maps(raw, category), category)

    calls: dict[str, Callable[[], object]] = {f"extractor, {size[0]}x{size[1]}": lambda: extractor.pyramid(pixels)}
    if detail is not None:
        height, width = scorer.detail_size
        calls[f"extractor, {height}x{width}"] = lambda: extractor.pyramid(detail, grid)
    calls["Gaussian: mahalanobis"] = lambda: pipe.gaussian(features, category)
    calls["Gaussian: residual"] = lambda: pipe.residual_gaussian(features, category)
    if scorer.feature_denoiser is not None:
        calls["pass of the feature denoiser"] = lambda: scorer.denoising_residuals(features, pixels, category)
    for scale in scorer.config.scales:
        if scale in DENOISER_TERMS:
            continue
        values = of_scale.get(scale, enlarged.fine)
        calls[f"Gaussian: {scale}"] = lambda scale=scale, values=values: scorer.multiscale(scale, values, category)
    calls["square root, resizing and smoothing of a map"] = lambda: enlarge_and_smooth_map(
        mahalanobis_distance(distance), size, scorer.config.smoothing_sigma
    )
    calls["fusion of all maps, image score"] = fuse
    for name, call in calls.items():
        call = without_gradients(call)
        labels = {"group": "parts", "name": name, "runtime": "eager", "precision": "fp32"}
        yield Contender({**labels, "flops": counted_flops(call)}, call)


def repair(pipe: DiffADPipeline, work: Work, seed: int) -> Contender:
    """Of one defective image, with the default preset."""
    labels = {"group": "repair", "name": "repair of an image", "runtime": "eager", "precision": "fp32"}
    return Contender(labels, lambda: pipe.reconstruct(work.defective, categories=work.batch.category, seed=seed))


def training_steps(
    pipe: DiffADPipeline, work: Work, precisions: Sequence[str], batch_size: int, seed: int
) -> Iterator[Contender]:
    """Forward and backward pass of a training batch, without the optimizer's step, on a copy of the UNet."""
    unet = copy.deepcopy(pipe.unet).train()
    denoiser = Denoiser(unet, pipe.scheduler)
    generator = torch.Generator().manual_seed(seed)
    images = work.batch.pixels[torch.arange(batch_size) % len(work.paths)]
    with torch.no_grad():
        features = pipe.feature_extractor(images)
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.randint(0, 500, (batch_size,), generator=generator)

    def step(precision: str) -> None:
        with computing_in(precision):
            loss = denoiser.joint_loss(images, noise, timesteps, features, work.batch.category).total
        loss.backward()
        unet.zero_grad(set_to_none=True)

    for precision in precisions:
        labels = {"group": "training", "name": f"training step of {batch_size} images", "runtime": "eager"}
        yield Contender({**labels, "precision": precision}, lambda precision=precision: step(precision))


def exported_scoring(
    folder: Path, work: Work, batches: Sequence[int], precisions: Sequence[str], threads: int
) -> Iterator[Contender]:
    """An exported folder in each precision that it is calibrated in: the graph alone, and files to verdicts."""
    from diffad.runtime import Detector

    description = json.loads((folder / "detector.json").read_text())
    runtime, category = description["runtime"], work.batch.category
    for precision in precisions:
        try:
            detector = Detector(folder, threads=threads, precision=precision)
            detector(work.paths[:1], categories=category)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        graph = load_graph(folder / description["graph"], runtime, threads, precision)
        for size in batches:
            inputs = list(graph_inputs(work, size))

            def score_tensors(graph=graph, inputs=inputs) -> None:
                for of_batch in inputs:
                    graph(of_batch)

            def score_files(detector=detector, size=size) -> None:
                detector(work.paths, batch_size=size, categories=category)

            for source, call in (("tensors", score_tensors), ("files", score_files)):
                yield Contender(scoring_labels(folder.name, runtime, precision, size, source), call, len(work.paths))


def graph_inputs(work: Work, size: int) -> Iterator[dict]:
    """Batches in [0, 1] by the names of the inputs of exported graphs."""
    for pixels, detail in work.inputs(size):
        inputs = {"image": ((pixels + 1) / 2).numpy()}
        if detail is not None:
            inputs["detail"] = ((detail + 1) / 2).numpy()
        if work.batch.category is not None:
            inputs["category"] = torch.full((len(pixels),), work.batch.category).numpy()
        yield inputs


def exported_unet_passes(
    pipe: DiffADPipeline, work: Work, settings: Sequence[tuple[str, str]], threads: int, folder: Path
) -> Iterator[Contender]:
    """Passes of the UNet alone in the runtimes and precisions of the exported folders, written to a folder."""
    if not settings:
        return
    inputs, path = unet_inputs(pipe.image_size, 1), folder / "unet.onnx"
    unet_pass = UNetPass(pipe, work.batch.category).eval()
    save_unet(unet_pass, inputs, path)
    flops = counted_flops(without_gradients(lambda: unet_pass(**inputs)))
    arrays = {name: values.numpy() for name, values in inputs.items()}
    for runtime, precision in settings:
        graph = load_graph(path, runtime, threads, precision)
        labels = {**unet_labels(runtime, precision, 1, pipe.image_size), "flops": flops}
        yield Contender(labels, lambda graph=graph: graph(arrays))


def starts(model: Path, exported: Sequence[Path], image: Path, threads: int) -> Iterator[Contender]:
    """From starting Python to the first answer: of the pipeline, and of every exported folder."""
    commands = {OURS: [sys.executable, "-c", START_PIPELINE, model, image, threads]}
    commands |= {folder.name: [sys.executable, folder / "detector.py", image, "--threads", threads] for folder in exported}
    for name, command in commands.items():
        words = [str(word) for word in command]
        labels = {"group": "start", "name": name}
        yield Contender(labels, lambda words=words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))


def sizes(folder: Path) -> dict[str, float]:
    """Megabytes (10^6 bytes) of a folder's entries."""
    entries = sorted(folder.iterdir())
    return {entry.name: sum(f.stat().st_size for f in [entry, *entry.rglob("*")] if f.is_file()) / 1e6 for entry in entries}
