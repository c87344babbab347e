"""Near duplicates: by how near images of a product usually are."""

import pytest
import torch
from diffad.scoring.near_duplicates import descriptors, find_near_duplicates


def described(n: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 300, generator=torch.Generator().manual_seed(seed))


def names(n: int = 40) -> list[str]:
    return [str(i) for i in range(n)]


def test_different_images_are_groups_of_their_own():
    found = find_near_duplicates(described(), names())
    assert len(set(found.groups)) == 40 and (found.distances > found.threshold).all()


def test_changed_copies_are_found_and_chained():
    values = described()
    values[7] = values[3] + 0.1 * values[20]
    values[9] = values[7] - 0.1 * values[21]
    found = find_near_duplicates(values, names())
    assert found.groups[3] == found.groups[7] == found.groups[9]
    assert len(set(found.groups)) == 38 and found.nearest[9] == 7


def test_exact_copies_are_found_even_if_all_have_one():
    values = described(20).repeat(2, 1)
    found = find_near_duplicates(values, names(20) * 2)
    assert (found.groups[:20] == found.groups[20:]).all() and len(set(found.groups)) == 20
    assert (found.distances == 0).all()


def test_descriptors_are_of_at_most_eight_by_eight_positions():
    assert descriptors(torch.ones(2, 3, 32, 32)).shape == (2, 3 * 64)
    assert descriptors(torch.ones(2, 3, 4, 4)).shape == (2, 3 * 16)


def test_two_images_tell_nothing():
    with pytest.raises(ValueError, match="at least 3"):
        find_near_duplicates(described(2), names(2))
