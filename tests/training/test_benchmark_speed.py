"""benchmarks/speed.py: medians and FLOP rates, and a small run from end to end that keeps and shows every contender."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad_training.benchmarks import peers, speed, speed_contenders, speed_graphs, speed_peers, speed_timing
from diffad_training.benchmarks.speed_timing import Contender
from documents import ROOT
from tiny_pipeline import SIZE, save_test_images, save_tiny_model, smooth_images, tiled_pipeline, tiny_pipeline


class Clock:
    """A clock that only calls move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, durations):
        """A call of these durations, one after the other."""
        remaining = iter(durations)

        def call() -> None:
            self.now += next(remaining)

        return call


def test_calls_fill_the_time_and_one_is_made_at_least():
    clock = Clock()
    assert speed_timing.timed_calls(clock.takes([1, 2, 3, 4]), 5, clock) == [1, 2, 3]
    assert speed_timing.timed_calls(clock.takes([7, 8]), 5, clock) == [7]
    assert speed_timing.timed_calls(clock.takes([7, 8]), 0, clock) == [7]


def test_contenders_take_turns_and_a_round_counts_with_its_median(monkeypatch):
    order, clock = [], Clock()

    def contender(name, durations, images):
        call = clock.takes(durations)
        return Contender({"name": name}, lambda: (order.append(name), call()), images)

    real = speed_timing.timed_calls
    monkeypatch.setattr(speed_timing, "timed_calls", lambda call, seconds: real(call, seconds, clock))
    # The first call of each does not count; a round is 3 s.
    a = contender("a", [100, 1, 1, 9, 2, 2], 4)
    b = contender("b", [100, 5, 6, 7], 1)
    timings = speed_timing.interleaved([a, b], 2, 4)
    # A call that does not count and two rounds of each, in turn.
    assert [name for name, _ in groupby(order)] == ["a", "b"] * 3 and Counter(order) == {"a": 6, "b": 3}
    assert timings[0] == {"name": "a", "images": 4, "calls": 5, "seconds": [1, 2]}
    assert timings[1] == {"name": "b", "images": 1, "calls": 2, "seconds": [5, 6]}
    assert speed_timing.milliseconds(timings[0]) == 375 and speed_timing.milliseconds(timings[1]) == 5500


def test_flops_are_twice_the_multiplications():
    convolution, product = torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.Linear(7, 11, bias=False)
    count = speed_timing.counted_flops(lambda: (convolution(torch.zeros(2, 3, 16, 16)), product(torch.zeros(4, 7))))
    assert count == 2 * (2 * 16 * 16 * 8 * 3 * 25) + 2 * (4 * 7 * 11)
    for contender in speed_timing.matrix_peak(["fp32", "bf16"], side=24):
        assert contender.labels["flops"] == speed_timing.counted_flops(contender.call) == 2 * 24**3
        assert contender.call().dtype == speed_timing.DTYPES[contender.labels["precision"]]
    assert speed_timing.flop_rate({"flops": 300, "seconds": [1, 2, 50], "images": 4}) == 150


def test_computing_in_bf16_is_autocast_and_fp32_is_nothing():
    a = torch.ones(2, 2)
    for precision, dtype in speed_timing.DTYPES.items():
        with speed_timing.computing_in(precision):
            assert (a @ a).dtype == dtype


def test_the_machine_is_described():
    found = speed_timing.machine()
    assert found["cpu"] and found["cores"] >= 1 and found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert set(found["flags"]) <= set(speed_timing.CPU_FLAGS)


def test_images_are_spread_over_all():
    assert speed.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert speed.spread([1, 2], 4) == [1, 2]


# Contenders


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speed") / "tiny"
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = save_test_images(tmp_path_factory.mktemp("speed") / "DATA", defective=2)
    (folder / "train/good").mkdir(parents=True)
    for i, image in enumerate(smooth_images(8, seed=30)):
        image.save(folder / f"train/good/{i}.png")
    return folder


