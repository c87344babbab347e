import itertools

import pytest
import scipy.stats
import torch
from diffad.diffusion.noise import timestep_noise

SHAPE = (3, 8, 6)


def test_same_arguments_give_the_same_noise_whatever_the_global_state():
    torch.manual_seed(1)
    first = timestep_noise(SHAPE, 20, seed=5)
    torch.manual_seed(2)
    torch.randn(7)
    assert torch.equal(timestep_noise(SHAPE, 20, seed=5), first)


def test_global_random_state_is_left_alone():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    timestep_noise(SHAPE, 20, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_timestep_and_seed_has_its_own_noise():
    draws = [timestep_noise(SHAPE, t, seed) for t in (0, 1, 20, 201, 401, 999) for seed in (0, 1, 2, 19, 20, 2**31)]
    for one, other in itertools.combinations(draws, 2):
        assert not (one == other).any()


@pytest.mark.parametrize("seed", [-1, 2**62])
def test_any_integer_is_a_seed(seed):
    noise = timestep_noise(SHAPE, 20, seed)
    assert torch.equal(timestep_noise(SHAPE, 20, seed), noise)
    assert not torch.equal(timestep_noise(SHAPE, 20, seed=1), noise)


def test_noise_is_standard_normal_and_uncorrelated_between_timesteps():
    draws = [timestep_noise((3, 100, 100), t, seed=0).flatten() for t in (20, 201, 401)]
    for draw in draws:
        assert scipy.stats.kstest(draw.numpy(), "norm").pvalue > 0.01
    assert torch.corrcoef(torch.stack(draws)).fill_diagonal_(0).abs().max() < 0.03


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 1, 1), (3, 256, 256)])
def test_noise_has_the_wanted_shape_in_single_precision_on_the_cpu(shape):
    noise = timestep_noise(shape, 20, seed=0)
    assert (tuple(noise.shape), noise.dtype, noise.device.type) == (shape, torch.float32, "cpu")


def test_default_dtype_does_not_change_the_noise():
    expected = timestep_noise(SHAPE, 20, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        noise = timestep_noise(SHAPE, 20, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, expected)


def test_default_device_does_not_change_the_noise():
    expected = timestep_noise(SHAPE, 20, seed=0)
    with torch.device("meta"):
        noise = timestep_noise(SHAPE, 20, seed=0)
    assert noise.device.type == "cpu"
    assert torch.equal(noise, expected)
