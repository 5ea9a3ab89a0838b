"""Does beam search find what its definition, every sequence written down, and Hugging Face find?

Tests of a table of logits leave the processors out, which have tests of their own: they compile in a second.
"""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import decode
from decode import beam, context, jobs, keys, loop, processors
from decode.requests import Request
from decode.settings import Settings
from decode.strategy import Strategy
from model import errors
from tests import searches
from tests.goldens import make_searches

GOLDEN = [("gpt2", "early_stopping"), ("t5", "num_beams"), ("bart", "num_beams")]


@pytest.fixture
def plain(monkeypatch):
    """Settings whose preset has no processors; no other test may see programs compiled with it."""
    monkeypatch.setitem(processors.PRESETS, "plain", lambda scores_BV, context: scores_BV)

    def settings(**given):
        made = Settings(**given)
        object.__setattr__(made, "preset", "plain")
        return made

    return settings


def table(seed, size, spread=1.5):
    return np.random.RandomState(seed).randn(size, size).astype(np.float32) * spread


def logprobs(logits):
    logits = np.asarray(logits, np.float64)
    level = logits - logits.max(axis=-1, keepdims=True)
    return level - np.log(np.exp(level).sum(axis=-1, keepdims=True))


def scale(s, length):
    return ((5 + length) / 6 if s.length_rule == "t5" else length) ** s.length_penalty


def every(table, start, ends, s):
    """All continuations with their scores, by enumeration."""
    steps = logprobs(table)
    for length in range(1, s.max_new_tokens + 1):
        for tokens in itertools.product(range(len(table)), repeat=length):
            early = any(token in ends for token in tokens[:-1])
            if early or (tokens[-1] not in ends and length < s.max_new_tokens):
                continue
            before = (start, *tokens[:-1])
            total = sum(steps[a, b] for a, b in zip(before, tokens, strict=True))
            yield total / scale(s, length), tokens


def beams_of(table, start, ends, s):
    """Beam search as its papers define it, group after group, on lists; every group stops by itself."""
    steps, size = logprobs(table), s.num_beams // s.num_beam_groups
    running = [[(0.0, ())] for _ in range(s.num_beam_groups)]
    finished = [[] for _ in running]
    for length in range(1, s.max_new_tokens + 1):
        taken = collections.Counter()
        for g, beams in enumerate(running):
            found = sorted(
                (
                    (
                        total + steps[(start, *tokens)[-1], v] - s.diversity_penalty * taken[v],
                        tokens,
                        v,
                    )
                    for total, tokens in beams
                    for v in range(len(table))
                ),
                key=lambda x: -x[0],
            )
            last = length == s.max_new_tokens
            for total, tokens, v in found[:size]:
                if last or v in ends:
                    finished[g].append((total / scale(s, length), (*tokens, v)))
            finished[g] = sorted(finished[g], reverse=True)[:size]
            running[g] = [(t, (*w, v)) for t, w, v in found if v not in ends][:size]
            taken.update(tokens[-1] for _, tokens in running[g])
            if len(finished[g]) == size and running[g]:
                far = (
                    s.max_new_tokens
                    if s.early_stopping == "never" and s.length_penalty > 0
                    else length
                )
                hoped = running[g][0][0] / scale(s, far)
                if last or s.early_stopping is True or hoped <= finished[g][-1][0]:
                    running[g] = []
    return sorted((one for group in finished for one in group), reverse=True)[: s.n]


def agree(found, expected):
    assert [c.tokens for c in found] == [tokens for _, tokens in expected]
    np.testing.assert_allclose([c.score for c in found], [x for x, _ in expected], atol=2e-5)
    assert [c.sample for c in found] == list(range(len(found)))


@pytest.mark.parametrize("rule, power", [("hf", 0.8), ("t5", 0.6)])
def test_enough_beams_find_every_sequence_in_the_order_of_its_score(plain, rule, power):
    lm = tiny.scripted(table(0, 3), eos_id=2)
    s = plain(
        max_new_tokens=4, num_beams=32, n=31, early_stopping="never", length_rule=rule,
        length_penalty=power,
    )  # fmt: skip
    expected = {tokens: score for score, tokens in every(table(0, 3), 1, (2,), s)}
    found = decode.generate(lm, [[1]], s, seed=0)
    assert len(found) == len(expected) == 31
    scores = [c.score for c in found]
    np.testing.assert_allclose(scores, [expected[c.tokens] for c in found], atol=2e-5)
    assert len({c.tokens for c in found}) == 31 and scores == sorted(scores, reverse=True)


