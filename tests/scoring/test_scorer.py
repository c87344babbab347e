"""Scorer: one graph without decisions on data, which can be exported and compiled; images of a batch do not meet."""

import io

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.scoring.config import TERMS
from tiny_pipeline import SIZE, category_images, smooth_images, tiled_pipeline, tiny_pipeline
from torch._dynamo.testing import CompileCounterWithBackend

NAMES = ("nut", "bolt", "washer")


def pipeline_of(kind: str) -> DiffADPipeline:
    pipe = {"categories": lambda: tiny_pipeline(NAMES), "tiles": tiled_pipeline}.get(kind, tiny_pipeline)()
    if kind == "categories":
        images = [image for label in range(3) for image in category_images(5, 4, label)]
        names = [name for name in NAMES for _ in range(5)]
        pipe.calibrate(images, categories=names, smoothing_sigma=1.0, timesteps=(20,))
    elif kind == "tiles":
        pipe.calibrate(smooth_images(4, seed=4, size=(2 * SIZE, 2 * SIZE)), short_side=2 * SIZE, top_k=3, timesteps=(20,))
    elif kind == "region, standardised per image":
        inside = np.zeros((SIZE, SIZE), dtype=bool)
        inside[:, SIZE // 2 :] = True
        settings = {"per_image": True, "standardized_terms": ("kl",), "weights": {"kl": 0.5, "feature": 0.5}}
        pipe.calibrate(smooth_images(5, seed=4), roi=inside, top_k=5, timesteps=(401,), **settings)
    else:
        pipe.calibrate(smooth_images(5, seed=4), weights=dict.fromkeys(TERMS, 0.2), timesteps=(20, 401))
    return pipe


def random_batch(count: int, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_same_score(actual, expected) -> None:
    assert torch.equal(actual.image_scores, expected.image_scores)
    assert torch.equal(actual.anomaly_maps, expected.anomaly_maps)
    assert list(actual.term_maps) == list(expected.term_maps)
    assert all(torch.equal(actual.term_maps[name], expected.term_maps[name]) for name in expected.term_maps)


@pytest.fixture(scope="module")
def pipe():
    return pipeline_of("one")


@pytest.fixture(scope="module")
def of_categories():
    return pipeline_of("categories")


# Export


@torch.no_grad()
@pytest.mark.parametrize("kind", ["one", "region, standardised per image"])
def test_exported_scorer_of_any_batch_size_gives_equal_results(kind):
    scorer = pipeline_of(kind).scorer
    batch = torch.export.Dim("batch", max=63)
    exported = torch.export.export(scorer, (random_batch(3),), dynamic_shapes={"images": {0: batch}}).module()
    for count in (1, 2, 5):
        assert_same_score(exported(random_batch(count, seed=count)), scorer(random_batch(count, seed=count)))


@torch.no_grad()
def test_exported_scorer_of_several_categories_takes_any_mixture(of_categories):
    scorer, batch = of_categories.scorer, torch.export.Dim("batch", max=63)
    arguments = random_batch(3), torch.tensor([0, 1, 2])
    shapes = {"images": {0: batch}, "category": {0: batch}}
    exported = torch.export.export(scorer, arguments, dynamic_shapes=shapes).module()
    for category in ([2, 2, 0, 1, 0], [1, 1], [0, 2, 1]):
        images, category = random_batch(len(category)), torch.tensor(category)
        assert_same_score(exported(images, category), scorer(images, category))


@torch.no_grad()
def test_exported_scorer_of_tiles_gives_equal_results():
    scorer, size = pipeline_of("tiles").scorer, (2 * SIZE, SIZE)  # three tiles
    in_parts = {"tiles_per_pass": 2}
    exported = torch.export.export(scorer, (random_batch(2, size),), in_parts).module()
    assert_same_score(exported(random_batch(2, size, seed=1), **in_parts), scorer(random_batch(2, size, seed=1), **in_parts))


@torch.no_grad()
def test_saved_export_with_all_terms_and_one_category_for_all_gives_equal_results(of_categories):
    file, scorer = io.BytesIO(), of_categories.scorer
    torch.export.save(torch.export.export(scorer, (random_batch(2), torch.tensor([1])), {"terms": TERMS}), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    expected = scorer(random_batch(2, seed=1), torch.tensor([2]), TERMS)
    assert list(expected.term_maps) == of_categories.calibration.term_map_names
    assert_same_score(loaded(random_batch(2, seed=1), torch.tensor([2]), terms=TERMS), expected)


# Compilation


@torch.no_grad()
def test_one_graph_of_the_denoiser_serves_all_timesteps(pipe):
    torch._dynamo.reset()
    counter, denoiser, images = CompileCounterWithBackend("aot_eager"), pipe.scorer.denoiser, random_batch(2)
    compiled = torch.compile(denoiser, backend=counter, fullgraph=True)
    for t in (20, 201, 401, 0, 16):
        for actual, expected in zip(compiled(images, torch.tensor([t])), denoiser(images, torch.tensor([t])), strict=True):
            assert torch.equal(actual, expected)
    assert counter.frame_count == 1
    step = torch.compile(denoiser.reverse_step, backend=counter, fullgraph=True)
    for t in (20, 201, 401, 0, 16):
        assert torch.equal(step(images, torch.tensor([t])), denoiser.reverse_step(images, torch.tensor([t])))
    assert counter.frame_count == 2


@torch.no_grad()
def test_one_graph_of_the_scorer_serves_all_mixtures_of_categories(of_categories):
    torch._dynamo.reset()
    counter, scorer = CompileCounterWithBackend("aot_eager"), of_categories.scorer
    compiled = torch.compile(scorer, backend=counter, fullgraph=True)
    for category in ([0, 1, 2], [2, 2, 2], [1, 0, 0]):
        images, category = random_batch(3, seed=category[0]), torch.tensor(category)
        assert_same_score(compiled(images, category), scorer(images, category))
    assert counter.frame_count == 1


# Batches


@torch.no_grad()
def test_batch_of_mixed_categories_equals_one_by_one(of_categories):
    scorer, images, category = of_categories.scorer, random_batch(6), torch.tensor([0, 2, 1, 1, 0, 2])
    together = scorer(images, category, TERMS)
    for i in range(6):
        alone = scorer(images[i : i + 1], category[i : i + 1], TERMS)
        torch.testing.assert_close(together.image_scores[i], alone.image_scores[0], rtol=1e-4, atol=1e-4)
        for name, term_map in alone.term_maps.items():
            torch.testing.assert_close(together.term_maps[name][i], term_map[0], rtol=1e-3, atol=1e-3)
    for label in range(3):  # each selects another score
        of_label = scorer(images, torch.tensor([label]), TERMS).image_scores
        torch.testing.assert_close(of_label[category == label], together.image_scores[category == label], rtol=1e-4, atol=1e-4)
        assert not torch.isclose(of_label[category != label], together.image_scores[category != label], rtol=1e-3).any()


@torch.no_grad()
def test_terms_that_are_asked_for_do_not_change_the_others(pipe):
    images = random_batch(2)
    everything = pipe.scorer.raw_term_maps(images)
    assert list(everything) != [] and set(everything) == set(pipe.calibration.term_map_names)
    for term in TERMS:
        maps = pipe.scorer.raw_term_maps(images, terms=(term,))
        assert {name.partition("@")[0] for name in maps} == {term}
        assert all(torch.equal(maps[name], everything[name]) for name in maps)


@torch.no_grad()
def test_tiles_do_not_depend_on_how_many_go_through_at_a_time():
    scorer, images = pipeline_of("tiles").scorer, random_batch(2, (2 * SIZE, 3 * SIZE))
    expected = scorer(images, tiles_per_pass=100)
    for tiles_per_pass in (1, 4):
        actual = scorer(images, tiles_per_pass=tiles_per_pass)
        torch.testing.assert_close(actual.anomaly_maps, expected.anomaly_maps, rtol=1e-3, atol=1e-3)
