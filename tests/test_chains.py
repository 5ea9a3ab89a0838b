"""Do the presets order, cut and gate as their systems do, and is what nobody asks for really off?

Every preset is compiled once here, for rows of 31 tokens with all kinds of settings.
"""

import chains
import jax
import numpy as np
import pytest

from decode import processors
from decode.settings import Settings

INF = float("inf")
V, ROWS = 31, 5
TEXT = [3, 0, 1, 2, 30, 0, 1, 2]
PRESETS = ("hf", "vllm", "llama.cpp", "strict")


def batch(settings, logits_BV):
    """Rows with a text, five of them, so that every call is of one shape."""
    assert len(settings) == len(logits_BV) == ROWS
    return dict(
        logits_BV=np.asarray(logits_BV, np.float32),
        settings=settings,
        tokens=TEXT,
        prompt=3,
        source=[4, 5, 6],
        ends=[29],
    )


def short(*probabilities):
    """A row of 31 logits that begins with these probabilities, and has no others."""
    row = np.full(V, -INF, np.float32)
    row[: len(probabilities)] = chains.logs(*probabilities)[0]
    return row


def kept(preset, settings, *rows):
    """What one preset keeps of some rows with the same settings."""
    padded = [*rows, *[rows[0]] * (ROWS - len(rows))]
    return chains.kept(preset, **batch([settings] * ROWS, padded))[: len(rows)]


def test_every_preset_has_every_setting_that_is_a_processor_and_each_once():
    families = [
        (processors.SEQUENCES, processors.OUTPUT_SEQUENCES),
        (processors.PRESENCE, processors.OUTPUT_PRESENCE),
        (processors.TOP_K, processors.EXACTLY_TOP_K),
        (processors.TOP_P, processors.WITHIN_TOP_P),
        (processors.TYPICAL, processors.EXCEEDING_TYPICAL),
    ]
    known = [step for step in vars(processors).values() if isinstance(step, processors.Step)]
    plain = [(step,) for step in known if not any(step in family for family in families)]
    for name in PRESETS:
        for family in families + plain:
            assert sum(processors.CHAINS[name].count(step) for step in family) == 1, (name, family)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_worked_cases_of_top_p(preset):
    """The smallest set whose mass reaches p; in `strict` the largest whose mass does not exceed it."""
    dyadic, equal = short(0.5, 0.25, 0.125, 0.125), short(0.25, 0.25, 0.25, 0.25)
    within = preset == "strict"
    for row, p, expected in [
        (dyadic, 0.75, {0, 1}),
        (dyadic, 0.8, {0, 1} if within else {0, 1, 2}),
        (equal, 0.5, {0, 1}),
        (short(0.3, 0.1, 0.1, 0.5), 0.8, {0, 3}),
        (short(0.15, 0.3, 0.3, 0.25), 0.8, {1, 2} if within else {1, 2, 3}),
    ]:
        assert kept(preset, Settings(top_p=p), row) == [expected]


@pytest.mark.parametrize("preset", PRESETS)
def test_ties_of_top_k_stay_in_hf_and_vllm_and_go_in_the_others(preset):
    expected = {0, 1, 2, 3} if preset in ("hf", "vllm") else {0, 1}
    assert kept(preset, Settings(top_k=2), short(0.2, 0.4, 0.2, 0.2)) == [expected]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_temperature_comes_first_but_in_llama_cpp_last(preset):
    """At a temperature of 0.1 top-p of 0.6 keeps one token of four; without it, two; at 10, three."""
    row = short(0.4, 0.3, 0.2, 0.1)
    last = preset == "llama.cpp"
    cold = kept(preset, Settings(temperature=0.1, top_p=0.6), row)
    assert cold == [{0, 1} if last else {0}]
    if preset in ("hf", "vllm"):
        assert kept(preset, Settings(temperature=10.0, top_p=0.6), row) == [{0, 1, 2}]
    assert kept(preset, Settings(temperature=0.1, min_p=0.5), row) == [{0, 1, 2} if last else {0}]


@pytest.mark.parametrize("preset", PRESETS)
def test_min_p_comes_before_top_p_in_vllm_alone(preset):
    """Of .4 .3 .2 .1 min-p leaves three tokens, of which .4 and .3 are more than 0.75; alone they are 0.7."""
    expected = {"vllm": {0, 1}, "strict": {0, 1}}.get(preset, {0, 1, 2})
    assert kept(preset, Settings(top_p=0.75, min_p=0.45), short(0.4, 0.3, 0.2, 0.1)) == [expected]


@pytest.mark.parametrize("preset", PRESETS)
def test_typical_comes_before_top_p_in_llama_cpp_alone(preset):
    """Typical drops .4 of .4 .2 .2 .2; top-p of 0.39 first keeps just that one."""
    expected = {1, 2} if preset == "llama.cpp" else {0}
    settings = Settings(typical_p=0.5, top_p=0.39)
    assert kept(preset, settings, short(0.4, 0.2, 0.2, 0.2)) == [expected]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_teaching_example_holds_in_every_preset(preset):
    row = short(*[0.66 / 27] * 27, 0.20, 0.10, 0.02, 0.02)
    row[29], row[30] = np.log(0.02), np.log(0.01)
    row[:27] = np.log(0.67 / 27 / 1000)  # spread thin: 27,000 tokens, of which 27 are here
    assert int(np.argmax(row)) == 27
    assert kept(preset, Settings(top_k=3), row) == [{27, 28, 29}]
    assert kept(preset, Settings(), row) == [set(range(V))]


