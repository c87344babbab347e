"""Shifted frames around images, against convolutions that know no border and a loop over blocks."""

import pytest
import torch
import torch.nn.functional as F
from diffad.repair.cycle_spinning import cycle_spin
from scipy.ndimage import uniform_filter


@pytest.fixture
def images():
    return torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(("spins", "passes"), [(1, 1), (3, 3), (8, 8), (9, 8)])
def test_frames_have_the_strides_size_more_and_nothing_is_moved(images, spins, passes):
    seen = []

    def denoise(frame):
        seen.append(tuple(frame.shape))
        return frame

    torch.testing.assert_close(cycle_spin(denoise, images, 8, spins), images, rtol=0, atol=1e-12)
    assert len(seen) == passes and set(seen) == {(2, 3, 20, 28)}


def test_a_convolution_that_pads_with_zeros_sees_the_image_mirrored_beyond_its_border(images):
    def blur(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1)

    expected = uniform_filter(images.numpy(), size=(1, 1, 3, 3), mode="mirror")
    spun = cycle_spin(blur, images, 4, 1)
    torch.testing.assert_close(spun, torch.from_numpy(expected), rtol=0, atol=1e-12)
    assert (blur(images) - spun).abs()[..., 0].min() > 1e-6  # without a frame the border differs


def test_shifts_average_over_all_places_of_a_grid_of_blocks(images):
    def blocks(x):
        return F.avg_pool2d(x, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)

    spun = cycle_spin(blocks, images, 4, 4)
    mirrored = F.pad(images, (4, 4, 4, 4), mode="reflect")
    for row, column in [(0, 0), (5, 7), (11, 19)]:
        total = torch.zeros(2, 3, dtype=torch.float64)
        for shift in range(-2, 2):
            # The block of the frame, whose first pixel is -(2 + shift) of the image, that holds the pixel.
            top = (row + 2 + shift) // 4 * 4 - (2 + shift) + 4
            left = (column + 2 + shift) // 4 * 4 - (2 + shift) + 4
            total += mirrored[..., top : top + 4, left : left + 4].mean(dim=(2, 3))
        torch.testing.assert_close(spun[..., row, column], total / 4)
