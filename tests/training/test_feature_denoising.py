"""Training of the denoiser of features: reproducible, seeded, better than the mean, and part of the saved model."""

import dataclasses

import pytest
import torch
from diffad import DiffADPipeline
from diffad.diffusion.noise import timestep_noise
from diffad.imaging.tensors import to_model_range
from diffad_training import train
from diffad_training.components import build_extractor, build_feature_denoiser, build_scheduler, check_score
from diffad_training.config import TrainingConfig, feature_denoiser_steps
from diffad_training.conversion import SettingsError
from diffad_training.dataset import CachedDataset, balanced_statistics, build_cache
from diffad_training.feature_denoising import train_feature_denoiser
from diffad_training.good_images import good_samples
from tiny_training import tiny_config


@pytest.fixture(scope="module")
def config(good_images, tmp_path_factory) -> TrainingConfig:
    return tiny_config(good_images, tmp_path_factory.mktemp("features") / "model", learning_rate=1e-2, profiles=["fast"])


@pytest.fixture(scope="module")
def data(config, tmp_path_factory):
    """Extractor and cached features of all good images."""
    extractor, folder = build_extractor(config), tmp_path_factory.mktemp("cache")
    build_cache(good_samples(config), extractor, config.image_size, folder)
    cached = CachedDataset(folder)
    groups = [list(range(len(cached)))]
    extractor.set_statistics(*balanced_statistics(cached.features, groups))
    return extractor, cached, groups


def trained(config: TrainingConfig, data, steps: int = 40):
    extractor, cached, groups = data
    denoiser = build_feature_denoiser(config, extractor.config.channels)
    train_feature_denoiser(denoiser, build_scheduler(config), extractor, cached, groups, config, steps)
    return denoiser


def test_it_learns_what_the_mean_feature_does_not_know(config, data):
    extractor, cached, _ = data
    features = extractor.standardize(torch.from_numpy(cached.features[:]).float())
    wider = dataclasses.replace(config, feature_denoiser={"width": 128, "num_blocks": 1, "fold": 1})
    denoiser = trained(wider, data, steps=250)
    features = denoiser.clean(features, to_model_range(torch.from_numpy(cached.images[:])))
    assert not denoiser.training and not any(p.grad is not None and p.grad.any() for p in denoiser.parameters())
    noise, alpha_bar = timestep_noise(tuple(features.shape[1:]), 100, seed=3), build_scheduler(config).alphas_cumprod[100]
    with torch.no_grad():
        predicted = denoiser(alpha_bar.sqrt() * features + (1 - alpha_bar).sqrt() * noise, torch.tensor([100]))
    assert (predicted - features).square().mean() < 0.7 * features.square().mean()


def test_the_same_seed_trains_the_same_and_another_does_not(config, data):
    first, again, other = (trained(dataclasses.replace(config, seed=seed), data, steps=3) for seed in (0, 0, 1))
    for name, values in first.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)


def test_augmented_images_have_features_of_their_own(config, data):
    plain, flipped = (
        trained(dataclasses.replace(config, augmentations=names), data, steps=4) for names in ([], ["hflip", "vflip"])
    )
    assert not torch.equal(plain.conv_out.weight, flipped.conv_out.weight)


def test_the_saved_model_has_it_where_a_profile_asks_for_it(config):
    train.main(config)
    pipe = DiffADPipeline.from_pretrained(config.output_dir)
    assert "feature_residual" in pipe.scales and "feature_residual" in pipe.calibration_of("fast").config.weights
    assert pipe.feature_denoiser.config.width == 16 and (pipe.feature_denoiser.gaussian.precision > 0).all()
    without = dataclasses.replace(config, profiles=["balanced"], overwrite=True)
    train.main(without)
    assert "feature_residual" not in DiffADPipeline.from_pretrained(config.output_dir).calibration.config.scales


def test_few_images_end_its_training_earlier():
    config = TrainingConfig(data="x", max_train_epochs=10, feature_denoiser_steps=100, train_batch_size=8)
    assert feature_denoiser_steps(config, 20) == 30 and feature_denoiser_steps(config, 500) == 100
    assert feature_denoiser_steps(dataclasses.replace(config, max_train_epochs=None), 20) == 100


@pytest.mark.parametrize(("settings", "reason"), [({"width": 10}, "divisible"), ({"depth": 2}, "unexpected.*depth")])
def test_settings_of_it_are_checked(settings, reason, config):
    with pytest.raises(SettingsError, match=f"feature_denoiser: .*{reason}"):
        build_feature_denoiser(dataclasses.replace(config, feature_denoiser=settings), 20)


def test_its_timestep_must_be_one_of_the_chain(config):
    wrong = dataclasses.replace(config, feature_denoiser={**config.feature_denoiser, "timestep": 1000})
    with pytest.raises(SettingsError, match="feature_denoiser: .*1000"):
        check_score(wrong, build_scheduler(wrong), 20)