class StandInDetector:
    """In place of `diffad.runtime.Detector`: calibrated in float32 alone; notes what it scores."""

    scored: list = []

    def __init__(self, folder, threads, precision):
        if precision == "int8":
            raise ValueError("computes in floats")
        self.settings = (folder.name, threads, precision)

    def __call__(self, images, batch_size=8, categories=None):
        if self.settings[2] != "fp32":
            raise ValueError("not calibrated in bf16; run: diffad calibrate")
        self.scored.append((*self.settings, len(images), batch_size, categories))


def save_doubling(path: Path, name: str) -> None:
    """A graph that doubles its input."""
    onnx = pytest.importorskip("onnx")
    shape = ["batch", 3, SIZE, SIZE]
    tensors = [onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shape) for value in (name, "doubled")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", [name] * 2, ["doubled"])], "g", tensors[:1], tensors[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path)


@pytest.fixture
def exported(tmp_path, monkeypatch) -> Path:
    """A stand-in of an exported folder."""
    monkeypatch.setitem(sys.modules, "diffad.runtime", SimpleNamespace(Detector=StandInDetector))
    monkeypatch.setattr(StandInDetector, "scored", [])
    folder = tmp_path / "tiny-onnx"
    folder.mkdir()
    save_doubling(folder / "g.onnx", "image")
    (folder / "detector.json").write_text(json.dumps({"runtime": "onnxruntime", "graph": "g.onnx"}))
    (folder / "detector.py").write_text("import sys; assert sys.argv[2:] == ['--threads', '1']")
    return folder


def test_a_small_run_keeps_and_shows_every_contender(model, data, exported, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    # What takes seconds has tests of its own.
    monkeypatch.setattr(speed, "MATRIX_SIDE", 32)
    monkeypatch.setattr(speed_contenders, "START_PIPELINE", "")
    monkeypatch.setattr(speed_contenders, "save_unet", lambda unet_pass, inputs, path: save_doubling(path, "xt"))
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "results" / "speed.jsonl")
    monkeypatch.setattr(speed, "CARD", tmp_path / "speed.md")
    speed.CARD.write_text((ROOT / "model_cards/speed.md").read_text())
    words = ["--model", str(model), "--data", str(data), "--runs", "2", "--seconds", "0.001", "--images", "3"]
    words += ["--batches", "1", "2", "--precisions", "fp32", "bf16", "int8", "--exported", str(exported)]
    speed.main(words)
    (result,) = [json.loads(line) for line in speed.RESULTS.read_text().splitlines()]
    assert all(len(t["seconds"]) == 2 and min(t["seconds"]) > 0 and t["calls"] >= 2 for t in result["timings"])
    kinds = [tuple(t.get(key) for key in ("group", "name", "runtime", "precision")) for t in result["timings"]]
    assert {kind[0] for kind in kinds} == {"scoring", "timesteps", "unet", "parts", "repair", "training", "matmul", "start"}
    assert (
        kinds.count(("scoring", "diffad", "eager", "bf16")) == kinds.count(("scoring", "tiny-onnx", "onnxruntime", "fp32")) == 4
    )
    assert not [kind for kind in kinds if kind[2] == "onnxruntime" and kind[3] != "fp32"]
    assert "left out: not calibrated in bf16" in (said := capsys.readouterr().err) and "left out: computes in floats" in said
    assert ("unet", "UNet pass", "onnxruntime", "fp32") in kinds
    passes = [t["flops"] / t["images"] for t in result["timings"] if t["group"] == "unet"]
    assert passes[0] == passes[1] == passes[-1] and passes[2] > 3 * passes[0]
    assert set(StandInDetector.scored) == {("tiny-onnx", 1, "fp32", n, size, None) for n, size in ((1, 8), (3, 1), (3, 2))}
    assert result["images"] == 3 and result["reverse_steps"] == 250 and set(result["megabytes"]) == {"diffad", "tiny-onnx"}
    total = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6
    assert sum(result["megabytes"]["diffad"].values()) == pytest.approx(total)
    assert "**diffad**" in speed.CARD.read_text() and "nan" not in speed.CARD.read_text()
    # The kept command asks for the same.
    kept = result["command"].split()[2:]
    assert kept[kept.index("--data") + 1] == "DATA_ROOT/DATA"
    assert {word for word in words if word.startswith("--")} <= set(kept)


