"""Windows share out the regions of a large image, with surroundings and inside it, one after the other where they overlap."""

import numpy as np
import pytest
from diffad.repair.windows import in_rounds, repair_windows

SIZE = (32, 32)
MARGIN = 4


def boxes(shape: tuple[int, int], *parts: tuple[int, int, int, int]) -> np.ndarray:
    """A region of rectangles `(top, left, height, width)`."""
    region = np.zeros(shape, dtype=bool)
    for top, left, height, width in parts:
        region[top : top + height, left : left + width] = True
    return region


def random_region(seed: int, shape: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = [(rng.integers(shape[0]), rng.integers(shape[1]), *rng.integers(1, 45, 2)) for _ in range(rng.integers(1, 7))]
    return boxes(shape, *parts)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", [(32, 32), (33, 64), (64, 64), (100, 70), (32, 150)])
def test_every_pixel_of_a_region_is_repaired_in_one_window_and_no_other_pixel(shape, seed):
    region = random_region(seed, shape)
    times = np.zeros(shape, dtype=int)
    for window in repair_windows(region, SIZE, image=3):
        assert window.image == 3 and window.to_repair.shape == SIZE and window.to_repair.any()
        assert 0 <= window.top <= shape[0] - 32 and 0 <= window.left <= shape[1] - 32
        times[window.top : window.top + 32, window.left : window.left + 32] += window.to_repair
    np.testing.assert_array_equal(times, region)


@pytest.mark.parametrize(
    ("part", "corner"),
    [
        ((50, 60, 10, 6), (39, 47)),  # in its middle
        ((0, 0, 5, 5), (0, 0)),  # moved inside at every border
        ((90, 120, 10, 8), (68, 96)),
        ((40, 0, 20, 24), (34, 0)),
    ],
)
def test_region_lies_in_the_middle_of_its_window_as_far_as_the_border_allows(part, corner):
    (window,) = repair_windows(boxes((100, 128), part), SIZE)
    assert (window.top, window.left) == corner


def test_region_larger_than_a_window_is_covered_with_surroundings_by_overlapping_ones():
    region = boxes((120, 120), (30, 40, 50, 8))
    windows = repair_windows(region, SIZE)
    tops = [window.top for window in windows]
    assert tops[0] == 30 - MARGIN and tops[-1] + 32 == 80 + MARGIN and {window.left for window in windows} == {28}
    assert all(0 < step <= 24 for step in np.diff(tops))
    assert [len(one_round) for one_round in in_rounds(windows)] == [1] * len(windows)


def test_small_regions_well_inside_a_window_share_it_and_others_have_their_own():
    region = boxes((96, 96), (40, 40, 8, 8), (36, 52, 3, 3), (44, 57, 3, 3))
    first, second = repair_windows(region, SIZE)  # the third region lies at the first window's end
    assert (first.top, first.left) == (28, 28) and (second.top, second.left) == (29, 42)
    assert first.to_repair.sum() == 64 + 9 and second.to_repair.sum() == 9 and second.to_repair[15:18, 15:18].all()


def test_image_of_a_windows_size_is_one_window_of_all_regions():
    region = boxes(SIZE, (0, 0, 3, 3), (10, 20, 20, 2), (28, 0, 4, 9))
    (window,) = repair_windows(region, SIZE)
    assert (window.top, window.left) == (0, 0)
    np.testing.assert_array_equal(window.to_repair, region)
    assert repair_windows(np.zeros(SIZE, dtype=bool), SIZE) == []


def test_windows_are_in_different_rounds_where_they_overlap_and_only_there():
    region = boxes((200, 200), (20, 20, 8, 8), (150, 150, 8, 8), (30, 100, 60, 8))
    windows = repair_windows(region, SIZE) + repair_windows(region, SIZE, image=1)
    rounds = in_rounds(windows)
    assert sorted(map(id, sum(rounds, []))) == sorted(map(id, windows))
    for number, one_round in enumerate(rounds):
        for window in one_round:
            assert not any(window.overlaps(other) for other in one_round if other is not window)
            assert number == 0 or any(window.overlaps(other) for other in rounds[number - 1])
    assert {(window.image, window.top < 100) for window in rounds[0]} == {(0, True), (0, False), (1, True), (1, False)}
    assert len(rounds) == len([window for window in windows if window.image == 0]) - 2
