"""The shape in which a model sees images: squares, or rectangles with the aspect of long images."""

import json

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad_training import train
from diffad_training.aspect import common_aspect_ratio, square_crops, with_aspect_ratio
from diffad_training.conversion import SettingsError
from PIL import Image
from tiny_training import COMPLETE, save_images, tiny_config


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        ([(1024, 256)] * 3, 4.0),
        ([(300, 750), (300, 770), (310, 750)], 0.4),
        ([(2000, 100)], 4.0),  # no longer than 4:1
        ([(140, 100)] * 3, 1.0),  # hardly longer than wide
        ([(1024, 256), (1024, 256), (512, 256)], 1.0),  # not alike
        ([(256, 256)], 1.0),
    ],
)
def test_long_images_that_are_alike_keep_their_aspect(sizes, ratio):
    assert common_aspect_ratio(sizes) == pytest.approx(ratio, abs=2e-3)


@pytest.mark.parametrize(
    ("ratio", "size"), [(1, (256, 256)), (1.05, (256, 256)), (4, (256, 1024)), (0.4, (640, 256)), (1.55, (256, 384))]
)
def test_shorter_side_has_the_resolution_and_the_longer_one_is_a_multiple_of_32(ratio, size, tmp_path):
    config = tiny_config(tmp_path, tmp_path, resolution=256, aspect_ratio=ratio)
    assert config.image_size == size and config.grid == (size[0] // 8, size[1] // 8)
    assert config.is_square == (size == (256, 256)) == config.keeps_moments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aspect_ratio": 0}, "aspect_ratio: must be a number from 0.25 to 4 or auto, got 0"),
        ({"aspect_ratio": "wide"}, "aspect_ratio: must be a number from 0.25 to 4 or auto, got 'wide'"),
        ({"aspect_ratio": 2, "unet": {}}, "aspect_ratio: long images are trained on in square crops"),
        ({"aspect_ratio": 2, "resolution": 96, "feature_stride": 12}, "aspect_ratio: long images need a feature_stride"),
        ({"aspect_ratio": 2, "short_side": 64, "shared_gaussian": True}, "aspect_ratio: tiles are squares"),
        ({"aspect_ratio": 2, "augmentations": ["rot90"]}, "aspect_ratio: only squares can be turned"),
    ],
)
def test_aspects_that_can_not_be_are_refused(changes, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        tiny_config(tmp_path, tmp_path, **changes)


@pytest.mark.parametrize("changes", [{"short_side": 64, "shared_gaussian": True}, {"augmentations": ["rot90"]}])
def test_auto_is_a_square_where_nothing_else_can_be(changes, tmp_path):
    config = tiny_config(tmp_path / "not read", tmp_path, aspect_ratio="auto", **changes)
    assert with_aspect_ratio(config).aspect_ratio == 1


@pytest.mark.parametrize("is_tall", [False, True])
def test_crops_are_squares_of_images_and_of_the_features_at_the_same_place(is_tall):
    batch, side, longer, stride = 40, 64, 192, 8
    images = torch.rand(batch, 3, side, longer)
    features = images.unfold(2, stride, stride).unfold(3, stride, stride).mean(dim=(4, 5))  # (B, 3, 8, 24)
    if is_tall:
        images, features = images.transpose(2, 3), features.transpose(2, 3)
    cut_images, cut_features = square_crops(images, features, 32, torch.Generator().manual_seed(0))
    assert cut_images.shape == (batch, 3, side, side) and cut_features.shape == (batch, 3, side // stride, side // stride)
    torch.testing.assert_close(cut_features, torch.nn.functional.avg_pool2d(cut_images, stride))
    found = set()
    for image, crop in zip(images, cut_images, strict=True):
        places = range(0, longer - side + 1, 32)
        parts = [image[:, p : p + side] if is_tall else image[:, :, p : p + side] for p in places]
        (place,) = [p for p, part in zip(places, parts, strict=True) if torch.equal(part, crop)]
        found.add(place)
    assert found == set(range(0, longer - side + 1, 32))


def test_squares_are_not_cropped():
    images, features = torch.rand(2, 3, 32, 32), torch.rand(2, 5, 4, 4)
    assert all(a is b for a, b in zip(square_crops(images, features, 32), (images, features), strict=True))


def test_model_of_long_images_scores_and_repairs_them_whole(tmp_path, capsys):
    square = save_images(tmp_path / "square")
    (tmp_path / "long").mkdir()
    paths = sorted(square.iterdir())
    for path, other in zip(paths, [*paths[1:], paths[0]], strict=True):
        joined = np.concatenate([np.array(Image.open(path)), np.array(Image.open(other))], axis=1)  # (32, 64, 3)
        Image.fromarray(joined).save(tmp_path / "long" / path.name)
    train.main(tiny_config(tmp_path / "long", tmp_path / "model", aspect_ratio="auto", **COMPLETE))
    assert "images keep their aspect: the model sees 64 x 32 pixels" in capsys.readouterr().out
    assert json.loads((tmp_path / "model" / "training_config.json").read_text())["aspect_ratio"] == 2
    pipe = DiffADPipeline.from_pretrained(tmp_path / "model")
    assert pipe.image_size == (32, 64) and tuple(pipe.gaussian.config.grid) == (4, 8)
    image = Image.open(tmp_path / "long" / paths[0].name)
    for profile in ("fast", "balanced", "best", "gaussian"):
        assert pipe(image, profile=profile).anomaly_maps[0].shape == (32, 64)
    assert pipe.reconstruct(image).images[0].size == image.size  # with the references, which are long, too
