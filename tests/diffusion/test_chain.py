"""ReverseChain: constants by Bayes' rule, and nothing that happens to the scheduler later reaches them."""

import numpy as np
import pytest
import torch
from bayes_reference import FULL, LINEAR, RESPACED, exact_step
from diffad.diffusion.chain import ReverseChain, check_scheduler
from diffusers import DDIMScheduler, DDPMScheduler


def make_scheduler(**config) -> DDPMScheduler:
    return DDPMScheduler(**{"variance_type": "learned_range", "timestep_spacing": "linspace", **config})


def assert_single_precision_of(step, expected) -> None:
    """Float32 with an error of rounding: 1e-6 of the constants, and of the variances that logarithms stand for."""
    for name in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar", "x0_coefficient", "xt_coefficient"):
        actual = getattr(step, name)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), getattr(expected, name), rtol=1e-6, atol=1e-12)
    for name in ("log_beta", "log_posterior_variance"):
        torch.testing.assert_close(getattr(step, name).double(), getattr(expected, name), rtol=0, atol=1e-6)
    assert torch.equal(step.is_first, expected.is_first)


@pytest.mark.parametrize(("num_steps", "expected"), [(None, FULL), (1000, FULL), (250, RESPACED)])
def test_constants_of_every_step_match_bayes_rule_on_the_linear_schedule(num_steps, expected):
    chain = ReverseChain(make_scheduler(), num_steps)
    assert chain.timesteps == expected[::-1]
    assert_single_precision_of(chain.step(torch.tensor(expected)), exact_step(expected, expected))


@pytest.mark.parametrize(
    ("num_steps", "config"),
    [
        (50, {"timestep_spacing": "leading", "steps_offset": 1}),
        (10, {"timestep_spacing": "trailing"}),
        (40, {"beta_schedule": "squaredcos_cap_v2"}),
        (20, {"num_train_timesteps": 400, "beta_end": 0.05}),
        (2, {}),
    ],
)
def test_constants_match_bayes_rule_on_other_schedules(num_steps, config):
    scheduler = make_scheduler(**config)
    alpha_bar = np.cumprod(1 - scheduler.betas.double().numpy())
    chain = ReverseChain(scheduler, num_steps)
    scheduler.set_timesteps(num_steps)
    assert list(chain.timesteps) == scheduler.timesteps.tolist()
    ascending = chain.timesteps[::-1]
    assert_single_precision_of(chain.step(torch.tensor(ascending)), exact_step(ascending, ascending, alpha_bar))


@pytest.mark.parametrize(("timestep", "noise_std"), [(20, 0.079), (201, 0.589), (401, 0.899)])
def test_paper_timesteps_are_in_the_respaced_chain(timestep, noise_std):
    step = ReverseChain(make_scheduler(), 250).step(torch.tensor(timestep))
    assert step.sqrt_one_minus_alpha_bar.item() == pytest.approx(noise_std, abs=5e-4)


def test_paper_timesteps_are_steps_5_50_100_of_the_respaced_chain():
    ascending = ReverseChain(make_scheduler(), 250).timesteps[::-1]
    assert [ascending[i] for i in (5, 50, 100)] == [20, 201, 401]


@pytest.mark.parametrize("num_steps", [None, 250])
def test_first_step_returns_the_predicted_image_and_borrows_the_next_variance(num_steps):
    chain = ReverseChain(make_scheduler(), num_steps)
    first, second = (chain.step(torch.tensor(chain.timesteps[i])) for i in (-1, -2))
    assert first.is_first.item() and not second.is_first.item()
    assert (first.x0_coefficient.item(), first.xt_coefficient.item()) == (pytest.approx(1, abs=1e-7), 0)
    assert first.log_beta.exp().item() == pytest.approx(1e-4, rel=1e-6)
    assert first.log_posterior_variance.item() == second.log_posterior_variance.item()


