"""Does a constraint leave exactly the tokens with which the text can still come to match?"""

import importlib
import itertools
import json
import re

import numpy as np
import pytest
import tiny
import tokenizer_homes

from decode import grammar
from decode.settings import Settings
from model import errors

END = 11
PIECES = "a b c ab bc é bé ca".split()
SPELLED = [*(piece.encode() for piece in PIECES), b"\xc3", b"\xa9", b"b\xc3", b"", b"a"]
SCHEMA = {
    "type": "object",
    "properties": {
        "moons": {"type": "integer", "minimum": 0, "maximum": 97},
        "planet": {"enum": ["jupiter", "mars"]},
        "rings": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["moons", "planet", "rings"],
    "additionalProperties": False,
}


class Spelled:
    """A tokenizer whose ids stand for the bytes they are made with."""

    def __init__(self, spelled, digest):
        self.spelled, self.digest, self.vocab_size, self.asked = spelled, digest, len(spelled), 0

    def raw(self, id, *, first=False):
        self.asked += 1
        return self.spelled[id]


def language(regex: str) -> set[bytes]:
    """All texts of at most six letters that match, by Python's own engine."""
    texts = ("".join(t) for n in range(7) for t in itertools.product("abcé", repeat=n))
    return {text.encode() for text in texts if re.fullmatch(regex, text)}


def walk(constraint, seed, longest=199):
    """Tokens drawn evenly from what is allowed, until the text is complete."""
    draw, matcher, tokens = np.random.default_rng(seed), constraint.start(), []
    while not matcher.done and len(tokens) < longest:
        tokens.append(int(draw.choice(np.flatnonzero(matcher.mask()))))
        if tokens[-1] in constraint.ends:
            return tokens[:-1]
        matcher.advance(tokens[-1])
    return tokens


def ours(**settings):
    return grammar.compile(tiny.words(), 307, (3,), Settings(**settings))


@pytest.mark.parametrize(
    "regex", ["abc?|aé", "(ab|a)(bé|c){0,2}", "a?[bc]é?", "(?:abc)?", "^[^a]b$", "ab/|ab"]
)
def test_the_allowed_tokens_are_those_with_which_the_text_can_still_be_completed(regex):
    words = Spelled(SPELLED, "spelled")
    constraint = grammar.compile(words, 17, (END,), Settings(regex=regex))
    texts = language(regex)
    open_, seen = [((), b"")], 0
    while open_:
        tokens, text = open_.pop()
        matcher = constraint.start()
        for token in tokens:
            matcher.advance(token)
        wanted = {
            id
            for id, raw in enumerate(SPELLED)
            if raw and any(word.startswith(text + raw) for word in texts)
        }
        assert set(np.flatnonzero(matcher.mask())) == wanted | ({END} if text in texts else set())
        assert matcher.done == (text in texts and not wanted)
        open_ += [((*tokens, id), text + SPELLED[id]) for id in wanted]
        seen += 1
    assert seen > 5


@pytest.mark.parametrize("name", [*tokenizer_homes.KINDS, "ours"])
def test_of_any_tokenizer_what_decodes_to_the_beginning_of_a_match_is_allowed(name):
    words = {**tokenizer_homes.loaded(), "ours": tiny.words()}[name]
    texts = {word + more for word in ("moon", "oo", " mo") for more in ("", " moon", "mo")}
    regex = "(moon|oo| mo)( moon|mo)?"
    draw, longest = np.random.default_rng(7), 0
    for _ in range(5):
        matcher = grammar.compile(words, words.vocab_size, (), Settings(regex=regex)).start()
        tokens = []
        while matcher.mask().any():
            longest = max(longest, len(tokens))
            for id in range(words.vocab_size):
                text = words.decode([*tokens, id])
                if text == words.decode(tokens) or "\ufffd" in text:
                    continue
                assert matcher.mask()[id] == any(t.startswith(text) for t in texts), (tokens, id)
            tokens.append(int(draw.choice(np.flatnonzero(matcher.mask()))))
            matcher.advance(tokens[-1])
        assert words.decode(tokens) in texts
    assert longest > 1


@pytest.mark.parametrize("seed", range(3))
def test_what_a_schema_allows_parses_and_has_its_form(seed):
    made = json.loads(tiny.words().decode(walk(ours(json_schema=json.dumps(SCHEMA)), seed)))
    assert list(made) == ["moons", "planet", "rings"]
    assert 0 <= made["moons"] <= 97 and made["planet"] in ("jupiter", "mars")
    assert 1 <= len(made["rings"]) <= 3 and all(type(ring) is bool for ring in made["rings"])


def test_blanks_in_json_are_bounded_so_that_no_model_can_stay_in_them():
    words, matcher = tiny.words(), ours(json_schema=json.dumps(SCHEMA)).start()
    (opened,), (blank,) = words.encode("{"), words.encode("\n")
    matcher.advance(opened)
    taken = 0
    while matcher.mask()[blank]:
        matcher.advance(blank)
        taken += 1
    assert taken == 20


def test_a_grammar_counts_brackets_as_we_do():
    words = Spelled([b"(", b")", b"((", b"()", b"))", b"", b")("], "brackets")
    constraint = grammar.compile(
        words, 7, (5,), Settings(grammar='start: pair+\npair: "(" pair* ")"')
    )
    draw = np.random.default_rng(3)
    for _ in range(11):
        matcher, text = constraint.start(), ""
        while len(text) < 13:
            for id, raw in enumerate(words.spelled):
                new = text + raw.decode()
                depths = [new[:n].count("(") - new[:n].count(")") for n in range(1, len(new) + 1)]
                whole = bool(text) and depths[-1] == 0
                assert matcher.mask()[id] == (whole if id == 5 else min(depths) >= 0)
            token = int(draw.choice([0, 1, 2, 3, 4, 6], p=[0.1, 0.3, 0.1, 0.2, 0.2, 0.1]))
            if matcher.mask()[token]:
                matcher.advance(token)
                text += words.spelled[token].decode()


def test_an_end_may_be_a_token_with_text_and_then_ends_only():
    constraint = grammar.compile(
        Spelled(SPELLED, "spelled"), 13, (0, END), Settings(regex="b(ab)?")
    )
    matcher = constraint.start()
    assert np.flatnonzero(matcher.mask()).tolist() == [1]
    matcher.advance(1)
    assert np.flatnonzero(matcher.mask()).tolist() == [0, 3, END, 12]
    matcher.advance(0)
    assert matcher.done
    assert np.flatnonzero(matcher.mask()).tolist() == [0, END]


def test_without_an_end_token_a_complete_text_is_done_and_a_dead_end_is_not():
    words = Spelled([b"a", b"b"], "two")
    complete, dead = (
        grammar.compile(words, 2, (), Settings(regex=regex)).start() for regex in ("ab", "abc")
    )
    for matcher in (complete, dead):
        matcher.advance(0)
        assert not matcher.done
        matcher.advance(1)
        assert not matcher.mask().any()
    assert complete.done
    assert not dead.done


def test_matchers_of_one_constraint_do_not_disturb_each_other():
    constraint = ours(regex="the (cat|moon)")
    one, other = constraint.start(), constraint.start()
    before = other.mask().copy()
    one.advance(int(np.flatnonzero(one.mask())[0]))
    assert not (one.mask() == before).all()
    np.testing.assert_array_equal(other.mask(), before)
    np.testing.assert_array_equal(constraint.start().mask(), before)


def test_the_vocabulary_is_spelled_once_for_all_constraints():
    words = Spelled(SPELLED, "once")
    for regex in ("a", "b", "a"):
        grammar.compile(words, 13, (END,), Settings(regex=regex))
    assert words.asked == 2 * 13


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(regex="(ab"), "regex '(ab' cannot be used: unclosed group; correct it"),
        (dict(regex="a\\"), r"regex 'a\\' cannot be used: it ends in a backslash that escapes"),
        (dict(regex="(?=a)b"), "cannot be used: look-around, including look-ahead"),
        (
            dict(regex="é|ü" * 99),
            "'" + ("é|ü" * 20)[:59] + "…' matches no text that this tokenizer",
        ),
        (
            dict(grammar="start: b"),
            "grammar 'start: b' cannot be used: line 1, column 8: unknown name",
        ),
        (dict(grammar='a: "x"'), "cannot be used: no start rule found; correct it"),
        (dict(json_schema="{"), "json_schema '{' is not JSON (Expecting property name"),
        (dict(json_schema="[]"), "cannot be used: schema must be an object or boolean; correct it"),
        (dict(json_schema='{"type": "objec"}'), "cannot be used: Invalid type: objec; correct it"),
        (dict(json_schema="false"), "cannot be used: Unsatisfiable schema: schema is false"),
    ],
)
def test_what_does_not_parse_or_cannot_begin_is_refused_in_one_line(settings, message):
    with pytest.raises(errors.BadInput, match=re.escape(message)) as error:
        grammar.compile(Spelled([b"a", b"b"], "two"), 2, (), Settings(**settings))
    assert "\n" not in str(error.value)


def test_a_token_that_is_not_allowed_is_refused():
    with pytest.raises(errors.BadInput, match="token 1 came where regex does not allow it; leave"):
        grammar.compile(Spelled([b"a", b"b"], "two"), 2, (), Settings(regex="a")).start().advance(1)


def test_without_the_library_the_message_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        errors.BadInput, match="regex needs llguidance, which is not installed; pip"
    ):
        grammar.compile(Spelled([b"a"], "lone"), 1, (), Settings(regex="aa"))
