"""Foreign pieces that are pasted into training images."""

import pytest
import torch
from diffad_training import corruption
from diffad_training.corruption import AREA, corrupt


def batch_of_images(count: int = 16) -> torch.Tensor:
    """Grey images `(B, 3, 48, 64)`, each pixel of another level."""
    levels = torch.rand(count, 1, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return levels.expand(-1, 3, -1, -1).contiguous()


def test_only_drawn_images_are_changed_and_only_in_spots():
    images = batch_of_images(64)
    corrupted = corrupt(images, 0.5, torch.Generator().manual_seed(1))
    assert corrupted.shape == images.shape and corrupted.abs().max() <= 1
    changed = (corrupted != images).any(dim=1)  # (B, H, W)
    shares = changed.float().mean(dim=(1, 2))
    assert 16 < (shares > 0).sum() < 48
    # The area is that of a normal field, which a part of a random grid is only nearly
    assert shares.max() < 3 * AREA[1] and shares[shares > 0].median() > AREA[0]
    assert torch.equal(corrupt(images, 0.0, torch.Generator().manual_seed(1)), images)


def test_pieces_come_from_the_images_of_the_batch(monkeypatch):
    monkeypatch.setattr(corruption, "OPACITY", (1.0, 1.0))
    monkeypatch.setattr(corruption, "OFFSET", 0.0)
    images = batch_of_images()
    corrupted = corrupt(images, 1.0, torch.Generator().manual_seed(1))
    levels = [set(image.flatten().tolist()) for image in images]
    for i, (before, after) in enumerate(zip(images, corrupted, strict=True)):
        pasted = set(after[0][after[0] != before[0]].tolist())
        assert not pasted or any(pasted <= of_image for of_image in levels), i
    assert not torch.equal(images, corrupted)


@pytest.mark.parametrize("is_coloured", [False, True])
def test_grey_images_stay_grey(is_coloured):
    images = batch_of_images(64)
    images[:32, 0] = images[:32, 0].roll(1, dims=1)  # half of them coloured
    corrupted = corrupt(images[:32] if is_coloured else images[32:], 1.0, torch.Generator().manual_seed(1))
    added = corrupted - (images[:32] if is_coloured else images[32:])
    is_tinted = (added[:, 1] - added[:, 2]).abs().amax(dim=(1, 2)) > 1e-6
    assert is_tinted.any() == is_coloured


def test_same_seed_corrupts_alike():
    images = batch_of_images()
    first, second, third = (corrupt(images, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, third)