def test_tensors_and_files_are_scored_as_by_the_pipeline(model, data):
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    paths = sorted((data / "test/good").iterdir())
    work = speed_contenders.Work.of(pipe, paths, paths[0])
    expected = pipe(paths).image_scores
    with torch.no_grad():
        scores = [pipe.scorer(pixels, detail=detail).image_scores for pixels, detail in work.inputs(2)]
    assert [len(part) for part in scores] == [2, 1]
    np.testing.assert_allclose(torch.cat(scores), expected, rtol=1e-5)
    images = np.concatenate([inputs["image"] for inputs in speed_contenders.graph_inputs(work, 2)])
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(2 * images - 1, work.batch.pixels, atol=1e-6)


def test_starting_ends_with_a_verdict(model, data, monkeypatch, capsys):
    """What the process runs is run here: an interpreter with torch takes many seconds to start."""
    image = data / "test/good/0.png"
    monkeypatch.setattr(sys, "argv", ["-c", str(model), str(image), str(torch.get_num_threads())])
    exec(speed_contenders.START_PIPELINE, {})
    pipe = DiffADPipeline.from_pretrained(model)
    assert capsys.readouterr().out.splitlines()[-1] == str(pipe(image).image_scores)


def test_starting_is_a_process_that_must_succeed(monkeypatch, capfd):
    script = "import sys; sys.argv[1:] == ['model', '0.png', '3'] or sys.exit(f'started with {sys.argv}')"
    monkeypatch.setattr(speed_contenders, "START_PIPELINE", script)
    (contender,) = speed_contenders.starts(Path("model"), [], Path("0.png"), 3)
    contender.call()
    (missing,) = speed_contenders.starts(Path("missing"), [], Path("0.png"), 3)
    with pytest.raises(subprocess.CalledProcessError):
        missing.call()
    assert "missing" in capfd.readouterr().err


def test_a_training_step_leaves_the_pipeline_as_it_is(model, data):
    pipe = DiffADPipeline.from_pretrained(model)
    work = speed_contenders.Work.of(pipe, sorted((data / "test/good").iterdir()), data)
    (contender,) = speed_contenders.training_steps(pipe, work, ["fp32"], 5, seed=0)
    contender.call()
    assert contender.labels["name"] == "training step of 5 images" and not pipe.unet.training
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_models_of_categories_are_timed_as_their_first_and_tiles_are_refused(data):
    paths = sorted((data / "test/good").iterdir())
    pipe = tiny_pipeline(class_names=("nut", "bolt"), smoothing_sigma=1.0)
    pipe.calibrate([*smooth_images(21, seed=4)] * 2, categories=["nut"] * 21 + ["bolt"] * 21)
    work = speed_contenders.Work.of(pipe, paths, paths[0])
    assert work.batch.category == 0 and next(speed_contenders.graph_inputs(work, 2))["category"].tolist() == [0, 0]
    contenders = [*speed_contenders.pipeline_scoring(pipe, work, [2], ["fp32"]), *speed_contenders.parts(pipe, work)]
    contenders += [
        *speed_contenders.unet_passes(pipe, work, ["fp32"]),
        *speed_contenders.timestep_scoring(pipe, work, ["fp32"]),
    ]
    contenders += [*speed_contenders.training_steps(pipe, work, ["fp32"], 2, 0), speed_contenders.repair(pipe, work, 0)]
    for contender in contenders:
        contender.call()
    tiled = tiled_pipeline(short_side=48)
    with pytest.raises(ValueError, match="not in tiles"):
        speed_contenders.Work.of(tiled, paths, paths[0])


