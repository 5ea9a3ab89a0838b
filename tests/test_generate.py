"""Does a request get the same tokens and log-probabilities whatever is around it?

Promises 4 and 7 of the contract. Each has a control that breaks the promise on purpose and shows
that the test would see it.
"""

import dataclasses
import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_two_roads
import tiny

import decode
from decode import jobs, keys, loop, sampling
from decode.requests import Request
from decode.settings import Settings

MINE = Request(
    "ganymede is located", Settings(max_new_tokens=19, temperature=0.9, top_p=0.95), "mine"
)


def others(count, seed):
    """Requests with prompts, settings and ids of all kinds."""
    rng = random.Random(seed)
    return [
        Request(
            [rng.randrange(5, 300) for _ in range(rng.choice([1, 3, 15, 16, 17, 29]))],
            Settings(
                max_new_tokens=rng.choice([1, 7, 30]),
                temperature=rng.choice([0.0, 0.5, 1.0, 3.0]),
                top_k=rng.choice([0, 1, 5]),
                top_p=rng.choice([0.2, 1.0]),
                n=rng.choice([1, 2]),
            ),
            f"other {seed}.{i}",
        )
        for i in range(count)
    ]


def only(completions, name="mine"):
    """The completions of one request, to the bit."""
    return [c for c in completions if c.id == name]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def lm(request):
    return tiny.lm(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny.lm("llama")


@pytest.fixture(scope="module")
def alone(llama):
    return decode.generate(llama, [MINE], seed=7)


# Promise 4: company does not matter.


def test_company_row_and_order_do_not_matter_to_the_bit(lm):
    alone = decode.generate(lm, [MINE], seed=7)
    for place in (0, 5):
        company = others(5, seed=place)
        crowd = [*company[:place], MINE, *company[place:]]
        assert only(decode.generate(lm, crowd, seed=7)) == alone


def test_more_requests_than_rows_give_each_what_it_gets_alone(llama):
    crowd = others(13, seed=3)
    together = decode.generate(llama, crowd, seed=1, batch_size=5)
    one_by_one = [c for r in crowd for c in decode.generate(llama, [r], seed=1, batch_size=5)]
    assert together == one_by_one
    assert [(c.id, c.sample) for c in together] == [
        (r.id, i) for r in crowd for i in range(r.settings.n)
    ]


def test_another_company_of_the_same_batch_size_gives_the_same_bits_for_every_batch_size(llama):
    for batch_size in (1, 5):
        few = decode.generate(llama, [MINE], seed=7, batch_size=batch_size)
        many = decode.generate(llama, [*others(4, seed=9), MINE], seed=7, batch_size=batch_size)
        assert only(many) == few


def test_another_batch_size_gives_the_same_tokens_and_log_probabilities_up_to_rounding(
    llama, alone
):
    for batch_size in (1, 5, 16):
        (done,) = decode.generate(llama, [MINE], seed=7, batch_size=batch_size)
        assert done.tokens == alone[0].tokens
        np.testing.assert_allclose(done.logprobs, alone[0].logprobs, atol=1e-5)


def test_four_samples_are_the_first_four_of_eight(llama):
    def samples(n):
        settings = dataclasses.replace(MINE.settings, n=n)
        return decode.generate(llama, [dataclasses.replace(MINE, settings=settings)], seed=7)

    assert samples(8)[:4] == samples(4)
    assert len({c.tokens for c in samples(8)}) == 8


def test_a_shorter_cap_gives_a_prefix_while_the_slots_stay_the_same(llama, alone):
    short = dataclasses.replace(MINE, settings=dataclasses.replace(MINE.settings, max_new_tokens=7))
    (done,) = decode.generate(llama, [short], seed=7)
    assert done.tokens == alone[0].tokens[:7]
    assert done.logprobs == alone[0].logprobs[:7]


def test_streaming_gives_the_bits_of_the_batch_in_pieces_that_join_to_its_text(llama, alone):
    *pieces, done = decode.stream(llama, MINE, seed=7)
    assert [done] == alone
    assert len(pieces) > 3
    assert "".join(pieces) == done.text


def test_on_token_sees_every_token_as_it_comes_and_changes_nothing(llama, alone):
    heard = []
    crowd = [*others(3, seed=4), MINE]
    done = decode.generate(llama, crowd, seed=7, on_token=lambda *what: heard.append(what))
    assert only(done) == alone
    for c in done:
        mine = [what[2:] for what in heard if what[:2] == (c.id, c.sample)]
        assert tuple(token for token, _ in mine) == c.tokens
        assert "".join(text for _, text in mine) == c.text


def test_a_character_comes_in_one_piece_and_half_a_character_at_the_end_is_told_as_such():
    """The tokens are the three bytes of a euro sign, an `a`, and two bytes of another."""
    words = tiny.words()
    sign = words.encode("€")
    assert len(sign) == 3
    tokens = [*sign, *words.encode("a"), *sign[:2]]
    table = 9 * np.eye(words.vocab_size)[[0, *tokens]]
    lm = dataclasses.replace(tiny.scripted(by_position=table), tokenizer=words)
    settings = Settings(max_new_tokens=len(tokens), temperature=0)
    *pieces, done = decode.stream(lm, [0, 0], settings, seed=0)
    assert done.tokens == tuple(tokens)
    assert pieces == ["€", "a", "\ufffd"]
    heard = []
    decode.generate(lm, [[0, 0]], settings, seed=0, on_token=lambda *what: heard.append(what[3]))
    assert heard == ["", "", "€", "a", "", "\ufffd"]
    assert done.text == "€a\ufffd"


def test_an_id_of_digits_is_the_number(llama):
    text, number = (decode.generate(llama, [Request([9], id=i)], seed=0)[0] for i in ("5", 5))
    assert text.logprobs == number.logprobs


@pytest.mark.parametrize("change", [dict(seed=8), dict(id="yours"), dict(sample=1)])
def test_another_seed_id_or_sample_gives_other_tokens(llama, alone, change):
    request = dataclasses.replace(MINE, id=change.get("id", "mine"))
    request = dataclasses.replace(request, settings=dataclasses.replace(MINE.settings, n=2))
    done = decode.generate(llama, [request], seed=change.get("seed", 7))[change.get("sample", 0)]
    assert done.tokens != alone[0].tokens


def first_key(keys_B, positions_B, stream):
    """A step that folds one key for the whole batch, as a loop that splits keys in its state does."""
    return keys.fold(jnp.broadcast_to(keys_B[:1], keys_B.shape), positions_B, stream)


def ignoring_the_position(keys_B, positions_B, stream):
    return keys.fold(keys_B, jnp.zeros_like(positions_B), stream)


@pytest.fixture
def fold(monkeypatch):
    """Puts another fold into the compiled loop, and clears it away afterwards."""

    def install(broken):
        names = types.SimpleNamespace(**{**vars(keys), "fold": broken})
        monkeypatch.setattr(sampling, "keys", names)
        loop.run.clear_cache()

    yield install
    loop.run.clear_cache()


def test_a_loop_with_one_key_for_the_batch_would_be_seen(llama, fold):
    fold(first_key)
    few = decode.generate(llama, [MINE], seed=7)
    many = decode.generate(llama, [*others(5, seed=0)[:2], MINE], seed=7)
    assert only(many) != few


def test_a_loop_that_forgot_the_position_would_be_seen(llama, alone, fold):
    fold(ignoring_the_position)
    with pytest.raises(AssertionError):
        test_two_roads.test_tokens_are_the_gumbel_maxima_that_the_key_schedule_promises(llama)


# Promise 7: settings are data.


@pytest.fixture
def compilations():
    """Names of what was compiled since the test began."""
    names = []

    def listen(event, duration, **kwargs):
        if event.endswith("backend_compile_duration"):
            names.append(kwargs.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_sweep_over_all_settings_and_seeds_compiles_the_loop_once(llama, compilations):
    sweep = [
        Settings(max_new_tokens=3),
        Settings(max_new_tokens=29, temperature=0),
        Settings(max_new_tokens=5, temperature=0.3, top_k=7),
        Settings(max_new_tokens=5, top_p=0.5, n=9),
    ]
    decode.generate(llama, [[5]], sweep[0], seed=0)
    loop.run.clear_cache()
    compilations.clear()
    for i, settings in enumerate(sweep):
        decode.generate(llama, ["cat", [7, 8, 9]], settings, seed=i)
    list(decode.stream(llama, "ate", sweep[0], seed=2**40))
    assert compilations == ["jit(run)"]


def test_a_new_number_of_rows_is_seen_by_the_counter(llama, compilations):
    decode.generate(llama, [MINE], seed=7)
    loop.run.clear_cache()
    compilations.clear()
    decode.generate(llama, [MINE], seed=7)
    decode.generate(llama, [MINE], seed=7, batch_size=16)
    assert compilations.count("jit(run)") == 2


# Ends.

CYCLE = 9 * np.eye(5)[[1, 2, 3, 4, 0]]  # a b c d e a b ...


@pytest.mark.parametrize(
    "eos_id, cap, text, tokens, reason",
    [
        (None, 7, "cdeabcd", (2, 3, 4, 0, 1, 2, 3), "length"),
        (4, 7, "cd", (2, 3, 4), "stop"),
        (4, 2, "cd", (2, 3), "length"),
        (4, 3, "cd", (2, 3, 4), "stop"),
        (1, 9, "cdea", (2, 3, 4, 0, 1), "stop"),
        (2, 1, "", (2,), "stop"),
    ],
)
def test_a_completion_ends_at_the_end_token_or_at_the_cap(eos_id, cap, text, tokens, reason):
    lm = tiny.scripted(by_token=CYCLE, eos_id=eos_id)
    (done,) = decode.generate(lm, ["ab"], Settings(max_new_tokens=cap, temperature=0), seed=0)
    assert (done.text, done.tokens, done.finish_reason) == (text, tokens, reason)
    assert len(done.logprobs) == len(done.sampled_logprobs) == len(done.margins) == len(tokens)


@pytest.mark.parametrize("ids", [(9, 2), (2, 9)])
def test_any_of_several_end_tokens_ends_a_completion(ids):
    lm = tiny.scripted(by_token=CYCLE, eos_id=9)
    lm.tokenizer.eos_ids = ids
    (done,) = decode.generate(lm, ["a"], Settings(max_new_tokens=5, temperature=0), seed=0)
    assert done.tokens == (1, 2) and done.finish_reason == "stop"


def test_the_end_of_the_context_window_ends_a_completion():
    lm = tiny.scripted(by_token=CYCLE, context_length=7)
    (done,) = decode.generate(lm, ["abc"], Settings(max_new_tokens=50, temperature=0), seed=0)
    assert (done.text, done.finish_reason) == ("deab", "length")


def test_an_end_token_inside_a_prompt_ends_nothing():
    lm = tiny.scripted(by_token=CYCLE, eos_id=1)
    (done,) = decode.generate(lm, ["ab"], Settings(max_new_tokens=3, temperature=0), seed=0)
    assert done.text == "cde"


def test_logits_at_a_position_choose_the_token_after_it():
    lm = tiny.scripted(by_position=9 * np.eye(11)[[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    (done,) = decode.generate(lm, [[0, 0, 0]], Settings(max_new_tokens=7, temperature=0), seed=0)
    assert done.tokens == (4, 1, 5, 9, 2, 6, 5)


@dataclasses.dataclass(frozen=True)
class Counting(tiny.Scripted):
    """Tells each step it takes."""

    def apply(self, variables, tokens_BT, *args, **kwargs):
        if tokens_BT.shape[1] == 1:
            jax.debug.callback(lambda: STEPS.append(1))
        return super().apply(variables, tokens_BT, *args, **kwargs)


STEPS: list[int] = []


def steps_of(requests, eos_id=None, **kwargs):
    lm = tiny.scripted(by_token=CYCLE, eos_id=eos_id)
    STEPS.clear()
    decode.generate(dataclasses.replace(lm, net=Counting(lm.config)), requests, seed=0, **kwargs)
    jax.effects_barrier()
    return len(STEPS)


def test_a_batch_stops_with_its_last_row_and_a_freed_row_takes_the_next_request_at_once():
    def wishes(*caps):
        return [Request("a", Settings(max_new_tokens=cap, temperature=0)) for cap in caps]

    assert steps_of(wishes(50, 3), eos_id=4) == 4
    assert steps_of(wishes(5, 3, 2)) == 5
    assert steps_of(wishes(7, 3, 4, 2), batch_size=2) == 9


def test_nothing_asked_for_gives_nothing(llama):
    assert decode.generate(llama, [], seed=0) == []


def test_text_gets_the_begin_token_and_token_ids_are_taken_as_they_are(llama):
    text, ids = decode.generate(llama, ["cat", [9, 8]], Settings(max_new_tokens=1), seed=0)
    assert text.prompt_tokens == (llama.tokenizer.bos_id, *llama.tokenizer.encode("cat"))
    assert ids.prompt_tokens == (9, 8)
    assert (text.id, ids.id) == (0, 1)


@pytest.mark.parametrize(
    "count, size", [(0, 16), (1, 16), (16, 16), (17, 32), (64, 64), (65, 100), (100, 100)]
)
def test_buckets_are_powers_of_two_up_to_the_window(count, size):
    assert jobs.bucket(count, 16, 100) == size


def test_requests_that_need_other_numbers_of_slots_come_back_in_order():
    lm = tiny.scripted(by_token=CYCLE, context_length=131)
    asked = [
        Request([0] * prompt, Settings(max_new_tokens=cap, temperature=0), f"{prompt}+{cap}")
        for prompt, cap in [(3, 62), (1, 2), (70, 3), (40, 24), (129, 9), (1, 63)]
    ]
    done = decode.generate(lm, asked, seed=0)
    assert [c.id for c in done] == ["3+62", "1+2", "70+3", "40+24", "129+9", "1+63"]
    assert [len(c.tokens) for c in done] == [62, 2, 3, 24, 2, 63]
    assert all(c.text == ("bcdea" * 13)[: len(c.text)] for c in done)
