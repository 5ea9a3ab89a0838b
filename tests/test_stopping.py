"""Is a stop string found wherever the tokens happen to end, and never told before it is certain?"""

import random

import pytest
import tiny
import tokenizer_homes

from decode import stopping
from model import segmentation

LETTERS = "abé\n"


class Cut:
    """Ids that stand for given stretches of bytes."""

    def __init__(self, text: str, places: list[int]):
        raw = text.encode()
        bounds = [0, *places, len(raw)]
        self.stretches = [raw[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    def reader(self):
        return segmentation.Bytes(self.stretches.__getitem__)


def run(words, ids, stop, least=0):
    """What a stopper makes of ids: (what stopped it, its text, the texts told on the way, how many ids it took)."""
    stopper, told, taken = stopping.Stopper(words.reader(), stop, least), [], 0
    for id in ids:
        found, taken = stopper.push(id), taken + 1
        told.append(stopper.told())
        if found is not None:
            break
    stopper.flush()
    return stopper, [*told, stopper.told()], taken


def expected(text: str, stop: tuple[str, ...]) -> tuple[str | None, str]:
    """By definition: the first letter at which a stop string is complete, and the longest such."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return longest, text[: end - len(longest)]
    return None, text


@pytest.mark.parametrize("seed", range(200))
def test_found_and_trimmed_as_the_definition_says_however_the_text_is_cut(seed):
    draw = random.Random(seed)
    text = "".join(draw.choices(LETTERS, k=draw.randint(1, 13)))
    stop = tuple("".join(draw.choices(LETTERS, k=draw.randint(1, 4))) for _ in range(3))
    size = len(text.encode())
    for _ in range(5):
        words = Cut(text, sorted(draw.sample(range(1, size), draw.randint(0, size - 1))))
        stopper, told, taken = run(words, range(len(words.stretches)), stop)
        assert (stopper.found, stopper.text(text)) == expected(text, stop)
        assert "".join(told) == stopper.text(text)
        if stopper.found is not None:  # and no token later than that of its last letter
            before = b"".join(words.stretches[: taken - 1]).decode(errors="ignore")
            assert expected(before, stop)[0] is None


def test_of_two_that_end_together_the_longer_counts_and_otherwise_the_one_that_ends_first():
    words = Cut("xabcd", [])
    assert run(words, [0], ("c", "abc"))[0].text("xabcd") == "x"
    assert run(words, [0], ("b", "abcd"))[0].text("xabcd") == "xa"


def test_text_is_held_back_only_while_it_may_begin_a_stop_string():
    words = Cut("one\n\ntwo\n\n\nthree", [4, 5, 7, 9, 10])
    _, told, taken = run(words, range(6), ("\n\n\n",))
    assert told == ["one", "", "\n\ntw", "o", "", "", ""]
    assert taken == 6


def test_what_is_complete_before_the_least_number_of_tokens_does_not_count():
    words = Cut("a.b.c.", [1, 2, 3, 4, 5])
    for least, text in ((0, "a"), (2, "a"), (3, "a.b"), (5, "a.b.c"), (7, "a.b.c.")):
        stopper, told, taken = run(words, range(6), (".",), least)
        assert stopper.text("a.b.c."[:taken]) == "".join(told) == text
    words = Cut("a.b", [1])  # complete in a token that counts, begun in one that does not
    assert run(words, range(2), ("a.",), 2)[0].found == "a."


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "llama_json", "qwen2", "ours"])
def test_with_the_reader_of_any_tokenizer_the_text_ends_before_the_stop_string(name):
    words = {**tokenizer_homes.loaded(), "ours": tiny.words()}[name]
    ids = words.encode("moon moon 木 moon")
    text = words.decode(ids)
    for stop in ("n m", "oon", text[-1], text[10], "n " + text[10]):
        stopper, told, taken = run(words, ids, (stop,))
        whole = words.decode(ids[:taken])
        assert stopper.found == stop
        assert stopper.text(whole) == "".join(told) == text[: text.index(stop)]


def test_the_text_of_no_stop_string_is_told_whole():
    words = Cut("ab\n", [1, 2])
    stopper, told, _ = run(words, range(3), ("\n\n", "c"))
    assert (stopper.found, stopper.text("ab\n"), told) == (None, "ab\n", ["a", "b", "", "\n"])
