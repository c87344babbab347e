import pytest
import torch
import torch.nn.functional as F
from diffad import JointUNet2DModel, JointUNet2DOutput
from diffad.models.unet_joint import FeatureHead
from diffusers import UNet2DModel

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
TIMESTEPS = torch.tensor([5, 20, 401])


def joint_unet(**config) -> JointUNet2DModel:
    """In the state of a trained one: the head is not zero."""
    torch.manual_seed(0)
    unet = JointUNet2DModel(**{"sample_size": 32, "feature_channels": 5, "feature_stride": 4, **SMALL, **config})
    torch.nn.init.normal_(unet.feature_head.conv.weight)
    torch.nn.init.normal_(unet.feature_head.conv.bias)
    return unet.eval()


def plain_unet(out_channels: int = 3, **config) -> UNet2DModel:
    torch.manual_seed(1)
    return UNet2DModel(**{"sample_size": 32, "in_channels": 3, "out_channels": out_channels, **SMALL, **config}).eval()


def random_images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# One pass


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (16, 8)])
@pytest.mark.parametrize("feature_stride", [1, 2, 4, 8])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_one_pass_gives_noise_variance_and_features(patch_size, feature_stride, size):
    unet = joint_unet(patch_size=patch_size, feature_stride=feature_stride)
    assert unet.stride == 2 * patch_size
    output = unet(random_images(2, 3, *size), 20)
    assert isinstance(output, JointUNet2DOutput)
    assert output.sample.shape == (2, 6, *size)
    assert output.features.shape == (2, 5, size[0] // feature_stride, size[1] // feature_stride)


def test_tuple_output_is_sample_and_features():
    unet, images = joint_unet(), random_images(1, 3, 32, 32)
    sample, features = unet(images, 20, return_dict=False)
    output = unet(images, 20)
    assert torch.equal(sample, output.sample) and torch.equal(features, output.features)


def test_gray_images_have_two_output_channels():
    assert joint_unet(in_channels=1)(random_images(1, 1, 32, 32), 20).sample.shape == (1, 2, 32, 32)


@pytest.mark.parametrize(("patch_size", "size"), [(1, (33, 32)), (1, (32, 33)), (4, (32, 36)), (4, (20, 32))])
def test_size_not_divisible_by_the_stride_is_refused(patch_size, size):
    message = f"image size {size[0]}x{size[1]} is not divisible by the UNet's stride of {2 * patch_size}"
    with pytest.raises(ValueError, match=message):
        joint_unet(patch_size=patch_size)(random_images(1, 3, *size), 20)


@pytest.mark.parametrize("feature_stride", [5, 64])
def test_size_not_divisible_by_the_feature_stride_is_refused(feature_stride):
    with pytest.raises(ValueError, match=f"feature_stride.*{feature_stride}"):
        joint_unet(feature_stride=feature_stride)(random_images(1, 3, 32, 32), 20)


def test_batch_equals_its_images_one_by_one():
    unet, images = joint_unet(), random_images(3, 3, 32, 48)
    batch = unet(images, TIMESTEPS)
    for i, timestep in enumerate(TIMESTEPS.tolist()):
        alone = unet(images[i : i + 1], timestep)
        torch.testing.assert_close(batch.sample[i : i + 1], alone.sample, rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.features[i : i + 1], alone.features, rtol=0, atol=1e-5)


def test_timestep_changes_the_output():
    unet, images = joint_unet(), random_images(1, 3, 32, 32)
    first, second = unet(images, 20), unet(images, 401)
    assert not torch.allclose(first.sample, second.sample) and not torch.allclose(first.features, second.features)


def test_patches_are_folded_around_a_plain_unet():
    joint = joint_unet(patch_size=2)
    plain = plain_unet(24, in_channels=12)
    plain.load_state_dict({k: v for k, v in joint.state_dict().items() if not k.startswith("feature_head.")})
    images = random_images(2, 3, 32, 48)
    folded = images.view(2, 3, 16, 2, 24, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 16, 24)
    output = plain(folded, 20).sample.view(2, 6, 2, 2, 16, 24)
    expected = output.permute(0, 1, 4, 2, 5, 3).reshape(2, 6, 32, 48)
    torch.testing.assert_close(joint(images, 20).sample, expected)


# Feature head


@pytest.mark.parametrize(("block", "channels", "side"), [(0, 16, 32), (1, 8, 32), (-1, 8, 32), (-2, 16, 32)])
def test_head_reads_the_chosen_decoder_block(block, channels, side):
    unet = joint_unet(feature_block=block)
    received = []
    unet.up_blocks[block].register_forward_hook(lambda module, inputs, output: received.append(output))
    unet.feature_head.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
    unet(random_images(1, 3, 32, 32), 20)
    output, head_input = received
    assert torch.equal(head_input, output) and output.shape == (1, channels, side, side)


@pytest.mark.parametrize("block", [2, -3])
def test_unknown_decoder_block_is_refused(block):
    with pytest.raises(ValueError, match=f"feature_block {block} is not one of the 2"):
        joint_unet(feature_block=block)


def test_skip_blocks_are_refused():
    with pytest.raises(ValueError, match="SkipDownBlock2D"):
        joint_unet(down_block_types=("SkipDownBlock2D",) * 2, up_block_types=("SkipUpBlock2D",) * 2)


def test_head_is_norm_silu_and_a_convolution_at_the_wanted_size():
    torch.manual_seed(0)
    head = FeatureHead(8, 5, num_groups=2, eps=1e-5)
    torch.nn.init.normal_(head.conv.weight)
    hidden = random_images(2, 8, 6, 10)
    groups = hidden.view(2, 2, 4 * 60)
    normalised = (groups - groups.mean(dim=2, keepdim=True)) / groups.std(dim=2, keepdim=True, correction=0)
    active = normalised.view(2, 8, 6, 10) * normalised.view(2, 8, 6, 10).sigmoid()
    expected = torch.einsum("dc,bchw->bdhw", head.conv.weight[:, :, 0, 0], active)
    torch.testing.assert_close(head(hidden, (6, 10)), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head(hidden, (3, 5)), F.avg_pool2d(expected, 2), rtol=1e-4, atol=1e-4)
    enlarged = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(hidden, (12, 20)), enlarged, rtol=1e-4, atol=1e-4)


