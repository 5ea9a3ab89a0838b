"""Do intervals cover as often as they say, and is a comparison what trying all swaps gives?"""

import itertools

import numpy as np
import pytest
import scipy.stats

from model import errors
from train import bootstrap, metrics


def means(numbers, references=None):
    return metrics.loss(list(numbers), references or [1] * len(numbers))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    """Of 1009 examples the mean is normal to within the error of 10,000 draws: a standard error's 0.03 at each end."""
    numbers = np.random.default_rng(2).exponential(size=1009)
    found = bootstrap.interval(means(numbers), seed=3)
    error = numbers.std() / np.sqrt(1009)
    expected = numbers.mean() + scipy.stats.norm.ppf([0.025, 0.975]) * error
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.12 * error)
    assert found.value == pytest.approx(numbers.mean())
    assert (
        found
        == bootstrap.interval(means(numbers), seed=3)
        != bootstrap.interval(means(numbers), seed=5)
    )


def test_intervals_cover_the_truth_as_often_as_their_closed_form_does():
    """Around a mean of 53 normal numbers the percentile interval is mean ± z sqrt(52/53) s / sqrt(53), which covers
    with Student's t 94.3 % of the time. Of 400 intervals, four standard deviations off has odds of 1 in 16,000."""
    numbers = np.random.default_rng(7).normal(size=(400, 53))
    covered = 0
    for i, row in enumerate(numbers):
        found = bootstrap.interval(means(row), seed=i, draws=499)
        covered += found.low <= 0 <= found.high
    z = scipy.stats.norm.ppf(0.975) * np.sqrt(52 / 53)
    share = 2 * scipy.stats.t.cdf(z, 52) - 1
    assert share == pytest.approx(0.943, abs=1e-3)
    assert abs(covered - 400 * share) < 4 * np.sqrt(400 * share * (1 - share))


def test_a_ratio_is_resampled_by_its_counts_not_by_its_values():
    """The perplexity of a draw is that of its tokens together: against drawing the examples one by one."""
    nats, counts = [1.0, 9.0, 4.0, 30.0, 2.0], [1, 3, 2, 7, 5]
    found = bootstrap.interval(metrics.perplexity(nats, counts), seed=11, draws=5000)
    chosen = np.random.default_rng(13).integers(0, 5, (5000, 5))
    brute = np.exp(np.array(nats)[chosen].sum(1) / np.array(counts)[chosen].sum(1))
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(brute, [0.025, 0.975]), rtol=0.1
    )


def test_the_p_value_is_the_share_of_all_swaps_that_differ_as_much():
    """Of 9 examples there are 512 swaps; 10,000 draws hit the share within four standard deviations (1 in 16,000)."""
    ours, theirs = np.random.default_rng(17).normal([[0.9], [0.0]], 1, (2, 9))
    found = bootstrap.compare(means(ours), means(theirs), seed=19)
    signs = np.array(list(itertools.product([1, -1], repeat=9)))
    swapped = np.abs((signs * (ours - theirs)).mean(1))
    share = np.mean(swapped >= abs((ours - theirs).mean()) * (1 - 1e-9))
    assert 0.01 < share < 0.5
    assert abs(found.p_value - share) < 4 * np.sqrt(share * (1 - share) / 10_000)
    assert found.difference.value == pytest.approx((ours - theirs).mean())
    mirrored = bootstrap.compare(means(theirs), means(ours), seed=19)
    assert mirrored.p_value == found.p_value
    assert (mirrored.difference.low, mirrored.difference.high) == pytest.approx(
        (-found.difference.high, -found.difference.low)
    )


def test_a_comparison_is_paired():
    """Examples differ far more than the two runs do, by 0.1 each: only pairs can tell."""
    numbers = np.random.default_rng(23).normal(0, 100, 31)
    found = bootstrap.compare(means(numbers + 0.1), means(numbers), seed=1, draws=999)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.1, 0.1))
    assert found.p_value == 1 / 1000
    same = bootstrap.compare(means(numbers), means(numbers), seed=1, draws=99)
    assert same == bootstrap.Comparison(bootstrap.Interval(0, 0, 0), 1)


def test_runs_with_different_classes_compare_by_the_classes_of_both():
    """Swapping all examples of corpus F1 mirrors the difference, also where each run has classes of its own."""
    references = ["a", "b", "a", "c", "b"]
    ours = metrics.macro_f1(["a", "b", "d", "c", "b"], references)
    theirs = metrics.macro_f1(["e", "b", "e", "b", "b"], references)
    assert ours.classes != theirs.classes
    found = bootstrap.compare(ours, theirs, seed=2, draws=997)
    assert found.difference.value == pytest.approx(ours.value - theirs.value)
    rows = [(["a", "b", "d", "c", "b"], ["e", "b", "e", "b", "b"])]
    least = 0
    for swap in itertools.product([0, 1], repeat=5):
        one = [rows[0][s][i] for i, s in enumerate(swap)]
        other = [rows[0][1 - s][i] for i, s in enumerate(swap)]
        gap = metrics.macro_f1(one, references).value - metrics.macro_f1(other, references).value
        least += abs(gap) >= abs(found.difference.value) - 1e-9
    share = least / 32
    assert abs(found.p_value - share) < 4 * np.sqrt(share * (1 - share) / 997)


def test_one_example_or_a_value_that_is_none_has_no_interval():
    assert bootstrap.interval(means([3.0]), seed=0) == bootstrap.Interval(3.0, None, None)
    nothing = bootstrap.interval(metrics.entity_f1([["O"]] * 2, [["O"]] * 2), seed=0, draws=7)
    assert np.isnan(nothing.value) and nothing.low is None


def test_blocks_of_draws_are_one_stream(monkeypatch):
    found = bootstrap.interval(means([1.0, 2.0, 5.0]), seed=4, draws=101)
    monkeypatch.setattr(bootstrap, "BLOCK", 7)
    assert bootstrap.interval(means([1.0, 2.0, 5.0]), seed=4, draws=101) == found


def test_runs_of_different_examples_are_refused():
    with pytest.raises(
        errors.BadInput,
        match="^one run has 2 examples and the other 3; compare runs of the same examples$",
    ):
        bootstrap.compare(means([1, 2]), means([1, 2, 3]), seed=0)
    ours, theirs = (metrics.exact_match(["x", "y"], ["x", last]) for last in "yz")
    with pytest.raises(
        errors.BadInput,
        match="^example 1 of one run is 'y' and of the other 'z'; compare runs of the same",
    ):
        bootstrap.compare(ours, theirs, seed=0)


def test_no_draws_and_a_level_beyond_one_are_refused():
    for draws, level in [(0, 0.95), (9, 1.0)]:
        with pytest.raises(
            errors.BadInput,
            match=r"^there are \d draws for an interval of .*; give at least one, and a",
        ):
            bootstrap.interval(means([1, 2]), seed=0, draws=draws, level=level)
