"""Is a document recognised that repeats one we must not have seen, and only then?"""

import random
import re

import hypothesis
from hypothesis import strategies

from train import overlap

VOCABULARY = [f"word{number}" for number in range(997)]

# No deadline: other tests run beside these.
unhurried = hypothesis.settings(deadline=None, derandomize=True)


def text(seed: int, words: int = 101) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def by_sets(document: str, held_out: list[str]) -> bool:
    """The rule in plain Python."""

    def sequences(text):
        words = re.findall(r"\w+", text.lower())
        return (
            {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))} if words else set()
        )

    ours, theirs = sequences(document), [sequences(text) for text in held_out]
    shared = ours & set().union(*theirs)
    return bool(shared) and (
        len(shared) >= len(ours) / 4
        or any(len(ours & one) >= len(one) / 4 for one in theirs if one)
    )


@unhurried
@hypothesis.given(
    document=strategies.lists(strategies.sampled_from("abc"), max_size=11),
    held_out=strategies.lists(
        strategies.lists(strategies.sampled_from("abc"), max_size=17), max_size=3
    ),
)
def test_the_index_decides_as_sets_of_word_sequences_do(document, held_out):
    held_out = [" ".join(words) for words in held_out]
    assert overlap.Index(held_out).resembles(" ".join(document)) == by_sets(
        " ".join(document), held_out
    )


def test_a_copy_with_every_tenth_word_changed_is_recognised():
    words = text(0).split()
    words[::10] = ["changed"] * len(words[::10])
    assert overlap.Index([text(1), text(0)]).resembles(" ".join(words))


def test_case_punctuation_and_line_breaks_do_not_hide_a_copy():
    assert overlap.Index([text(0)]).resembles(text(0).upper().replace(" ", ",\n  "))


def test_a_document_that_holds_a_held_out_one_is_recognised_and_the_reverse():
    long = " ".join([text(1, 5003), text(0), text(2, 5003)])
    assert overlap.Index([text(0)]).resembles(long)
    assert overlap.Index([long]).resembles(text(0))


def test_unrelated_documents_and_short_phrases_in_common_pass():
    index = overlap.Index([text(0), text(1)])
    assert not index.resembles(text(2))
    assert not index.resembles(" ".join([text(2), *text(0).split()[:9], text(3)]))
    assert not index.resembles("") and not index.resembles("---")
    assert not overlap.Index([]).resembles(text(0))


def test_sequences_are_of_five_words_and_a_quarter_of_them_is_enough():
    shared = "Io orbits Jupiter in two"
    assert overlap.Index([f"{shared} days"]).resembles(f"{shared} hours")
    assert not overlap.Index(["Io orbits Jupiter in days"]).resembles("Io orbits Jupiter in hours")
    assert overlap.Index([f"{shared} days or so"]).resembles(f"{shared} long hours by")
    assert not overlap.Index([f"{shared} days or so on"]).resembles(
        f"{shared} long hours by day or"
    )


def test_documents_under_five_words_are_compared_whole():
    index = overlap.Index(["Io is a moon"])
    assert index.resembles("IO is a moon!")
    assert not index.resembles("Io is a")
    assert not index.resembles("Io is a moon of Jupiter")


def test_scripts_without_spaces_are_compared_by_characters():
    index = overlap.Index(["木星の衛星の中で最も大きいガニメデは惑星より大きい"])
    assert index.resembles("木星の衛星の中で最も大きいカリストは惑星より小さい")
    assert not index.resembles("土星の環は氷の粒子からできていることが知られている")


def test_before_looks_only_at_earlier_documents():
    index = overlap.Index([text(0), text(1), text(0)])
    assert not index.resembles(text(0), before=0)
    assert not index.resembles(text(1), before=1)
    assert index.resembles(text(0), before=2)


def test_word_numbers_are_blake2b_and_so_the_same_in_every_process():
    # printf ganymede | b2sum -l 64
    assert overlap._number("ganymede") == 0xF5FD57728DDF702B
