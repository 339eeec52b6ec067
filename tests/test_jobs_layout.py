"""Units hold every image exactly once, whatever the sizes."""

from __future__ import annotations

import pytest

from rcdm_fast.jobs.layout import Layout


@pytest.mark.parametrize("items", [1, 2, 7, 33])
@pytest.mark.parametrize("per", [1, 3, 8, 50])
@pytest.mark.parametrize("limit", [1, 3, 7, 16, 1000])
def test_every_image_once(items: int, per: int, limit: int) -> None:
    layout = Layout(items, per, limit)
    units = [layout.unit(number) for number in range(layout.units)]
    pairs = [pair for unit in units for pair in unit.pairs()]
    assert pairs == [(item, sample) for item in range(items) for sample in range(per)]
    assert all(0 < unit.images <= limit for unit in units)
    assert [unit.number for unit in units] == list(range(layout.units))


def test_items_stay_whole_where_they_fit() -> None:
    unit = Layout(100, 8, 30).unit(1)
    assert (list(unit.items), unit.images) == ([3, 4, 5], 24)
    assert list(unit.pairs(frozenset({3, 5}))) == [(4, sample) for sample in range(8)]


def test_there_is_no_unit_beyond_the_last() -> None:
    with pytest.raises(IndexError):
        Layout(3, 2, 2).unit(3)


@pytest.mark.parametrize(("per", "limit", "sizes"), [(10, 6, [5, 5]), (9, 4, [3, 3, 3]), (12, 7, [6, 6]), (8, 8, [8])])
def test_parts_of_an_item_are_alike(per: int, limit: int, sizes: list[int]) -> None:
    layout = Layout(2, per, limit)
    units = [layout.unit(number) for number in range(layout.units)]
    assert [unit.images for unit in units] == sizes * 2
    assert [unit.first_item for unit in units] == [0] * len(sizes) + [1] * len(sizes)
