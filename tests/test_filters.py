"""Does every way to cut the tail keep exactly the tokens of its definition?

The references: closed forms by hand, float64, and, marked `oracle`, the processors of Hugging Face transformers.
"""

import chains
import numpy as np
import pytest

from decode import processors
from decode.settings import Settings

INF = float("inf")
TENTHS = chains.logs(0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    "step, settings, expected",
    [
        # min_p keeps what is at least so much of the largest, 0.4: thresholds in between are quarters.
        *(
            (
                processors.MIN_P,
                {"min_p": bound + gap},
                {i for i in range(4) if (i + 1) / 4 >= bound + gap},
            )
            for bound in (0.25, 0.5, 0.75)
            for gap in (-0.01, 0.01)
        ),
        (processors.MIN_P, {"min_p": 1.0}, {3}),
        # The mean of the logarithms is -1.507, their deviation 0.523, the largest -0.916.
        (processors.SIGMA, {"top_n_sigma": 0.5}, {3}),
        (processors.SIGMA, {"top_n_sigma": 1.0}, {2, 3}),
        (processors.SIGMA, {"top_n_sigma": 2.0}, {1, 2, 3}),
        (processors.SIGMA, {"top_n_sigma": 3.0}, {0, 1, 2, 3}),
        (processors.EPSILON, {"epsilon_cutoff": 0.15}, {1, 2, 3}),
        (processors.EPSILON, {"epsilon_cutoff": 0.9}, {3}),
        # H = 1.2799: sqrt(0.5) exp(-H) = 0.1966 is below 0.5; with 0.19 the cutoff itself is the lower one.
        (processors.ETA, {"eta_cutoff": 0.5}, {1, 2, 3}),
        (processors.ETA, {"eta_cutoff": 0.53}, {2, 3}),
        (processors.ETA, {"eta_cutoff": 0.09}, {0, 1, 2, 3}),
        # Terms -p log p of the likeliest first: 0.3665, 0.3612, 0.3219, 0.2303 of 1.2799.
        (processors.TOP_H, {"top_h": 0.1}, {3}),
        (processors.TOP_H, {"top_h": 0.56}, {3}),
        (processors.TOP_H, {"top_h": 0.58}, {2, 3}),
        (processors.TOP_H, {"top_h": 0.83}, {1, 2, 3}),
        # All but the least likely of those above the threshold go.
        (processors.XTC, {"xtc_probability": 1.0, "xtc_threshold": 0.09}, {0}),
        (processors.XTC, {"xtc_probability": 1.0, "xtc_threshold": 0.19}, {0, 1}),
        (processors.XTC, {"xtc_probability": 1.0, "xtc_threshold": 0.29}, {0, 1, 2}),
        (processors.XTC, {"xtc_probability": 1.0, "xtc_threshold": 0.39}, {0, 1, 2, 3}),
        (processors.XTC, {"xtc_probability": 1.0, "xtc_threshold": 0.51}, {0, 1, 2, 3}),
        # H = 1.2799; surprises 2.30, 1.61, 1.20, 0.92 lie 1.02, 0.33, 0.08, 0.36 from it.
        (processors.TYPICAL, {"typical_p": 0.29}, {2}),
        (processors.TYPICAL, {"typical_p": 0.45}, {1, 2}),
        (processors.TYPICAL, {"typical_p": 0.55}, {1, 2, 3}),
        (processors.TYPICAL, {"typical_p": 0.95}, {0, 1, 2, 3}),
        (processors.EXCEEDING_TYPICAL, {"typical_p": 0.45}, {1, 2}),
        (processors.EXACTLY_TOP_K, {"top_k": 3}, {1, 2, 3}),
        (processors.EXACTLY_TOP_K, {"top_k": 1}, {3}),
        (processors.WITHIN_TOP_P, {"top_p": 0.69}, {3}),
        (processors.WITHIN_TOP_P, {"top_p": 0.7}, {2, 3}),
        (processors.WITHIN_TOP_P, {"top_p": 0.3}, {3}),
        (processors.WITHIN_TOP_P, {"top_p": 0.95}, {1, 2, 3}),
        # Surprise in bits: 3.32, 2.32, 1.74, 1.32; mu begins at 2 tau.
        (processors.MIROSTAT, {"mirostat": 2, "mirostat_tau": 1.0}, {2, 3}),
        (processors.MIROSTAT, {"mirostat": 2, "mirostat_tau": 1.2}, {1, 2, 3}),
        (processors.MIROSTAT, {"mirostat": 2, "mirostat_tau": 0.1}, {3}),
    ],
)
def test_of_tenths_each_filter_keeps_what_its_definition_says(step, settings, expected):
    both_BV = np.concatenate([TENTHS, TENTHS[:, ::-1]])
    mirrored = {3 - i for i in expected}
    assert chains.kept((step,), both_BV, Settings(**settings)) == [expected, mirrored]


