"""convert_adm.py against an independent reference of the published architecture (adm_reference.py)."""

import pickle

import pytest
import torch
from adm_reference import Adm, trained
from diffad import DiffADPipeline, JointUNet2DModel
from diffad.data import DataError
from diffad_training import train
from diffad_training.components import build_unet
from diffad_training.config import TrainingConfig, parse_config
from diffad_training.convert_adm import AttentionLayout, convert_adm_state_dict, fold_label_embedding, main
from safetensors.torch import load_file
from tiny_pipeline import smooth_images

TIMESTEPS = torch.tensor([0, 20, 999])


def layout_of(options: dict) -> AttentionLayout:
    size = None if "num_heads" in options else options.get("num_head_channels", 16)
    return AttentionLayout(size, options.get("num_heads"), options.get("new_order", False))


def converted(adm: Adm, options: dict, keep_labels: bool = True) -> JointUNet2DModel:
    config, weights = convert_adm_state_dict(adm.state_dict(), layout_of(options))
    if not keep_labels:
        config, weights = fold_label_embedding(config, weights)
    unet = JointUNet2DModel(feature_channels=5, **config).to(next(iter(weights.values())).dtype)
    missing, unexpected = unet.load_state_dict(weights, strict=False)
    assert unexpected == [] and all(name.startswith("feature_head.") for name in missing)
    return unet.eval()


def noisy_images(size: int = 8) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


# The converted model computes the same

VARIANTS = {
    "as released": {},
    "classes": {"num_classes": 7},
    "three blocks per level, attention on the finest": {"num_res_blocks": 3, "attention_levels": (0,)},
    "three levels, attention on two": {"num_res_blocks": 2, "channel_mult": (1, 1, 2), "attention_levels": (1, 2)},
    "attention in the middle only": {"attention_levels": (), "channel_mult": (1, 2, 3)},
    "convolutions resample": {"resblock_updown": False, "num_res_blocks": 2},
    "embedding only added": {"scale_shift": False},
    "embedding only added, convolutions resample": {"scale_shift": False, "resblock_updown": False, "num_classes": 3},
    "64x64: new attention order": {
        "new_order": True,
        "channel_mult": (1, 2, 3),
        "num_res_blocks": 3,
        "attention_levels": (1, 2),
    },
    "128x128: heads of several widths": {"num_heads": 4, "channel_mult": (1, 2, 3), "attention_levels": (1, 2)},
    "512x512: half the channels first": {"model_channels": 128, "channel_mult": (0.5, 1, 1)},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_converted_model_computes_the_same(options):
    adm = trained(**options).double()
    images, labels = noisy_images().double(), torch.tensor([2, 0, 1]) if "num_classes" in options else None
    expected = adm(images, TIMESTEPS, labels)
    output = converted(adm, options)(images, TIMESTEPS, labels).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_every_weight_matters():
    """The comparison above would notice any single tensor that is lost or exchanged."""
    options = {"num_classes": 3}
    adm, image, label = trained(**options).double(), noisy_images()[:1].double(), torch.tensor([2])
    unet = converted(adm, options)
    expected = unet(image, TIMESTEPS[:1], label).sample
    for name, parameter in unet.named_parameters():
        if name.startswith("feature_head.") or name.endswith("to_k.bias"):  # softmax ignores the bias of k
            continue
        kept = parameter.clone()
        parameter.copy_(parameter.flatten().roll(1).view_as(parameter))
        assert (unet(image, TIMESTEPS[:1], label).sample - expected).abs().max() > 1e-6, name
        parameter.copy_(kept)


@torch.no_grad()
def test_folded_labels_are_the_mean_class():
    options = {"num_classes": 7}
    adm, images = trained(**options), noisy_images()
    unet = converted(adm, options, keep_labels=False)
    adm.label_emb.weight.copy_(adm.label_emb.weight.mean(dim=0).expand(7, -1))
    expected = adm(images, TIMESTEPS, torch.tensor([5, 1, 0]))
    torch.testing.assert_close(unet(images, TIMESTEPS).sample, expected, rtol=0, atol=1e-5)
    several = JointUNet2DModel.from_unet(unet, num_class_embeds=2)
    torch.testing.assert_close(several(images, TIMESTEPS, torch.tensor([0, 1, 1])).sample, expected, rtol=0, atol=1e-5)


# The released models

RELEASED = {
    "64x64_diffusion": (192, (1, 2, 3, 4), 3, (1, 2, 3), 1000),
    "128x128_diffusion": (256, (1, 1, 2, 3, 4), 2, (2, 3, 4), 1000),
    "256x256_diffusion": (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 1000),
    "256x256_diffusion_uncond": (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), None),
    "512x512_diffusion": (256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), 1000),
}
# Published by Dhariwal & Nichol 2021, in millions; for the unconditional model that of LSUN, which has its architecture.
PUBLISHED_SIZES = {
    "64x64_diffusion": 296,
    "128x128_diffusion": 422,
    "256x256_diffusion": 554,
    "256x256_diffusion_uncond": 552,
    "512x512_diffusion": 559,
}