def test_each_batch_entry_gets_the_constants_of_its_own_timestep():
    chain = ReverseChain(make_scheduler())
    timesteps = torch.tensor([401, 0, 999, 20, 401])
    together = chain.step(timesteps)
    for name in together._fields:
        assert getattr(together, name).shape == (5, 1, 1, 1)
        alone = [getattr(chain.step(t), name).item() for t in timesteps]
        assert getattr(together, name).flatten().tolist() == alone


def test_one_timestep_for_all_images_broadcasts():
    chain = ReverseChain(make_scheduler())
    for timestep in (torch.tensor(20), torch.tensor([20])):
        assert chain.step(timestep).log_beta.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("num_steps", "timestep"),
    [(250, 5), (250, 1000), (250, -1), (None, 1000), (None, -1), (None, -1000), (None, 1999), (None, 2000), (None, -2001)],
)
def test_timestep_off_the_chain_is_never_looked_up(num_steps, timestep):
    chain = ReverseChain(make_scheduler(), num_steps)
    for timesteps in (torch.tensor(timestep), torch.tensor([0, timestep])):
        with pytest.raises(IndexError):
            chain.step(timesteps)


@pytest.mark.parametrize(
    ("num_steps", "length", "timestep"), [(250, 250, 5), (250, 250, 1000), (None, 1000, 1000), (None, 1000, -1)]
)
def test_timestep_off_the_chain_is_refused_by_name(num_steps, length, timestep):
    chain = ReverseChain(make_scheduler(), num_steps)
    chain.check_timesteps((0, 20, 201, 401) if num_steps else range(1000))
    with pytest.raises(ValueError, match=rf"\[{timestep}\] are not in the chain of {length} steps"):
        chain.check_timesteps((0, timestep))


@pytest.mark.parametrize("num_steps", [1, 0, -5, 1001])
def test_chain_of_impossible_length_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_inference_steps must lie in 2..1000, got {num_steps}"):
        ReverseChain(make_scheduler(), num_steps)


@pytest.mark.parametrize(
    "config", [{"prediction_type": "v_prediction"}, {"variance_type": "fixed_small"}, {"variance_type": "learned"}]
)
def test_schedulers_that_the_score_does_not_know_are_refused(config):
    for refuse in (check_scheduler, ReverseChain):
        with pytest.raises(ValueError, match=f"scheduler: {next(iter(config))} '{next(iter(config.values()))}' is not"):
            refuse(make_scheduler(**config))
    with pytest.raises(ValueError, match="variance_type None is not"):
        check_scheduler(DDIMScheduler())
    check_scheduler(make_scheduler(prediction_type="sample"))


def test_nothing_done_to_the_scheduler_changes_the_chain_nor_the_reverse():
    scheduler = make_scheduler()
    scheduler.set_timesteps(10)
    chain = ReverseChain(scheduler, 250)
    assert scheduler.num_inference_steps == 10 and len(scheduler.timesteps) == 10
    expected = {name: values.clone() for name, values in chain.named_buffers()}
    scheduler.set_timesteps(77)
    scheduler.betas.fill_(0.5)
    scheduler.alphas_cumprod.fill_(0.5)
    assert all(torch.equal(values, expected[name]) for name, values in chain.named_buffers())
    assert chain.timesteps == RESPACED[::-1]
    # A chain made from it now is the one its configuration says, too.
    assert torch.equal(ReverseChain(scheduler, 250).log_beta, chain.log_beta)


def test_default_device_and_dtype_do_not_matter():
    expected = ReverseChain(make_scheduler(), 250)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            chain = ReverseChain(make_scheduler(), 250, device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    for name, values in chain.named_buffers():
        assert values.dtype == getattr(expected, name).dtype
        torch.testing.assert_close(values, getattr(expected, name), rtol=1e-6, atol=1e-6)


def test_chain_is_on_the_device_it_is_made_for():
    assert {values.device.type for values in ReverseChain(make_scheduler(), 250, device="meta").buffers()} == {"meta"}


def test_the_reference_is_the_linear_schedule_of_the_paper():
    assert LINEAR[[0, -1]] == pytest.approx([1 - 1e-4, 4.036e-5], rel=1e-3)