def varied(plain, **more):
    """Settings that end early, late and in every way, with one and two end tokens."""
    for early, power, rule, stop in itertools.product(
        (True, False, "never"), (-1.0, 0.0, 1.0, 2.5), ("hf", "t5"), ((), (4,))
    ):
        yield plain(
            max_new_tokens=7, early_stopping=early, length_penalty=power, length_rule=rule,
            stop_token_ids=stop, **more,
        )  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [dict(num_beams=3, n=3), dict(num_beams=4, n=4, num_beam_groups=2, diversity_penalty=0.9)],
    ids=["plain", "diverse"],
)
def test_a_search_equals_the_definition_for_every_setting_and_compiles_once(plain, more):
    compiled = loop.run._cache_size()
    ended = set()
    for seed in (1, 2):
        lm = tiny.scripted(table(seed, 7), eos_id=5)
        settings = list(varied(plain, **more))
        asked = [Request([seed], s, i) for i, s in enumerate(settings)]
        found = decode.generate(lm, asked, seed=0)
        for i, s in enumerate(settings):
            mine = [c for c in found if c.id == i]
            agree(mine, beams_of(table(seed, 7), seed, (5, *s.stop_token_ids), s))
            ended |= {(c.finish_reason, c.stopped_by) for c in mine}
    assert ended == {("stop", 5), ("stop", 4), ("length", None)}
    assert loop.run._cache_size() == compiled + 1


def test_without_a_penalty_groups_of_beams_find_the_same_and_with_one_they_differ(plain):
    lm = tiny.scripted(table(3, 7), eos_id=5)
    more = dict(max_new_tokens=7, num_beams=4, n=4, num_beam_groups=2)
    same, apart = (
        [c.tokens for c in decode.generate(lm, [[1]], plain(**more, diversity_penalty=x), seed=0)]
        for x in (0.0, 0.9)
    )
    assert same[0] == same[1] and same[2] == same[3]
    assert len(set(apart)) == 4


def test_a_score_is_made_of_the_recorded_log_probabilities_and_nothing_counts_as_drawn(plain):
    lm = tiny.scripted(table(1, 7), eos_id=5)
    steps = logprobs(table(1, 7))
    s = plain(max_new_tokens=7, num_beams=3, n=3, length_penalty=1.0)
    for c in decode.generate(lm, [[1]], s, seed=0):
        expected = [steps[a, b] for a, b in itertools.pairwise((1, *c.tokens))]
        np.testing.assert_allclose(c.logprobs, expected, atol=1e-5)
        assert c.score == pytest.approx(sum(c.logprobs) / len(c.tokens), abs=1e-5)
        assert set(c.sampled_logprobs) == {0.0}


def test_the_margin_is_the_gap_that_decided(plain):
    """Two beams, one step: kept 0 and 1 over 2, 0.3 behind; the returned first beats the second by 0.2."""
    scores = np.float32([0.0, -0.2, -0.5, -9.0, -9.0, -9.0, -9.0])
    lm = tiny.scripted(np.tile(scores, (7, 1)))
    for count in (1, 2):
        s = plain(max_new_tokens=1, num_beams=2, n=count)
        found = decode.generate(lm, [[1]], s, seed=0)
        assert [c.tokens for c in found] == [(0,), (1,)][:count]
        assert found[0].margins == pytest.approx((0.2,), abs=1e-6)