def released(name: str) -> dict[str, torch.Tensor]:
    """State dict of a released model, without storage."""
    channels, mult, blocks, attention, classes = RELEASED[name]
    with torch.device("meta"):
        return Adm(channels, mult, blocks, attention, classes, num_head_channels=64).state_dict()


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_convert_without_options_and_have_their_published_size(name):
    config, weights = convert_adm_state_dict(released(name))
    assert abs(sum(tensor.numel() for tensor in weights.values()) / 1e6 - PUBLISHED_SIZES[name]) < 1
    assert config["num_class_embeds"] == RELEASED[name][-1]


def test_configuration_of_the_papers_checkpoint():
    config, weights = convert_adm_state_dict(released("256x256_diffusion"))
    assert sum(tensor.numel() for tensor in weights.values()) == 553_838_086
    assert config["block_out_channels"] == (256, 256, 512, 512, 1024, 1024)
    assert config["down_block_types"] == ("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3
    assert config["up_block_types"] == ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3
    assert (config["downsample_type"], config["upsample_type"]) == ("resnet", "resnet")
    assert (config["layers_per_block"], config["attention_head_dim"], config["num_attention_heads"]) == (2, 64, None)
    assert config["resnet_time_scale_shift"] == "scale_shift" and config["num_class_embeds"] == 1000
    assert (config["time_embedding_dim"], config["time_proj_dim"]) == (1024, 256)


@pytest.mark.parametrize(
    ("name", "heads"), [("64x64_diffusion", 12), ("128x128_diffusion", 4), ("256x256_diffusion", 16), ("512x512_diffusion", 16)]
)
def test_heads_of_the_released_models(name, heads):
    with torch.device("meta"):
        unet = JointUNet2DModel(**convert_adm_state_dict(released(name))[0])
    assert unet.mid_block.attentions[0].heads == heads


# Files and refusals


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("adm") / "small.pt"
    torch.save(trained(num_classes=4).state_dict(), path)
    return path


def test_command_writes_a_unet_that_loads(checkpoint, tmp_path, capsys):
    main([str(checkpoint), "--output", str(tmp_path / "adm"), "--num_head_channels", "16"])
    assert "M parameters" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "adm").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "tensors.json",
    ]
    expected = converted(trained(num_classes=4), {}, keep_labels=False)
    loaded = JointUNet2DModel.from_pretrained(tmp_path / "adm").eval()
    images = noisy_images()
    torch.testing.assert_close(loaded(images, 20).sample, expected(images, 20).sample, rtol=0, atol=1e-5)
    assert (loaded(images, 20).features == 0).all()


