"""Does the invariance matrix hold where it is promised, and would each cell see its promise broken?"""

import pytest

from tests import invariance


@pytest.fixture(scope="module")
def base():
    return invariance.plain(invariance.lm("llama"))


@pytest.mark.parametrize("cell", invariance.CELLS, ids=lambda cell: cell.axis)
def test_a_change_that_does_not_matter_leaves_completions(cell, base):
    assert invariance.holds(cell, invariance.compare(base, cell.change(invariance.lm("llama"))))


@pytest.mark.parametrize(
    "cell",
    {cell.breaks: cell for cell in invariance.CELLS}.values(),
    ids=lambda cell: cell.breaks,
)
def test_a_broken_promise_is_seen(cell, base):
    assert not invariance.holds(
        cell, invariance.compare(base, cell.control(invariance.lm("llama")))
    )