@pytest.mark.parametrize(
    "step, settings, probabilities, expected",
    [
        (processors.TYPICAL, {"typical_p": 0.5}, [0.97, 0.01, 0.01, 0.01], {0}),
        (processors.TYPICAL, {"typical_p": 0.5}, [0.4, 0.2, 0.2, 0.2], {1, 2, 3}),
        (processors.TYPICAL, {"typical_p": 0.3}, [0.4, 0.2, 0.2, 0.2], {1, 2, 3}),
        (processors.EXCEEDING_TYPICAL, {"typical_p": 0.5}, [0.97, 0.01, 0.01, 0.01], {0}),
        (processors.EXCEEDING_TYPICAL, {"typical_p": 0.5}, [0.4, 0.2, 0.2, 0.2], {1, 2, 3}),
        (processors.EXCEEDING_TYPICAL, {"typical_p": 0.3}, [0.4, 0.2, 0.2, 0.2], {1, 2}),
        (processors.EXCEEDING_TYPICAL, {"typical_p": 0.4}, [0.4, 0.2, 0.2, 0.2], {1, 2, 3}),
        (processors.TYPICAL, {"typical_p": 0.25}, [0.25, 0.25, 0.25, 0.25], {0, 1, 2, 3}),
        (processors.EXCEEDING_TYPICAL, {"typical_p": 0.25}, [0.25, 0.25, 0.25, 0.25], {0, 1}),
        (processors.EXACTLY_TOP_K, {"top_k": 2}, [0.2, 0.4, 0.2, 0.2], {0, 1}),
        (processors.TOP_K, {"top_k": 2}, [0.2, 0.4, 0.2, 0.2], {0, 1, 2, 3}),
        (processors.WITHIN_TOP_P, {"top_p": 0.5}, [0.25, 0.25, 0.25, 0.25], {0, 1}),
        (processors.WITHIN_TOP_P, {"top_p": 0.75}, [0.125, 0.25, 0.5, 0.125], {1, 2}),
        (processors.WITHIN_TOP_P, {"top_p": 0.8}, [0.125, 0.25, 0.5, 0.125], {1, 2}),
        (processors.WITHIN_TOP_P, {"top_p": 0.01}, [0.25, 0.25, 0.25, 0.25], {0}),
        (processors.MIN_P, {"min_p": 0.5}, [0.25, 0.5, 0.125, 0.125], {0, 1}),
        (processors.EPSILON, {"epsilon_cutoff": 0.9}, [0.1, 0.4, 0.1, 0.4], {1, 3}),
        (processors.TOP_H, {"top_h": 0.5}, [0.25, 0.25, 0.25, 0.25], {0, 1}),
        (processors.TOP_H, {"top_h": 1.0}, [0.5, 0.5, 0.0, 0.0], {0, 1}),
        (processors.XTC, {"xtc_probability": 1.0, "xtc_threshold": 0.2}, [0.3, 0.2, 0.2, 0.3], {2}),
        (processors.XTC, {"xtc_probability": 1.0, "xtc_threshold": 0.1}, [0.0, 1.0, 0.0, 0.0], {1}),
        (processors.MIROSTAT, {"mirostat": 2, "mirostat_tau": 0.0}, [0.25, 0.25, 0.25, 0.25], {0}),
        (
            processors.MIROSTAT,
            {"mirostat": 2, "mirostat_tau": 1.0},
            [0.25, 0.25, 0.25, 0.25],
            {0, 1, 2, 3},
        ),
        (processors.SIGMA, {"top_n_sigma": 1.0}, [0.5, 0.5, 0.0, 0.0], {0, 1}),
    ],
)
def test_ties_and_boundaries_fall_where_the_definition_puts_them(
    step, settings, probabilities, expected
):
    logits_BV = np.repeat(chains.logs(*probabilities), 2, axis=0)
    assert chains.kept((step,), logits_BV, Settings(**settings)) == [expected] * 2