def test_noise_draws_candidates_without_replacement_as_enumeration_has_it():
    """First two of six candidates, 17,011 draws. With odds of 1e-6 the statistic of 29 degrees exceeds 80."""
    strategy, places = Strategy("beam", "plain", width=2), 17_011
    s = Settings(num_beams=2, do_sample=True)
    own = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), i))
    one = context.bare([s], 3)
    many = jax.tree.map(lambda x: jnp.repeat(x, 2 * places, axis=0), one)
    many = many.replace(keys_B=jnp.repeat(own(jnp.arange(places)), 2))
    scores = np.array([-0.3, -1.1])
    steps = logprobs([[0.2, -1.0, 0.9], [1.5, 0.0, -0.4]])
    alike = jnp.tile(jnp.asarray(steps, jnp.float32), (places, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(processors.PRESETS, "plain", lambda x, _: x)
        run = jax.jit(lambda *args: beam._candidates(strategy, *args)[0])
        found = run(alike, jnp.tile(jnp.float32(scores), places), many)
    index = np.asarray((found.row_UC % 2) * 3 + found.token_UC)
    p = np.exp(steps + scores[:, None]).ravel()
    p /= p.sum()
    pairs = list(itertools.permutations(range(6), 2))
    expected = np.array([places * p[a] * p[b] / (1 - p[a]) for a, b in pairs])
    counted = collections.Counter(map(tuple, index[:, :2].tolist()))
    seen = np.array([counted[pair] for pair in pairs])
    assert expected.min() > 25 and seen.sum() == places
    assert ((seen - expected) ** 2 / expected).sum() < 80
    level = np.log(p)[index[:, 0]]
    np.testing.assert_allclose(found.sampled_UC[:, 0], level, atol=1e-5)


def test_drawn_beams_have_noise_of_their_own_number(plain):
    """Two steps by hand: scores, noise by position and beam, first four of the sums, two best go on."""
    lm, steps = tiny.scripted(table(6, 7)), logprobs(table(6, 7))
    s = plain(max_new_tokens=2, num_beams=2, n=2, do_sample=True)
    found = decode.generate(lm, [Request([1], s, "x")], seed=4)
    row = keys.row_key(4, "x", 0)

    def noise(position, number):
        key = keys.of_beams(row[None], jnp.array([position]), jnp.array([number]))
        return np.asarray(keys.gumbel(key, 7))[0]

    first = steps[1]
    drawn = np.argsort(-(first + noise(1, 0)))[:4]
    kept = sorted(drawn, key=lambda v: -first[v])[:2]
    sums = {(a, b): first[a] + steps[a, b] for a in kept for b in range(7)}
    order = sorted(sums, key=lambda ab: -(sums[ab] + noise(2, kept.index(ab[0]))[ab[1]]))
    expected = sorted(((sums[ab] / 2, ab) for ab in order[:2]), reverse=True)
    agree(found, expected)


ASKED = [
    Request("ganymede", Settings(max_new_tokens=11, num_beams=3, n=3, length_penalty=2.0), "mine"),
    Request("once upon a time", Settings(max_new_tokens=23, num_beams=3, early_stopping=True), 1),
    Request([7], Settings(max_new_tokens=5, num_beams=3, n=2, length_rule="t5"), 2),
    Request([8, 9], Settings(max_new_tokens=17, num_beams=3, do_sample=True, top_p=0.8), 3),
    Request("the moon", Settings(max_new_tokens=13, num_beams=3, repetition_penalty=1.3), 4),
]


@pytest.fixture(scope="module")
def together():
    """Drawn and searched, with processors and without."""
    return decode.generate(tiny.lm("gpt2"), ASKED, seed=7)


def test_company_settings_of_others_and_rows_do_not_matter_to_the_bit(together):
    for request in ASKED:
        alone = decode.generate(tiny.lm("gpt2"), [request], seed=7)
        assert alone == [c for c in together if c.id == request.id]
    assert decode.generate(tiny.lm("gpt2"), ASKED[::-1], seed=7)[-3:] == together[:3]


def test_beams_that_outgrow_their_slots_find_the_same(plain, monkeypatch):
    s = plain(max_new_tokens=19, num_beams=3, n=3, length_penalty=2.0)
    asked = [Request(prompt, s, i) for i, prompt in enumerate(["ganymede", [7, 8, 9]])]
    usual = decode.generate(tiny.lm("gpt2"), asked, seed=7)
    assert max(len(c.tokens) for c in usual) > 16
    monkeypatch.setattr(jobs, "SMALLEST_SLOTS", 16)
    grown = decode.generate(tiny.lm("gpt2"), asked, seed=7)
    assert [c.tokens for c in grown] == [c.tokens for c in usual]
    np.testing.assert_allclose([c.score for c in grown], [c.score for c in usual], atol=1e-5)


def test_a_stream_tells_the_best_once_it_is_known(plain):
    lm = tiny.scripted(table(1, 7), eos_id=5)
    s = plain(max_new_tokens=7, num_beams=3, length_penalty=2.0)
    *texts, whole = decode.stream(lm, [1], s, seed=7)
    assert decode.generate(lm, [[1]], s, seed=7) == [whole]
    assert len(texts) == len(whole.text) > 2 and "".join(texts) == whole.text


def test_likelihoods_of_beams_are_those_of_their_tokens(together):
    lm = tiny.lm("gpt2")
    s = Settings(max_new_tokens=6, num_beams=3, n=3, likelihood=True)
    forward = jax.jit(lambda tokens: lm.net.apply({"params": lm.params}, tokens)[0][0])
    for c in decode.generate(lm, [[7, 8]], s, seed=0):
        said = logprobs(forward(np.array([[7, 8, *c.tokens]])))[1:-1]
        mine = said[range(6), c.tokens]
        np.testing.assert_allclose(c.logprobs, mine, atol=1e-4)
        assert list(c.ranks) == (1 + (said > mine[:, None]).sum(axis=1)).tolist()
        np.testing.assert_allclose(c.entropies, -(np.exp(said) * said).sum(axis=1), atol=1e-4)


def test_a_search_without_tokens_ends_and_one_that_finished_nothing_fails_in_one_line(together):
    s = Settings(max_new_tokens=4, num_beams=3, n=3, allowed_token_ids=(3,))
    [end] = decode.generate(tiny.lm("gpt2"), [[7]], s, seed=0)
    assert (end.tokens, end.finish_reason) == ((3,), "stop")
    twice = dataclasses.replace(s, allowed_token_ids=(8, 9), no_repeat_ngram_size=1)
    [failed] = decode.generate(tiny.lm("gpt2"), [Request([6, 7], twice, "a")], seed=0)
    assert (failed.tokens, failed.finish_reason) == ((), "failed")
    assert failed.error.startswith("request 'a': nothing may follow token 3, because its settings")


def test_logits_that_are_not_numbers_are_refused(together):
    lm = tiny.lm("gpt2")
    damaged = dataclasses.replace(lm, params=jax.tree.map(lambda x: x * jnp.nan, lm.params))
    with pytest.raises(errors.BadInput, match="request 0: the logits at position 1 are not num"):
        decode.generate(damaged, [[7]], Settings(max_new_tokens=4, num_beams=3), seed=0)


def same(found, case):
    """Whether we found what a golden has."""
    expected = [(tuple(one["tokens"]), one["score"]) for one in case["found"]]
    assert [c.tokens for c in found] == [tokens for tokens, _ in expected], case["given"]
    np.testing.assert_allclose(
        [c.score for c in found], [score for _, score in expected], rtol=2e-5, err_msg=str(case)
    )


@pytest.mark.parametrize("name, key", GOLDEN)
def test_sequences_and_scores_are_those_of_hugging_face(name, key):
    """Prompts of several lengths, which it pads, a target on the left; of diverse beams those of version 4.44."""
    cases = searches.cases(name, key)
    for found, case in zip(searches.ours(name, cases), cases, strict=True):
        same(found, case)


@pytest.mark.oracle
@pytest.mark.parametrize("name, width", [("gpt2", 5), ("t5", 2), ("bart", 3)])
def test_other_settings_too_give_what_transformers_gives_now(name, width):
    theirs = make_searches.build(name)
    for penalty, early in [(1.7, True), (-2.0, "never"), (0.3, False), (0.0, "never")]:
        given = dict(
            num_beams=width,
            num_return_sequences=width,
            length_penalty=penalty,
            early_stopping=early,
            repetition_penalty=1.2,
        )
        case = make_searches.case(name, theirs, [[11, 4], [9, 30, 61, 5]], given)
        same(searches.ours(name, [case])[0], case)