def test_new_model_predicts_the_mean_feature():
    unet = JointUNet2DModel(feature_channels=5, feature_stride=4, **SMALL)
    assert (unet(random_images(1, 3, 32, 32), 20).features == 0).all()


# Class labels


def test_class_labels_change_the_output():
    unet = joint_unet(num_class_embeds=3)
    images = random_images(1, 3, 32, 32).expand(3, -1, -1, -1)
    output = unet(images, 20, torch.tensor([0, 1, 1]))
    assert not torch.allclose(output.sample[0], output.sample[1])
    torch.testing.assert_close(output.sample[1], output.sample[2])


def test_missing_and_unwanted_labels_are_refused():
    images = random_images(1, 3, 32, 32)
    with pytest.raises(ValueError, match="needs class labels"):
        joint_unet(num_class_embeds=3)(images, 20)
    with pytest.raises(ValueError, match="built without class labels"):
        joint_unet()(images, 20, torch.tensor([0]))


# Wrapping a trained UNet2DModel


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_class_embeds": 3},
        {"resnet_time_scale_shift": "scale_shift"},
        {"time_embedding_dim": 24, "flip_sin_to_cos": False, "freq_shift": 1},
        {"add_attention": False, "act_fn": "gelu", "norm_eps": 1e-3},
        {"downsample_type": "resnet", "upsample_type": "resnet"},
        {"downsample_padding": 0, "mid_block_scale_factor": 2.0},
    ],
)
@pytest.mark.parametrize("out_channels", [3, 6])
def test_wrapped_unet_predicts_the_same_noise(out_channels, config):
    plain = plain_unet(out_channels, **config)
    joint = JointUNet2DModel.from_unet(plain, feature_channels=5, feature_stride=8).eval()
    images = random_images(3, 3, 32, 48)
    labels = torch.tensor([1, 2, 0]) if "num_class_embeds" in config else None
    expected = plain(images, TIMESTEPS, labels).sample
    output = joint(images, TIMESTEPS, labels)
    torch.testing.assert_close(output.sample[:, :out_channels], expected, rtol=0, atol=1e-6)
    if out_channels == 3:
        assert (output.sample[:, 3:] == 0).all()  # v = 0: halfway between both variances
    assert output.features.shape == (3, 5, 4, 6) and (output.features == 0).all()
    assert joint.config.sample_size == 32


@pytest.mark.parametrize("config", [{}, {"num_class_embeds": 5}])
def test_wrapped_unet_takes_new_classes_and_starts_without_regard_to_them(config):
    plain, images = plain_unet(**config), random_images(2, 3, 32, 32)
    joint = JointUNet2DModel.from_unet(plain, num_class_embeds=3).eval()
    plain.class_embedding = None
    expected = plain(images, 20).sample
    for labels in ([0, 1], [2, 2]):
        torch.testing.assert_close(joint(images, 20, torch.tensor(labels)).sample[:, :3], expected, rtol=0, atol=1e-6)
    assert joint.config.num_class_embeds == 3 and joint.class_embedding.weight.requires_grad


def test_wrapped_unet_shares_no_memory_with_its_source():
    plain = plain_unet()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    joint = JointUNet2DModel.from_unet(plain)
    with torch.no_grad():
        for parameter in joint.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_wrapped_unet_keeps_the_dtype():
    joint = JointUNet2DModel.from_unet(plain_unet().to(torch.bfloat16))
    assert {parameter.dtype for parameter in joint.parameters()} == {torch.bfloat16}


def test_wrapped_unet_with_dropout_predicts_the_same_noise():
    plain, images = plain_unet(dropout=0.3), random_images(1, 3, 32, 32)
    joint = JointUNet2DModel.from_unet(plain)
    torch.testing.assert_close(joint(images, 20).sample[:, :3], plain(images, 20).sample, rtol=0, atol=1e-6)


