"""Held-out images: chosen by their own names, hardly by the others, in whole groups; recorded names decide over the rule."""

import hashlib
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_folders import FOLDERS
from diffad.data import DataError, Sample, count_groups, split_by_names, split_held_out, training_samples


def names(samples: list[Sample]) -> list[str]:
    return [sample.name for sample in samples]


def grouped(sizes: list[int]) -> list[Sample]:
    """Samples in groups of these sizes, the groups' members apart from each other."""
    samples = [Sample(f"{i}.{g}", lambda: None, group=f"part {g}") for g, size in enumerate(sizes) for i in range(size)]
    return sorted(samples, key=lambda sample: sample.name)


def numbered(count: int) -> list[Sample]:
    return [Sample(str(i), lambda: None) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [4, 5, 10, 101])
def test_split_is_disjoint_complete_and_ordered(count, fraction):
    training, held_out = split_held_out(numbered(count), fraction, seed=0)
    assert sorted(map(int, names(training) + names(held_out))) == list(range(count))
    for part in (training, held_out):
        assert len(part) >= 2
        assert [int(sample.name) for sample in part] == sorted(int(sample.name) for sample in part)
    assert len(held_out) == min(max(round(count * fraction), 2), count - 2)


def test_split_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = split_held_out(numbered(100), 0.2, seed=3)
    state = torch.manual_seed(2).get_state()
    second = split_held_out(numbered(100), 0.2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    other = split_held_out(numbered(100), 0.2, seed=4)
    assert names(first[1]) == names(second[1]) != names(other[1])


def test_split_draws_every_image_alike():
    counts = np.zeros(10)
    for seed in range(500):
        for sample in split_held_out(numbered(10), 0.3, seed)[1]:
            counts[int(sample.name)] += 1
    np.testing.assert_allclose(counts / 500, 0.3, atol=0.1)  # five standard deviations


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images_are_refused(count):
    with pytest.raises(DataError, match=f"only {count} good images.*4"):
        split_held_out(numbered(count), 0.5, seed=0)


def test_rank_is_the_hash_of_seed_and_name():
    def rank(sample):
        return hashlib.blake2b(f"7\0{sample.name}".encode(), digest_size=16).digest()

    samples = numbered(50)
    assert set(names(split_held_out(samples, 0.3, seed=7)[1])) == set(names(sorted(samples, key=rank)[:15]))


def test_the_split_of_a_release_stays():
    """These names would be trained on by a model that was resumed under another rule."""
    assert names(split_held_out(numbered(12), 0.25, seed=0)[1]) == ["2", "5", "10"]


@pytest.mark.parametrize("fraction", [0.15, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_one_more_image_moves_at_most_the_one_at_the_boundary(fraction, seed):
    samples = numbered(60)
    before = set(names(split_held_out(samples, fraction, seed)[1]))
    for new in range(40):
        added = [*samples[:new], Sample(f"new {new}", lambda: None), *samples[new:]]
        after = set(names(split_held_out(added, fraction, seed)[1])) - {f"new {new}"}
        assert len(before ^ after) <= 1


def test_order_of_the_images_does_not_matter():
    samples = numbered(40)
    assert set(names(split_held_out(samples[::-1], 0.3, 1)[1])) == set(names(split_held_out(samples, 0.3, 1)[1]))


def test_accents_stored_apart_are_the_same_name():
    composed = [Sample(f"Gerät {i}.png", lambda: None) for i in range(40)]
    apart = [replace(sample, name=unicodedata.normalize("NFD", sample.name)) for sample in composed]
    held_out = split_held_out(composed, 0.3, 1)[1]
    assert [composed.index(sample) for sample in held_out] == [apart.index(s) for s in split_held_out(apart, 0.3, 1)[1]]
    assert len(split_by_names(apart, names(held_out))[1]) == len(held_out)


def test_names_that_are_not_utf_8_are_split():
    assert len(split_held_out([Sample(f"\udcff{i}", lambda: None) for i in range(8)], 0.5, 0)[1]) == 4


# Groups


@pytest.mark.parametrize("sizes", [[8] * 12, [1, 2, 3, 4, 5, 6, 7], [30, 1, 1, 1, 1, 1], [2, 2], [3, 3, 1], [5, 1, 1, 1]])
@pytest.mark.parametrize("fraction", [0.0, 0.15, 0.5, 1.0])
def test_groups_stay_together_and_either_side_has_enough(sizes, fraction):
    samples = grouped(sizes)
    for seed in range(10):
        training, held_out = split_held_out(samples, fraction, seed)
        assert not {sample.group for sample in training} & {sample.group for sample in held_out}
        assert len(training) + len(held_out) == len(samples) and min(len(training), len(held_out)) >= 2
        if len(sizes) >= 4:
            assert min(count_groups(training), count_groups(held_out)) >= 2


def test_share_of_groups_is_as_near_as_groups_allow():
    for seed in range(20):
        assert len(split_held_out(grouped([4] * 25), 0.2, seed)[1]) == 20
        assert len(split_held_out(grouped([60, *[1] * 60]), 0.2, seed)[1]) == 24  # not the large one


def test_one_more_group_moves_at_most_two(seed=3):
    sizes = [3] * 30
    before = {sample.group for sample in split_held_out(grouped(sizes), 0.2, seed)[1]}
    after = {sample.group for sample in split_held_out(grouped([*sizes, 3]), 0.2, seed)[1]} - {"part 30"}
    assert len(before ^ after) <= 2


def test_one_group_alone_is_refused():
    with pytest.raises(DataError, match="6 good images, all of group 'part 0' .*at least 2 groups"):
        split_held_out(grouped([6]), 0.5, 0)
    with pytest.raises(DataError, match="6 good images in 2 groups, which can't be divided"):
        split_held_out(grouped([5, 1]), 0.5, 0)


def test_images_without_a_group_are_groups_of_their_own():
    samples = [*grouped([4, 4]), *numbered(8)]
    assert count_groups(samples) == 10
    assert count_groups([replace(sample, category=i // 4) for i, sample in enumerate(grouped([4, 4]))]) == 4


def test_own_split_that_divides_a_group_is_refused():
    samples = [replace(sample, held_out=sample.name.startswith("0")) for sample in grouped([3, 3])]
    with pytest.raises(DataError, match=r"group 'part 0' has training and validation images \(0.0, 1.0, 2.0\)"):
        split_held_out(samples, 0.5, 0)


def test_items_of_kolektor_sdd_are_held_out_together(tmp_path):
    training, held_out = split_held_out(training_samples(FOLDERS["KolektorSDD"](tmp_path / "part", items=8)), 0.4, 0)
    assert {sample.group for sample in held_out} == {name.partition("/")[0] for name in names(held_out)}
    assert not {sample.group for sample in held_out} & {sample.group for sample in training}


# Recorded names


def test_recorded_names_decide():
    samples = numbered(20)
    training, held_out = split_by_names(samples, ["7", "3", "15"])
    assert names(held_out) == ["3", "7", "15"] and names(training) == [n for n in names(samples) if n not in ("3", "7", "15")]


def test_images_that_came_later_are_trained_on():
    samples = numbered(20)
    held_out = names(split_held_out(samples, 0.5, 0)[1])
    training, again = split_by_names([*samples, Sample("later", lambda: None)], held_out)
    assert names(again) == held_out and training[-1].name == "later"


def test_missing_recorded_names_are_refused_with_the_first_few():
    with pytest.raises(DataError) as error:
        split_by_names(numbered(5), ["3", "a", "b", "c", "d", "e"])
    assert str(error.value) == (
        "5 of 6 images that the model holds out are not in the data: a, b, c and 2 more; name the data that it was trained on"
    )
