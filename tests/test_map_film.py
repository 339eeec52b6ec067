"""map_film: films of maps against float64, in any batch; what is refused; registration.

Every instruction set: `op_checks.quick_round`.
"""

from __future__ import annotations

import pytest
import torch

from rcdm_fast import ops
from rcdm_fast.ops import reference
from tests import op_checks
from tests.op_checks import map_film_inputs as inputs

SHAPES = {  # images, channels, their height and width, the map's
    "one position a pixel": (3, 16, 8, 8, 8, 8),
    "larger than the map": (5, 32, 16, 16, 3, 5),
    "smaller than the map": (4, 24, 4, 4, 20, 11),
    "channels that fill no vector, one position": (2, 13, 5, 7, 1, 1),
    "one pixel": (2, 3, 1, 1, 6, 6),
}


@pytest.fixture(autouse=True)
def native() -> None:
    ops.load()
    if not any(part.loaded for part in ops.describe() if part.name == "cpu"):
        pytest.skip("no native CPU code")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_numbers(shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    """At most twice the error of plain PyTorch at that dtype."""
    op_checks.check_map_film(shape, dtype)


def test_an_image_is_the_same_in_any_batch_and_with_any_threads() -> None:
    x, *others = inputs(9, 40, 16, 16, 8, 8)
    film, rows, down, across = others
    whole = x.clone()
    torch.ops.rcdm_fast.map_film(whole, *others)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for image in range(9):
            alone = x[image : image + 1].clone(memory_format=torch.channels_last)
            torch.ops.rcdm_fast.map_film(alone, film, rows[image : image + 1].clone(), down, across)
            assert torch.equal(alone[0], whole[image])
    finally:
        torch.set_num_threads(before)


def test_nothing_to_do() -> None:
    x, film, rows, down, across = inputs(2, 8, 4, 4, 3, 3)
    torch.ops.rcdm_fast.map_film(x[:0], film, rows[:0], down, across)


def test_values_that_are_no_numbers_stay_where_they_are() -> None:
    x, film, rows, down, across = inputs(2, 8, 4, 4, 3, 3)
    x[0, 3, 1, 2], x[1, 5, 0, 0] = torch.nan, torch.inf
    torch.ops.rcdm_fast.map_film(x, film, rows, down, across)
    assert x.isfinite().logical_not().nonzero().tolist() in ([[0, 3, 1, 2]], [[0, 3, 1, 2], [1, 5, 0, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, film, rows, down, across: (x.contiguous(), film, rows, down, across), "channels-last"),
        (lambda x, film, rows, down, across: (x.double(), film, rows, down, across), "float32"),
        (lambda x, film, rows, down, across: (x, film[:, :-1], rows, down, across), "film must be float32"),
        (lambda x, film, rows, down, across: (x, film.contiguous(), rows, down, across), "side by side"),
        (lambda x, film, rows, down, across: (x, film.half(), rows, down, across), "film must be float32"),
        (lambda x, film, rows, down, across: (x, film[:, :, :0], rows, down[:, :0], across), "film must be float32"),
        (lambda x, film, rows, down, across: (x, film, rows[:1], down, across), "rows must be int64"),
        (lambda x, film, rows, down, across: (x, film, rows.int(), down, across), "rows must be int64"),
        (lambda x, film, rows, down, across: (x, film, rows, down[:-1], across), "down must be float32"),
        (lambda x, film, rows, down, across: (x, film, rows, down, across.double()), "across must be float32"),
    ],
)
def test_what_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    """By the operator and by its fake, in the same words."""
    given = change(*inputs(2, 8, 4, 6, 3, 5))
    before = given[0].clone()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.rcdm_fast.map_film(*given)
    with pytest.raises((ValueError, TypeError), match=message):
        reference.map_film(*given)
    assert torch.equal(given[0], before)


def test_a_row_out_of_range() -> None:
    x, film, _, down, across = inputs(2, 8, 4, 4, 3, 3)
    for row in (-1, 4):
        with pytest.raises(RuntimeError, match=f"row {row} of image 1 is out of range: film has 4 rows"):
            torch.ops.rcdm_fast.map_film(x, film, torch.tensor([0, row]), down, across)


def test_registration() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.rcdm_fast.map_film.default, inputs(2, 8, 4, 6, 3, 5, dtype=dtype))
