"""Are documents held out by their content alone, and does nothing that resembles them reach the training text?"""

import hashlib
import json
import random

import pytest

from model import errors
from train import corpus, documents

WORDS = [f"word{number}" for number in range(997)]


def text(seed, words=41):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def below(texts, share):
    return [
        text
        for text in texts
        if int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256 < share
    ]


TEXTS = [text(seed) for seed in range(211)]


def test_documents_are_held_out_by_their_sha256(tmp_path):
    made = corpus.load(write(tmp_path / "a.jsonl", TEXTS), held_out=0.1)
    assert list(made.held_out_documents) == below(TEXTS, 0.1)
    assert list(made.items()) == [text for text in TEXTS if text not in below(TEXTS, 0.1)]
    assert 10 < len(made.held_out_documents) < 35


def test_the_choice_depends_neither_on_order_nor_on_company(tmp_path):
    shuffled = random.Random(3).sample(TEXTS, len(TEXTS))
    one = corpus.load(write(tmp_path / "a.jsonl", TEXTS))
    other = corpus.load(
        [write(tmp_path / "b.jsonl", shuffled[:100]), write(tmp_path / "c.jsonl", shuffled[100:])]
    )
    more = corpus.load(write(tmp_path / "d.jsonl", [text(seed) for seed in range(307)]))
    assert sorted(one.held_out_documents) == sorted(other.held_out_documents)
    assert sorted(one.items()) == sorted(other.items())
    assert set(one.held_out_documents) <= set(more.held_out_documents)
    assert set(one.items()) <= set(more.items())


def test_exact_duplicates_are_trained_on_once(tmp_path):
    made = corpus.load(
        [write(tmp_path / "a.jsonl", TEXTS), write(tmp_path / "b.jsonl", [*TEXTS[:7], text(5003)])]
    )
    assert len(list(made.items())) == len(set(made.items()))
    assert list(made.train_documents(1)) == [text(5003)]
    assert made.report["duplicates_dropped"] == 7


def test_near_duplicates_of_held_out_documents_are_never_trained_on(tmp_path):
    held = below(TEXTS, 0.05)
    near = [f"Changed {document.upper()} here" for document in held]
    near = [document for document in near if document not in below(near, 0.05)]
    longer = [f"{text(1000)} {held[0]} {text(1001)}"]
    assert near and not below(longer, 0.05)
    made = corpus.load(write(tmp_path / "a.jsonl", [*near, *TEXTS, *longer]))
    assert list(made.items()) == [text for text in TEXTS if text not in held]
    assert made.report["near_duplicates_dropped"] == len(near) + 1


def test_the_filter_works_across_sources(tmp_path):
    held = below(TEXTS, 0.05)[0]
    made = corpus.load(
        [
            write(tmp_path / "a.jsonl", [held + " more", text(5003)]),
            write(tmp_path / "b.jsonl", TEXTS),
        ]
    )
    assert list(made.train_documents(0)) == [text(5003)]


def test_of_held_out_documents_that_resemble_each_other_only_the_longest_is_measured(tmp_path):
    family = [f"{text(5)} {text(number, 3 + number % 5)}" for number in range(101)]
    chosen = below(family, 0.2)
    assert len(chosen) > 3 and len(min(chosen)) < max(map(len, chosen))
    made = corpus.load(write(tmp_path / "a.jsonl", [*family, *TEXTS]), held_out=0.2)
    kept = [document for document in made.held_out_documents if document in family]
    assert len(kept) == 1 and len(kept[0]) == max(map(len, chosen))
    assert not set(family) & set(made.items())


def test_given_held_out_documents_are_kept_as_they_are_and_filter_the_training_text(tmp_path):
    valid = [TEXTS[0], TEXTS[0], text(5003)]
    near = text(5003) + " and more"
    made = corpus.load(
        write(tmp_path / "a.jsonl", [*TEXTS, near, TEXTS[7]]),
        valid=write(tmp_path / "v.jsonl", valid),
    )
    assert list(made.held_out_documents) == valid
    assert list(made.items()) == TEXTS[1:]
    assert made.report["duplicates_dropped"] == 2 and made.report["near_duplicates_dropped"] == 1