def test_labels_are_kept_on_request_and_half_precision_is_widened(checkpoint, tmp_path):
    half = {name: tensor.half() for name, tensor in torch.load(checkpoint, weights_only=True).items()}
    torch.save(half, tmp_path / "half.pt")
    main([str(tmp_path / "half.pt"), "--output", str(tmp_path / "adm"), "--num_heads", "2", "--keep_labels"])
    weights = JointUNet2DModel.from_pretrained(tmp_path / "adm").state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(weights["class_embedding.weight"], half["label_emb.weight"].float())


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("code of the file was run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Harmful()), "damaged, or holds more than tensors"),
        (b"no checkpoint", "damaged, or holds more than tensors"),
        (b"", "damaged, or holds more than tensors"),
        ({"weight": 1.0}, "not a state dict of tensors"),
        ({"time_embed.0.weight": torch.zeros(4, 1), "out.0.weight": torch.zeros(4)}, "not a diffusion model"),
        (trained(out_channels=3).state_dict(), "maps 3 to 3 channels"),
        (trained(in_channels=6).state_dict(), "maps 6 to 6 channels"),
        (trained().state_dict(), "say how its attention heads are split"),
    ],
)
def test_wrong_files_are_refused(content, message, tmp_path, capsys):
    path = tmp_path / "wrong.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(SystemExit):
        main([str(path), "--output", str(tmp_path / "adm")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "adm").exists()


def test_existing_output_and_missing_input_are_refused(checkpoint, tmp_path, capsys):
    for arguments, message in (
        ([str(checkpoint), "--output", str(tmp_path)], "exists already"),
        ([str(tmp_path / "none.pt"), "--output", str(tmp_path / "adm")], "none.pt: no such file"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "key", ["input_blocks.1.0.in_layers.0.weight", "input_blocks.3.1.qkv.bias", "time_embed.2.bias", "out.2.bias"]
)
def test_missing_key_is_named(key):
    state_dict = trained().state_dict()
    del state_dict[key]
    with pytest.raises(ValueError, match=key):
        convert_adm_state_dict(state_dict, AttentionLayout(16))


def test_unknown_key_and_wrong_shape_are_named():
    state_dict = trained().state_dict()
    with pytest.raises(ValueError, match="unknown keys.*input_blocks.1.0.extra.weight"):
        convert_adm_state_dict(state_dict | {"input_blocks.1.0.extra.weight": torch.zeros(1)}, AttentionLayout(16))
    with pytest.raises(ValueError, match="middle_block.0.in_layers.2.weight has shape"):
        convert_adm_state_dict(state_dict | {"middle_block.0.in_layers.2.weight": torch.zeros(1, 1, 3, 3)}, AttentionLayout(16))


@pytest.mark.parametrize(
    "layout", [AttentionLayout(48), AttentionLayout(num_heads=3), AttentionLayout(num_heads=3, new_order=True)]
)
def test_heads_that_do_not_divide_the_channels_are_refused(layout):
    with pytest.raises(ValueError, match="128 attention channels do not split into equal heads"):
        convert_adm_state_dict(trained().state_dict(), layout)


# Training from it


@pytest.fixture(scope="module")
def converted_folder(checkpoint):
    folder = checkpoint.parent / "adm"
    main([str(checkpoint), "--output", str(folder), "--num_head_channels", "16"])
    return folder


def test_paper_preset_trains_from_a_converted_checkpoint(converted_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # many small operations: threads would only wait for each other
    data = tmp_path / "data"
    data.mkdir()
    for i, image in enumerate(smooth_images(8, seed=0)):
        image.save(data / f"{i}.png")
    # The paper's recipe but for what needs a network, a GPU or its size.
    small = [
        "--extractor",
        "lite0",
        "--levels",
        "[2]",
        "--feature_stride",
        "8",
        "--mixed_precision",
        "no",
        "--gaussian_dims",
        "null",
    ]
    small += ["--resolution", "16", "--unet", "{feature_block: 1}", "--max_train_steps", "1", "--report_to", "none"]
    options = ["--config", "paper", "--pretrained_unet", str(converted_folder), "--data", str(data)]
    train.main(parse_config([*options, *small, "--output_dir", str(tmp_path / "model")]))
    pipe = DiffADPipeline.from_pretrained(tmp_path / "model")
    assert pipe.unet.config.block_out_channels == [64, 128] and pipe.unet.config.sample_size == 16
    before = load_file(converted_folder / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert after["feature_head.conv.weight"].shape[0] == pipe.feature_extractor.config.channels
    moved = (after["conv_in.weight"] - before["conv_in.weight"]).abs().max()
    assert 0 < moved < 1e-3
    assert len(pipe(smooth_images(2, seed=9)).image_scores) == 2


def test_trained_joint_model_can_be_trained_further(converted_folder):
    config = TrainingConfig(pretrained_unet=str(converted_folder), resolution=32, unet={"dropout": 0.1, "feature_block": 0})
    unet = build_unet(config, feature_channels=9)
    assert (unet.config.feature_channels, unet.config.dropout, unet.feature_block_index) == (9, 0.1, 0)
    with pytest.raises(DataError, match="pretrained_unet=.*block_out_channels.*do not fit.*down_blocks.1"):
        build_unet(TrainingConfig(pretrained_unet=str(converted_folder), unet={"block_out_channels": [64, 64]}), 9)
