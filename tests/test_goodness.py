"""Does every sampler draw from the distribution that its definition enumerates, and would a small error be seen?"""

import pytest

from tests import goodness

DRAWS = 40_000


@pytest.mark.parametrize("name", goodness.CASES)
def test_draws_fit_the_enumerated_distribution(name):
    settings = goodness.cases()[name]
    exact = goodness.exact(settings)
    assert goodness.fit(goodness.observed(settings, DRAWS), exact) > goodness.ALPHA


@pytest.mark.parametrize("name", ["the model", "top-k", "min-p", "XTC", "all that cut"])
def test_a_temperature_that_is_a_little_off_is_refused(name):
    settings = goodness.cases()[name]
    off = goodness.observed(goodness.wrong(settings), DRAWS)
    assert goodness.fit(off, goodness.exact(settings)) < goodness.ALPHA


def test_the_stated_power_is_that_of_a_shift_of_that_size():
    """A chi-square of draws from the shifted distribution lies beyond the bound in 99 of 100 cases."""
    exact = goodness.exact(goodness.cases()["the model"])
    assert 0.02 < goodness.resolution(exact, DRAWS) < 0.08


def test_the_tail_of_a_large_vocabulary_is_drawn_as_often_as_it_should_be():
    """Tokens 12 nats below the top of 5,003: 30.7 of 1,000 draws expected, odds of the Poisson number above 1e-6."""
    tail = goodness.Tail(12.0, 5_003, 1_024)
    assert 25 < tail.expected < 35
    assert tail.odds(tail.hits()) > goodness.ALPHA
    assert tail.odds(0) < goodness.ALPHA