def test_the_report_counts_documents_and_bytes(tmp_path):
    texts = [*TEXTS, TEXTS[0], "é" * 11]
    made = corpus.load(write(tmp_path / "a.jsonl", texts))
    size = lambda texts: sum(len(text.encode()) for text in texts)  # noqa: E731
    assert made.report == {
        "train_documents": len(list(made.items())),
        "train_bytes": size(made.items()),
        "held_out_documents": len(made.held_out_documents),
        "held_out_bytes": size(made.held_out_documents),
        "duplicates_dropped": 1,
        "near_duplicates_dropped": 0,
    }
    assert made.report["train_documents"] + made.report["held_out_documents"] == len(texts) - 1


def test_the_digest_changes_with_whatever_changes_the_documents(tmp_path):
    path, other = write(tmp_path / "a.jsonl", TEXTS), write(tmp_path / "b.jsonl", TEXTS[::-1])
    digests = [
        corpus.load(path).digest,
        corpus.load(path, held_out=0.06).digest,
        corpus.load(path, valid=other).digest,
        corpus.load([path, other]).digest,
        corpus.load([other, path]).digest,
    ]
    write(tmp_path / "a.jsonl", TEXTS[1:])
    digests.append(corpus.load(path).digest)
    assert len(set(digests)) == len(digests)
    write(tmp_path / "a.jsonl", TEXTS)
    assert corpus.load(path).digest == digests[0]


@pytest.mark.parametrize("between", ["\n\n", "\n"])
def test_a_single_ordinary_text_file_is_parted_into_training_and_held_out_text(tmp_path, between):
    texts = [*TEXTS, *(f"{word}." for word in WORDS[:37])]
    path = tmp_path / "my.txt"
    path.write_text(between.join(texts))
    one, again = (corpus.load(str(path)) for _ in range(2))
    assert list(one.held_out_documents) == below(texts, 0.05)
    assert list(one.items()) == [text for text in texts if text not in below(texts, 0.05)]
    assert one.held_out_documents == again.held_out_documents and one.digest == again.digest
    digests = {
        corpus.load({"path": str(path), "split": split}).digest for split in documents.SPLITS
    }
    assert one.digest in digests and len(digests) == 4


def test_no_document_in_the_held_out_share_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(text(0))
    message = (
        r"none of the 1 documents of data\.train fell into the held-out share 0\.05; name files in data\.valid, "
        r".*\(a single text file is parted by itself"
    )
    with pytest.raises(errors.BadInput, match=message):
        list(corpus.load(str(path)).items())


def test_a_source_with_nothing_left_to_train_on_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(
        errors.BadInput, match=r"all 211 documents of data source .*a\.jsonl are held out or repeat"
    ):
        list(corpus.load(path, valid=path).items())


@pytest.mark.parametrize("share", [0, 1, -0.1, 2.5])
def test_an_impossible_held_out_share_is_refused(share):
    with pytest.raises(
        errors.BadInput, match=rf"data\.held_out is {share}; it must lie between 0 and 1"
    ):
        corpus.load("python", held_out=share)


def test_no_source_and_half_given_weights_are_refused():
    with pytest.raises(
        errors.BadInput, match=r'data\.train names no source; give a file, or "python"'
    ):
        corpus.load([])
    with pytest.raises(
        errors.BadInput, match=r"data source b has no weight, but others have; give all a weight"
    ):
        corpus.load([{"path": "a", "weight": 1}, "b"])


def test_a_file_that_changes_between_readings_is_noticed(tmp_path):
    path = write(tmp_path / "a.jsonl", TEXTS)
    made = corpus.load(path)
    assert made.report["train_documents"] > 150
    write(tmp_path / "a.jsonl", TEXTS[:-1])
    with pytest.raises(errors.BadInput, match=r"a\.jsonl changed while it was read; start again"):
        list(made.items())
