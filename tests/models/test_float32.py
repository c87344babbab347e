"""Components with fitted state keep float32 whatever their pipeline is cast to, and under autocast."""

import pytest
import torch
from diffad import Calibration, FeatureExtractor, LinearDiscriminant, PadimGaussian
from diffad.scoring.statistics import TermStatistics


def extractor() -> FeatureExtractor:
    torch.manual_seed(0)
    extractor = FeatureExtractor("test_efficientnet", (1,), 8, 24)
    extractor.set_statistics(torch.rand(24), torch.rand(24) + 1)
    return extractor


def gaussian() -> PadimGaussian:
    gaussian = PadimGaussian(6, grid=(2, 3), num_dims=4)
    gaussian.mean.copy_(torch.rand(6, 4))
    gaussian.whitening.copy_(1e5 * torch.rand(6, 4, 4))  # overflows in half precision
    return gaussian


def calibration() -> Calibration:
    calibration = Calibration(fusion="tails", verdict={"residual": 1.0, "mahalanobis": 1.0})
    maps = {name: torch.rand(4, 4) for name in calibration.term_map_names}
    statistics = TermStatistics.of(maps, torch.ones(4, 4, dtype=torch.bool), calibration.score_config)
    calibration.set_statistics(statistics)
    calibration.set_scores([torch.rand(5).numpy()], [torch.rand(5).numpy()])
    return calibration


def discriminant() -> LinearDiscriminant:
    discriminant = LinearDiscriminant(6, ("nut", "bolt"), knows_distances=True)
    discriminant.fit(torch.randn(40, 6).numpy() + [[2 * (i % 2)] for i in range(40)], [i % 2 for i in range(40)])
    return discriminant


@pytest.fixture(params=[extractor, gaussian, calibration, discriminant])
def component(request):
    torch.manual_seed(0)
    return request.param()


def snapshot(component) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in component.state_dict().items()}


def assert_state(component, expected: dict[str, torch.Tensor]) -> None:
    """The same names, dtypes and bits, with at least one float32 tensor among them."""
    state = component.state_dict()
    assert state.keys() == expected.keys()
    assert torch.float32 in {tensor.dtype for tensor in state.values()}
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "cast",
    [
        lambda c: c.to(torch.float16),
        lambda c: c.to(dtype=torch.bfloat16),
        lambda c: c.to("cpu", torch.float16),
        lambda c: c.to(torch.float64),
        lambda c: c.half(),
        lambda c: c.bfloat16(),
        lambda c: torch.nn.ModuleList([c]).to(torch.float16)[0],
    ],
)
def test_casting_keeps_every_bit(component, cast):
    expected = snapshot(component)
    assert_state(cast(component), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loading_in_half_precision_keeps_every_bit(component, tmp_path, dtype):
    component.save_pretrained(tmp_path)
    loaded = type(component).from_pretrained(tmp_path, torch_dtype=dtype)
    assert_state(loaded, snapshot(component))


def test_saving_after_a_cast_keeps_every_bit(component, tmp_path):
    expected = snapshot(component)
    component.to(torch.float16).save_pretrained(tmp_path)
    assert_state(type(component).from_pretrained(tmp_path), expected)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_component_follows_the_device(component, dtype):
    """`meta` stands for a GPU: tensors move there, and the dtype in the same call is ignored."""
    before = {name: (tensor.shape, tensor.dtype) for name, tensor in component.state_dict().items()}
    component.to("meta") if dtype is None else component.to("meta", dtype)
    after = component.state_dict()
    assert {tensor.device.type for tensor in after.values()} == {"meta"}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in after.items()} == before
    assert component.device.type == "meta"


def test_half_precision_features_are_scored_in_float32():
    model = gaussian()
    features = torch.rand(2, 6, 2, 3).half()
    expected = model(features.float())
    distance = model.to(torch.float16)(features)
    assert distance.dtype == torch.float32 and distance.isfinite().all()
    assert torch.equal(distance, expected)


def test_half_precision_images_give_float32_features():
    model = extractor()
    images = torch.rand(1, 3, 32, 32).half()
    expected = model(images.float())
    features = model.to(torch.float16)(images)
    assert features.dtype == torch.float32 and torch.equal(features, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("build", "shape"), [(extractor, (2, 3, 32, 32)), (gaussian, (2, 6, 2, 3)), (discriminant, (2, 6, 2, 3))]
)
def test_forward_passes_inside_autocast_are_those_without(build, shape, dtype):
    model, inputs = build(), torch.rand(shape)
    expected = model(inputs)
    with torch.autocast("cpu", dtype):
        output = model(inputs)
        assert torch.is_autocast_enabled("cpu")
    assert output.dtype == torch.float32 and torch.equal(output, expected)


def test_recognition_inside_autocast_is_that_without():
    model, pooled = discriminant(), 3 * torch.randn(50, 6)
    model.limit.fill_(model.distances(pooled).median())
    expected = model.scores(pooled), model.distances(pooled), model.is_unknown(pooled)
    assert expected[2].any() and not expected[2].all()
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.scores(pooled), model.distances(pooled), model.is_unknown(pooled)
    assert all(torch.equal(a, b) for a, b in zip(inside, expected, strict=True))