def test_a_unet_pass_is_the_same_in_both_runtimes(model, tmp_path):
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    pipe = DiffADPipeline.from_pretrained(model)
    unet_pass = speed_graphs.UNetPass(pipe, None)
    inputs = speed_contenders.unet_inputs(pipe.image_size, 1)
    with torch.no_grad():
        expected = unet_pass.eval()(**inputs)
    speed_graphs.save_unet(unet_pass, inputs, tmp_path / "unet.onnx")
    arrays = {name: values.numpy() for name, values in inputs.items()} | {"unknown": np.zeros(1)}
    for runtime in ("onnxruntime", "openvino"):
        outputs = speed_graphs.load_graph(tmp_path / "unet.onnx", runtime, 1, "fp32")(arrays)
        for values, of_unet in zip(outputs.values(), expected, strict=True):
            np.testing.assert_allclose(values, of_unet, rtol=1e-3, atol=1e-4)


def test_openvino_prefers_a_precision_of_the_cpu():
    pytest.importorskip("openvino")
    assert speed_graphs.default_openvino_precision() in ("fp32", "bf16", "fp16")


def test_peers_are_timed_eager_and_as_anomalib_exports_them(data, monkeypatch, tmp_path):
    """With stand-ins of anomalib's models and of its exporter."""
    loaded, scored = [], []
    monkeypatch.setattr(peers, "PEERS", {"Stand-in": (None, None)})
    fitted = []

    def fit(name, samples, seed, candidates):
        fitted.append((name, len(samples), seed))
        return lambda images: scored.append(("eager", tuple(images.shape))), {}

    def load_graph(path, device, threads, settings):
        loaded.append((path, device, threads, settings.get("INFERENCE_PRECISION_HINT")))
        assert settings or device == "AUTO"

        def graph(inputs) -> None:
            assert path.stem == str(len(inputs["input"]))
            scored.append((device, inputs["input"].shape))

        return graph

    monkeypatch.setattr(peers, "fit", fit)
    monkeypatch.setattr(speed_peers, "exported", lambda model, folder, batch: folder / f"{batch}.xml")
    monkeypatch.setattr(speed_peers, "load_openvino", load_graph)
    monkeypatch.setattr(speed_peers, "default_openvino_precision", lambda: "bf16")
    samples = speed.evaluation_samples(data)[:3]
    contenders = list(speed_peers.peer_scoring(data, samples, [1, 2], 2, 5, tmp_path))
    assert fitted == [("Stand-in", 8, 5)]
    paths = [tmp_path / f"Stand-in, {batch}" / f"{batch}.xml" for batch in (1, 2)]
    settings = [("AUTO", 2, None), ("CPU", 2, "f32")]
    assert loaded == [(path, *of_runtime) for of_runtime in settings for path in paths]
    kinds = [(c.labels["runtime"], c.labels["precision"]) for c in contenders]
    assert list(dict.fromkeys(kinds)) == [("eager", "fp32"), ("openvino", "bf16, default"), ("openvino", "fp32")]
    for contender in contenders:
        scored.clear()
        contender.call()
        assert sum(shape[0] for _, shape in scored) == contender.images == 3 and contender.labels["is_peer"]
        assert len(scored) == (3 if contender.labels["batch"] == 1 else 2)
    assert set(itertools.chain.from_iterable(shape[1:] for _, shape in scored)) == {3, 256}


@pytest.mark.long
def test_anomalibs_export_scores_as_its_model(data, monkeypatch, tmp_path):
    pytest.importorskip("anomalib")
    monkeypatch.setattr(peers, "CORESET_PATCHES", 50)
    samples = speed.evaluation_samples(data)[:2]
    images = speed_peers.load(samples)
    for name in peers.PEERS:
        model, _ = peers.fit(name, speed_peers.training_samples(data), 0, 2000)
        graph = speed_graphs.load_openvino(
            speed_peers.exported(model, tmp_path / name, len(images)), "CPU", 1, {"INFERENCE_PRECISION_HINT": "f32"}
        )
        expected = speed_peers.model_graph(model)({"input": images})
        outputs = {output.any_name: values for output, values in graph({"input": images}).items()}
        np.testing.assert_allclose(outputs["anomaly_map"], expected.anomaly_map, rtol=1e-3)
        np.testing.assert_allclose(outputs["pred_score"], expected.pred_score, rtol=1e-3)