def test_wrapped_unet_survives_saving(tmp_path):
    plain, images = plain_unet(6), random_images(1, 3, 32, 32)
    JointUNet2DModel.from_unet(plain, feature_channels=5).save_pretrained(tmp_path)
    loaded = JointUNet2DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images, 20).sample, plain(images, 20).sample, rtol=0, atol=1e-5)


def test_wrapping_takes_settings_that_replace_those_of_the_unet():
    joint = JointUNet2DModel.from_unet(plain_unet(), sample_size=64, dropout=0.1)
    assert (joint.config.sample_size, joint.config.dropout) == (64, 0.1)
    with pytest.raises(ValueError, match="do not fit.*conv_in.weight"):
        JointUNet2DModel.from_unet(plain_unet(), patch_size=2)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_joint_model_gets_a_new_head(patch_size):
    source, images = joint_unet(patch_size=patch_size, num_attention_heads=2, time_proj_dim=12), random_images(1, 3, 32, 32)
    wrapped = JointUNet2DModel.from_unet(source, feature_channels=7)
    output = wrapped(images, 20)
    torch.testing.assert_close(output.sample, source(images, 20).sample, rtol=0, atol=1e-6)
    assert output.features.shape == (1, 7, 8, 8) and (output.features == 0).all()


def test_labels_added_to_a_trained_model_have_no_effect_yet():
    plain, images = plain_unet(6), random_images(2, 3, 32, 32)
    joint = JointUNet2DModel.from_unet(plain, num_class_embeds=3)
    output = joint(images, 20, torch.tensor([0, 2])).sample
    torch.testing.assert_close(output, plain(images, 20).sample, rtol=0, atol=1e-6)
    output.square().sum().backward()
    assert joint.class_embedding.weight.grad[0].any() and not joint.class_embedding.weight.grad[1].any()


@pytest.mark.parametrize("out_channels", [1, 4, 9])
def test_unet_of_other_output_channels_is_refused(out_channels):
    with pytest.raises(ValueError, match=f"3 to {out_channels} channels"):
        JointUNet2DModel.from_unet(plain_unet(out_channels))


@pytest.mark.parametrize(
    "config", [{"time_embedding_type": "fourier"}, {"center_input_sample": True}, {"class_embed_type": "timestep"}]
)
def test_unet_without_counterpart_is_refused(config):
    with pytest.raises(ValueError, match="positional time embedding, label embedding and uncentered input"):
        JointUNet2DModel.from_unet(plain_unet(**config))


def test_unet_without_middle_block_is_refused():
    with pytest.raises(ValueError, match="weights do not fit.*mid_block"):
        JointUNet2DModel.from_unet(plain_unet(mid_block_type=None))


# Saving, training, precision


def public(config) -> dict:
    """A configuration without diffusers' own entries; JSON turns tuples into lists."""
    items = ((name, value) for name, value in config.items() if not name.startswith("_"))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in items}


@pytest.mark.parametrize(
    "config",
    [{}, {"sample_size": (32, 48), "patch_size": 4, "num_class_embeds": 3, "feature_block": 1, "feature_stride": 8}],
)
def test_saved_model_loads_bit_equal(tmp_path, config):
    unet = joint_unet(**config)
    unet.save_pretrained(tmp_path)
    loaded = JointUNet2DModel.from_pretrained(tmp_path)
    assert public(loaded.config) == public(unet.config)
    state = unet.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    images = random_images(2, 3, 32, 48)
    labels = torch.tensor([2, 0]) if "num_class_embeds" in config else None
    # Memory-mapped weights lie at other addresses, and CPU kernels then round the last bit otherwise.
    for tensor, expected in zip(loaded(images, 20, labels, return_dict=False), unet(images, 20, labels, return_dict=False)):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gradients_reach_every_parameter(patch_size):
    unet = joint_unet(patch_size=patch_size, num_class_embeds=3).train()
    output = unet(random_images(3, 3, 32, 32), TIMESTEPS, torch.tensor([0, 1, 2]))
    (output.sample.square().mean() + output.features.square().mean()).backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_new_head_learns_from_the_first_step():
    unet = JointUNet2DModel(feature_channels=5, feature_stride=4, **SMALL)
    (unet(random_images(1, 3, 32, 32), 20).features - 1).square().mean().backward()
    assert unet.feature_head.conv.weight.grad.any() and unet.feature_head.conv.bias.grad.any()


def test_bfloat16_forward_is_close_to_float32():
    images = random_images(2, 3, 32, 32)
    expected = joint_unet()(images, TIMESTEPS[:2], return_dict=False)
    output = joint_unet().to(torch.bfloat16)(images.bfloat16(), TIMESTEPS[:2], return_dict=False)
    for tensor, reference in zip(output, expected):
        assert tensor.dtype == torch.bfloat16
        assert (tensor.float() - reference).abs().mean() < 0.03 * reference.abs().mean()