def test_top_h_looks_at_the_100_largest_logits_alone():
    """Of 211 equal ones it keeps the share h of the first 100."""
    kept = chains.kept((processors.TOP_H,), np.zeros((2, 211)), Settings(top_h=0.5))
    assert kept == [set(range(50))] * 2


FILTERS = [
    (processors.MIN_P, {"min_p": 0.3}),
    (processors.SIGMA, {"top_n_sigma": 1.0}),
    (processors.EPSILON, {"epsilon_cutoff": 0.2}),
    (processors.ETA, {"eta_cutoff": 0.2}),
    (processors.TOP_H, {"top_h": 0.5}),
    (processors.TYPICAL, {"typical_p": 0.5}),
    (processors.TOP_P, {"top_p": 0.5}),
    (processors.WITHIN_TOP_P, {"top_p": 0.5}),
    (processors.XTC, {"xtc_probability": 1.0}),
    (processors.MIROSTAT, {"mirostat": 2, "mirostat_tau": 0.5}),
    (processors.DYNAMIC, {"dynatemp_range": 0.5, "temperature": 0.5}),
]


@pytest.mark.parametrize("step, settings", FILTERS)
def test_rows_with_an_infinite_largest_logit_stay_as_they_are(step, settings):
    rows_BV = np.array([[INF, 1, INF, 0], [-INF] * 4], np.float32)
    out_BV = chains.apply((step,), rows_BV, Settings(**settings))
    if step is not processors.DYNAMIC:
        assert (out_BV == rows_BV).all()
    assert not np.isnan(out_BV).any()


@pytest.mark.parametrize("step, settings", FILTERS[:-1])
def test_a_token_alone_is_kept(step, settings):
    rows_BV = np.array([[-INF, -INF, 3, -INF], [-INF, 100, 0, 0]], np.float32)
    tail = {1, 2, 3} if step is processors.XTC else {1}
    assert chains.kept((step,), rows_BV, Settings(**settings)) == [{2}, tail]


@pytest.mark.parametrize(
    "temperature, spread, exponent", [(1.0, 0.5, 1.0), (0.8, 0.3, 2.0), (0.5, 0.7, 0.5)]
)
def test_the_dynamic_temperature_moves_with_the_entropy_relative_to_that_of_equal_odds(
    temperature, spread, exponent
):
    flat, sharp = chains.logs(0.25, 0.25, 0.25, 0.25), chains.logs(0.97, 0.01, 0.01, 0.01)
    logits_BV = np.concatenate([flat, TENTHS, sharp])
    settings = Settings(temperature=temperature, dynatemp_range=spread, dynatemp_exponent=exponent)
    out_BV = chains.apply((processors.TEMPERATURE, processors.DYNAMIC), logits_BV, settings)
    for row, ours in zip(logits_BV, out_BV, strict=True):
        p = chains.softmax(row)
        share = -(p * np.log(p)).sum() / np.log(4)
        least = max(0, temperature - spread)
        moved = least + (temperature + spread - least) * share**exponent
        np.testing.assert_allclose(ours, row / moved, rtol=1e-5)


def test_a_dynamic_temperature_of_0_keeps_the_first_of_the_largest_logits():
    logits_BV = np.array([[0, 200, 0, 0], [-INF, 5, -INF, -INF]], np.float32)
    settings = Settings(temperature=0.5, dynatemp_range=0.5)
    assert chains.kept((processors.DYNAMIC,), logits_BV, settings) == [{1}, {1}]


def test_xtc_strikes_as_often_as_asked_by_its_own_stream_of_the_key():
    rows = 4_001
    asked = [Settings(xtc_probability=0.3)] * rows
    context = chains.rows_of(asked, 4, [0])
    context = context.replace(lengths_B=np.arange(rows, dtype=np.int32))
    out_BV = chains.apply((processors.XTC,), np.repeat(TENTHS, rows, axis=0), asked, rows=context)
    struck = (out_BV[:, 3] == -INF).mean()
    assert abs(struck - 0.3) < 5 * (0.3 * 0.7 / rows) ** 0.5  # odds of 6e-7


def test_mirostat_moves_its_surprise_by_the_error_in_bits_of_the_rows_that_have_it():
    settings = [Settings(mirostat=2, mirostat_tau=3.0, mirostat_eta=0.5), Settings()]
    context = chains.rows_of(settings, 4)
    assert context.surprise_B.tolist()[0] == 6.0
    after_B = processors.surprise(context, np.log(np.array([1 / 16, 1 / 16], np.float32)))
    np.testing.assert_allclose(after_B[0], 6.0 - 0.5 * (4.0 - 3.0), rtol=1e-6)
    assert after_B[1] == context.surprise_B[1]


