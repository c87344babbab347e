"""Images of good parts that a model holds: what was saved is loaded, by category."""

import pytest
import torch
from diffad import ReferenceImages


@pytest.fixture
def references() -> ReferenceImages:
    references = ReferenceImages((8, 12), (0, 1, 0), turns=True)
    references.images.copy_(torch.arange(3 * 3 * 8 * 12).reshape(3, 3, 8, 12) % 256)
    return references


def test_images_of_a_category_are_in_the_models_range(references):
    assert torch.allclose(references.of_category(0), references.images[[0, 2]] / 127.5 - 1)
    assert torch.equal(references.of_category(1), references.images[[1]].float() / 127.5 - 1)
    one = ReferenceImages((8, 12), (0, 0))
    assert one.of_category(None).shape == (2, 3, 8, 12) and (one.of_category(None) == -1).all()


def test_saved_images_are_8_bits_and_come_back(references, tmp_path):
    references.save_pretrained(tmp_path)
    loaded = ReferenceImages.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert loaded.images.dtype == torch.uint8 and torch.equal(loaded.images, references.images)
    assert loaded.config.turns and tuple(loaded.config.categories) == (0, 1, 0)
    assert references.half().images.dtype == torch.uint8


def test_grey_images_are_stored_once(references):
    grey = ReferenceImages((8, 12), (0, 1, 0), channels=1)
    grey.images.copy_(references.images[:, :1])
    expected = references.images[[0, 2], :1].repeat(1, 3, 1, 1) / 127.5 - 1
    assert torch.allclose(grey.of_category(0), expected)


def test_there_must_be_an_image_of_one_or_three_channels():
    with pytest.raises(ValueError, match="at least one reference image"):
        ReferenceImages((8, 8), ())
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        ReferenceImages((8, 8), (0,), channels=2)
