"""Convolutions of the networks in 8 bits, all else in float."""

import numpy as np
import pytest
import torch
from tiny_pipeline import category_images, smooth_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("nncf")


@pytest.mark.long
def test_only_convolutions_of_diffusion_models_are_quantised_and_scores_stay(whole_images):
    import onnxruntime
    from diffad.export.folder import _graph_inputs
    from diffad.export.quantization import quantized

    model = onnx.load(whole_images.folder / "model.onnx")
    in_8_bits = quantized(model, _graph_inputs(whole_images.pipe, category_images(12, 4, 0)))
    made_by = {name: node.op_type for node in in_8_bits.graph.node for name in node.output}
    convolutions = [node for node in in_8_bits.graph.node if node.op_type == "Conv"]
    in_float = [node for node in convolutions if made_by.get(node.input[0]) != "DequantizeLinear"]
    assert in_float and len(convolutions) - len(in_float) > 20
    assert not [node.name for node in in_float if "unet" in node.input[1] or "feature_denoiser" in node.input[1]]
    for node in in_8_bits.graph.node:
        if node.op_type in ("MatMul", "Gemm", "TopK", "Sqrt", "Log"):
            assert made_by.get(node.input[0]) != "DequantizeLinear", node.name
    images = smooth_images(20, seed=33)
    for image in images[::2]:
        image.paste((255, 0, 0), (4, 8, 12, 14))
    inputs = _graph_inputs(whole_images.pipe, images)
    sessions = [onnxruntime.InferenceSession(one.SerializeToString()) for one in (model, in_8_bits)]
    exact, rounded = (np.array([session.run(["image_score"], one)[0][0] for one in inputs]) for session in sessions)
    assert np.corrcoef(exact, rounded)[0, 1] > 0.99


class OfTimestep(torch.nn.Module):
    """An image's convolution, moved by what two layers make of a constant."""

    def __init__(self, name: str):
        super().__init__()
        self.convolutions = torch.nn.ModuleDict({name: torch.nn.Conv2d(3, 128, 3)})
        self.layers = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128))
        self.register_buffer("timestep", torch.arange(128.0)[None] / 128)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        (convolution,) = self.convolutions.values()
        return convolution(image) + self.layers(self.timestep)[..., None, None]


def test_layers_of_constants_are_computed_before():
    import onnxruntime
    from diffad.export.graph import trace
    from diffad.export.quantization import quantized

    torch.manual_seed(0)
    module, images = OfTimestep("unet"), torch.rand(4, 3, 16, 16)
    model = trace(module, {"image": images}, ["moved"], {"image": {0: "batch"}})
    assert [node for node in model.graph.node if node.op_type == "Gemm"]
    in_8_bits = quantized(model, [{"image": image[None].numpy()} for image in images])
    assert not [node for node in in_8_bits.graph.node if node.op_type == "Gemm"]
    (found,) = onnxruntime.InferenceSession(in_8_bits.SerializeToString()).run(None, {"image": images.numpy()})
    expected = module(images).detach()
    assert (torch.from_numpy(found) - expected).abs().max() < 0.05 * expected.std()


def test_a_graph_without_a_diffusion_model_is_refused():
    from diffad.export.graph import trace
    from diffad.export.quantization import quantized

    images = torch.rand(2, 3, 16, 16)
    model = trace(OfTimestep("feature_extractor"), {"image": images}, ["moved"], {"image": {0: "batch"}})
    with pytest.raises(ValueError, match="asks no diffusion model, .* export it in fp32"):
        quantized(model, [{"image": image[None].numpy()} for image in images])