ASKING = [
    *({"logit_bias": ((5, 2.0),)}, {"repetition_penalty": 1.3}, {"encoder_repetition_penalty": 2}),
    *({"presence_penalty": 0.5}, {"frequency_penalty": -0.5}, {"dry_multiplier": 0.8}),
    *({"no_repeat_ngram_size": 2}, {"encoder_no_repeat_ngram_size": 1}, {"min_new_tokens": 9}),
    *(
        {"exponential_decay_length_penalty": (1, 1.5)},
        {"temperature": 0.7},
        {"dynatemp_range": 0.5},
    ),
    *({"top_n_sigma": 1.0}, {"top_h": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}),
    *({"typical_p": 0.5}, {"epsilon_cutoff": 0.05}, {"eta_cutoff": 0.1}, {"mirostat": 2}),
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
]
RNG = np.random.RandomState(11)
LOGITS = np.where(RNG.rand(ROWS, V) < 0.1, -0.0, 2 * RNG.randn(ROWS, V)).astype(np.float32)


def asked(preset, settings):
    facts = batch(settings, LOGITS)
    bias_BV = np.zeros((ROWS, V), np.float32)
    for row, one in enumerate(settings):
        for token, value in one.logit_bias:
            bias_BV[row, token] = value
    facts["logits_BV"], facts["settings"] = LOGITS, settings
    return chains.apply(preset, **facts, bias_BV=bias_BV).view(np.uint32)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_that_asks_for_nothing_keeps_every_bit_whatever_its_neighbours_ask_for(preset):
    nothing, bits_BV = Settings(), LOGITS.view(np.uint32)
    assert (asked(preset, [nothing] * ROWS) == bits_BV).all()
    for wish in ASKING:
        busy = Settings(**wish)
        out_BV = asked(preset, [busy, nothing, busy, nothing, Settings(temperature=0.0)])
        assert (out_BV[[1, 3, 4]] == bits_BV[[1, 3, 4]]).all(), wish
        assert (out_BV[0] != bits_BV[0]).any(), wish


@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_has_the_same_bits_alone_and_beside_rows_that_ask_for_all_else(preset):
    for i, wish in enumerate(ASKING):
        mine = Settings(**wish)
        others = [Settings(**ASKING[(i + 5 * j + 3) % len(ASKING)]) for j in range(ROWS - 1)]
        alone = asked(preset, [mine, *[Settings()] * (ROWS - 1)])
        assert (asked(preset, [mine, *others])[0] == alone[0]).all(), wish


def test_a_greedy_row_is_penalised_but_not_filtered():
    settings = Settings(temperature=0.0, top_k=1, top_p=0.1, min_p=0.5, repetition_penalty=2.0)
    penalised = Settings(repetition_penalty=2.0)
    for preset in PRESETS:
        out_BV = asked(preset, [settings] * ROWS)
        assert (out_BV == asked(preset, [penalised] * ROWS)).all()


def test_no_value_compiles_again():
    run = jax.jit(processors.PRESETS["hf"])
    for wish in ASKING:
        rows = chains.rows_of([Settings(**wish)] * ROWS, V, TEXT, prompt=3, ends=[29])
        run(LOGITS, rows)
    assert run._cache_size() == 1


@pytest.mark.oracle
def test_the_preset_hf_equals_the_list_of_processors_that_generate_builds():
    """Several settings at a time, on random texts; the list is that of `generate`, in its order."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made = transformers.generation.logits_process
    rng = np.random.RandomState(2)
    for number in range(8):
        k, p, minimum = (4, 7, 12, 25)[number % 4], (0.5, 0.8, 0.95)[number % 3], 0.02
        t, penalty, gram = (0.7, 1.0, 1.6)[number % 3], (0.8, 1.3)[number % 2], 1 + number % 3
        settings = Settings(
            temperature=t,
            top_k=k,
            top_p=p,
            min_p=minimum,
            typical_p=0.9,
            epsilon_cutoff=0.01,
            eta_cutoff=0.02,
            top_h=0.9,
            repetition_penalty=penalty,
            encoder_repetition_penalty=1.5,
            no_repeat_ngram_size=gram,
            encoder_no_repeat_ngram_size=2,
            min_new_tokens=9,
            exponential_decay_length_penalty=(1, 1.1),
        )
        logits_BV = (2 * rng.randn(ROWS, V)).astype(np.float32)
        facts = batch([settings] * ROWS, logits_BV)
        source = torch.tensor([facts["source"]])
        processes = made.LogitsProcessorList(
            [
                made.EncoderRepetitionPenaltyLogitsProcessor(1.5, source),
                made.RepetitionPenaltyLogitsProcessor(penalty),
                made.NoRepeatNGramLogitsProcessor(gram),
                made.EncoderNoRepeatNGramLogitsProcessor(2, source),
                made.MinNewTokensLengthLogitsProcessor(3, 9, [29]),
                made.ExponentialDecayLengthPenalty((1, 1.1), [29], 3),
                made.TemperatureLogitsWarper(t),
                made.TopHLogitsWarper(0.9),
                made.TopKLogitsWarper(k),
                made.TopPLogitsWarper(p),
                made.MinPLogitsWarper(minimum),
                made.TypicalLogitsWarper(0.9),
                made.EpsilonLogitsWarper(0.01),
                made.EtaLogitsWarper(0.02),
            ]
        )
        ids = torch.tensor([TEXT])
        theirs = [processes(ids, torch.tensor(row[None])).numpy()[0] for row in logits_BV]
        ours_BV = chains.apply("hf", **facts)
        assert ((ours_BV > -INF) == (np.array(theirs) > -INF)).all(), settings
        np.testing.assert_allclose(ours_BV, theirs, rtol=1e-6, atol=1e-6)