def test_mirostat_leaves_the_other_filters_off():
    settings = Settings(mirostat=2, mirostat_tau=1.2, top_k=1, min_p=0.9, temperature=0.5)
    knobs = chains.rows_of([settings], 4).knobs
    assert (knobs["top_k"], knobs["min_p"], knobs["temperature"]) == (0, 0.0, 0.5)


def theirs(name, settings):
    """A processor of transformers."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made = {
        "TopH": lambda kind: kind(settings.top_h),
        "MinP": lambda kind: kind(settings.min_p),
        "Typical": lambda kind: kind(settings.typical_p),
        "Epsilon": lambda kind: kind(settings.epsilon_cutoff),
        "Eta": lambda kind: kind(settings.eta_cutoff),
    }
    module = transformers.generation.logits_process
    return made[name](getattr(module, f"{name}LogitsWarper"))


ORACLES = [
    ("MinP", processors.MIN_P, "min_p", (0.02, 0.1, 0.5, 1.0)),
    ("Typical", processors.TYPICAL, "typical_p", (0.05, 0.5, 0.9, 0.99)),
    ("Epsilon", processors.EPSILON, "epsilon_cutoff", (1e-4, 3e-3, 0.1, 0.9)),
    ("Eta", processors.ETA, "eta_cutoff", (1e-4, 3e-3, 0.1, 0.9)),
    ("TopH", processors.TOP_H, "top_h", (0.1, 0.4, 0.8, 0.95)),
]


def compare(name, step, field, values, logits_BV, ties=False):
    """Row i has the i-th value; what is kept and the values are equal, and of ties at least how many."""
    torch = pytest.importorskip("torch")
    settings = [Settings(**{field: values[i % len(values)]}) for i in range(len(logits_BV))]
    expected_BV = np.concatenate(
        [
            theirs(name, s)(None, torch.tensor(row[None])).numpy()
            for s, row in zip(settings, logits_BV, strict=True)
        ]
    )
    ours_BV = chains.apply((step,), logits_BV, settings)
    if ties:
        ours_BV, expected_BV = np.sort(ours_BV), np.sort(expected_BV)
    assert (ours_BV == expected_BV).all()


@pytest.mark.oracle
@pytest.mark.parametrize("vocabulary, rows", [(2, 300), (31, 800), (5_003, 40)])
@pytest.mark.parametrize("name, step, field, values", ORACLES, ids=[o[0] for o in ORACLES])
def test_kept_sets_and_values_equal_those_of_transformers_on_random_logits(
    name, step, field, values, vocabulary, rows
):
    rng = np.random.RandomState(vocabulary)
    scale_B1 = rng.choice([0.5, 2, 5], (rows, 1))
    logits_BV = (scale_B1 * rng.randn(rows, vocabulary)).astype(np.float32)
    if vocabulary > 2:
        logits_BV[::3, 1::5] = -INF
    compare(name, step, field, values, logits_BV)


@pytest.mark.oracle
@pytest.mark.parametrize("name, step, field, values", ORACLES, ids=[o[0] for o in ORACLES])
def test_of_tied_logits_as_many_are_kept_as_transformers_keeps(name, step, field, values):
    """Small whole numbers, so that several tokens have the same logit, at the cut too."""
    logits_BV = np.random.RandomState(5).randint(-3, 4, (400, 13)).astype(np.float32)
    compare(name, step, field, values, logits_BV, ties=True)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name, step, field, values",
    [
        ("MinP", processors.MIN_P, "min_p", (0.5, 0.25, 0.125)),
        ("Epsilon", processors.EPSILON, "epsilon_cutoff", (0.5, 0.25, 0.125)),
        ("Typical", processors.TYPICAL, "typical_p", (0.5, 0.25, 0.75)),
    ],
    ids=["MinP", "Epsilon", "Typical"],
)
def test_dyadic_boundaries_are_cut_as_transformers_cuts_them(name, step, field, values):
    """Probabilities are powers of two that sum to 1, so the boundary is met exactly, up to a logarithm's rounding."""
    halves = [(1, 2, 3, 3), (2, 2, 2, 2), (1, 3, 3, 2), (2, 1, 3, 3)]
    logits_BV = np.log(2.0 ** -np.repeat(np.array(halves), 3, axis=0)).astype(np.float32)
    compare(name, step, field, values, logits_BV)
