"""Is the batch of a step a pure function, and do tokens on disk survive what happens to disks?"""

import errno
import json
import os
import re

import numpy as np
import pytest

from model import errors, tokenizer, trained_tokenizer
from tests.test_packed import tokens_of
from train import corpus, data, rows

TEXTS = [
    f"Moon {number} goes around planet {number % 7}.\n" * (number % 5 + 1) for number in range(307)
]


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


PACKED = [
    rows.Packed(tokens_of([31, 5, 97, 211] * 5), 11),
    rows.Packed(tokens_of([17] * 61, first=10**6), 11),
]


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
def test_a_batch_depends_on_data_seed_and_step_alone(weights):
    make = lambda seed=13: data.batches(PACKED, weights, batch_size=5, seed=seed)  # noqa: E731
    in_order = [make()[step] for step in range(53)]
    backwards = make()
    for step in reversed(range(53)):
        assert same(backwards[step], in_order[step])
    assert not any(same(make(14)[step], in_order[step]) for step in range(53))
    assert {name: array.shape for name, array in in_order[0].items()} == dict.fromkeys(
        ["tokens", "targets", "segments", "weights"], (5, 11)
    )


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
def test_a_late_step_costs_no_more_rows_than_the_first(weights, monkeypatch):
    read = []
    inner = rows.Packed.__getitem__
    monkeypatch.setattr(
        rows.Packed, "__getitem__", lambda self, index: read.append(index) or inner(self, index)
    )
    made = data.batches(PACKED, weights, batch_size=5, seed=13)
    read.clear()  # one of each source, to see which arrays it has
    assert made[10**6]["tokens"].shape == made[10**12]["tokens"].shape == (5, 11)
    assert len(read) == 10


def firsts(made, count):
    """What tells rows apart, in the order in which they come: tokens and targets together."""
    rows = []
    for step in range(-(-count // 5)):
        batch = made[step]
        rows += [
            tuple(tokens) + tuple(targets)
            for tokens, targets in zip(
                batch["tokens"].tolist(), batch["targets"].tolist(), strict=True
            )
        ]
    return rows[:count]


def test_every_row_comes_once_per_epoch_in_an_order_of_its_own():
    total = sum(map(len, PACKED))
    seen = firsts(data.batches(PACKED, None, batch_size=5, seed=13), 3 * total)
    epochs = [seen[start : start + total] for start in range(0, 3 * total, total)]
    everything = {
        tuple(np.concatenate([p[i]["tokens"], p[i]["targets"]]).tolist())
        for p in PACKED
        for i in range(len(p))
    }
    assert len(everything) == total
    assert all(len(epoch) == len(set(epoch)) and set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_mixture_keeps_its_proportions_and_repeats_each_source_in_epochs_of_its_own():
    seen = firsts(data.batches(PACKED, (0.7, 0.3), batch_size=5, seed=13), 1000)
    second = [row for row in seen if max(row) >= 10**6]
    assert len(second) == pytest.approx(300, abs=2)
    epoch = len(PACKED[1])
    assert len(set(second[:epoch])) == epoch and set(second[epoch : 2 * epoch]) == set(
        second[:epoch]
    )
    assert second[:epoch] != second[epoch : 2 * epoch]


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
def test_sources_whose_tasks_make_different_arrays_have_zeros_for_what_others_make(weights):
    def marked(row, rng):
        return {**row, "prefix": np.ones(11, np.int32)}

    sources = [PACKED[0], rows.Changed(PACKED[1], marked, 3, "")]
    batches = data.batches(sources, weights, batch_size=5, seed=13)
    plain = data.batches(PACKED, weights, batch_size=5, seed=13)
    for step in range(7):
        batch = dict(batches[step])
        second = batch["tokens"].max(axis=1) >= 10**6
        np.testing.assert_array_equal(batch.pop("prefix"), second[:, None] * np.ones((5, 11)))
        assert same(batch, plain[step])
        assert batch["tokens"].dtype == np.int32
    assert {0, 1} == {value for step in range(7) for value in batches[step]["prefix"].flat}


def test_equal_sources_are_shuffled_differently():
    twins = [rows.Packed(tokens_of([17] * 61, first=first), 11) for first in (4, 10**6)]
    seen = firsts(data.batches(twins, (0.5, 0.5), batch_size=5, seed=13), 100)
    one = [row for row in seen if max(row) < 10**6]
    other = [
        tuple(id - 10**6 + 4 if id >= 10**6 else id for id in row)
        for row in seen
        if max(row) >= 10**6
    ]
    assert set(one) & set(other)
    assert one[:20] != other[:20]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_evaluation_reads_every_row_in_order_in_batches_of_one_shape(batch_size):
    packed = PACKED[1]
    made = list(data.eval_batches(packed, batch_size))
    joined = {name: np.concatenate([batch[name] for batch in made]) for name in made[0]}
    assert all(batch["tokens"].shape == (batch_size, 11) for batch in made)
    assert all(
        same({name: array[index] for name, array in joined.items()}, packed[index])
        for index in range(len(packed))
    )
    assert not any(array[len(packed) :].any() for array in joined.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rows.Packed(PACKED[0].tokens, 0), r"row length is 0; it must be at least 1"),
        (
            lambda: rows.Packed(PACKED[0].tokens, 7, 7),
            r"overlap of rows is 7; it must be .* below their length 7",
        ),
        (
            lambda: data.batches(PACKED, None, batch_size=0, seed=1),
            r"batch size is 0; it must be at least 1",
        ),
        (
            lambda: data.batches(PACKED, None, batch_size=1, seed=-1),
            r"data seed is -1; it must be at least 0 and below",
        ),
    ],
)
def test_impossible_shapes_and_seeds_are_refused(make, message):
    with pytest.raises(errors.BadInput, match=message):
        make()


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train(TEXTS, vocab_size=307)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def loaded(texts, **options):
    valid = texts.with_name("valid.txt")
    valid.write_text("Ganymède is held out")
    return corpus.load([{"path": str(texts), **options}], valid=str(valid))


def test_prepared_arrays_hold_the_documents_between_bos_and_eos(trained, texts, tmp_path):
    made = data.prepare(loaded(texts), trained, tmp_path / "data")
    kept = list(loaded(texts).items())
    (examples,) = made.train
    train = examples.streams["text"]
    assert train.ids.tolist() == [id for text in kept for id in (2, *trained.encode(text), 3)]
    assert train.offsets[0] == 0 and train.offsets[-1] == len(train.ids)
    assert [
        trained.decode(train.ids[a:b])
        for a, b in zip(train.offsets, train.offsets[1:], strict=False)
    ] == kept
    assert (train.ids.dtype, train.offsets.dtype) == (np.uint16, np.int64)
    sizes = [len(examples), examples.bytes, examples.words]
    texts = "\n".join(kept)
    assert sizes == [len(kept), sum(len(text.encode()) for text in kept), len(texts.split())]
    assert [len(made.valid), made.valid.bytes, made.valid.words] == [1, 21, 4]
    assert trained.decode(made.valid.streams["text"].ids) == "Ganymède is held out"
    assert made.weights is None and made.report["train_documents"] == len(kept)
    assert isinstance(train.ids.base, np.memmap)


def test_large_vocabularies_are_stored_in_four_bytes(trained, texts, tmp_path, monkeypatch):
    narrow = data.prepare(loaded(texts), trained, tmp_path / "narrow")
    monkeypatch.setitem(trained.__dict__, "vocab_size", 2**16 + 1)
    wide = data.prepare(loaded(texts), trained, tmp_path / "wide")
    assert wide.train[0].streams["text"].ids.dtype == np.uint32
    assert (
        wide.train[0].streams["text"].ids.tolist() == narrow.train[0].streams["text"].ids.tolist()
    )


def test_the_size_of_the_chunks_does_not_show(trained, texts, tmp_path, monkeypatch):
    whole = data.prepare(loaded(texts), trained, tmp_path / "whole")
    monkeypatch.setattr(data, "_CHUNK_BYTES", 101)
    cut = data.prepare(loaded(texts), trained, tmp_path / "cut")
    names = sorted(path.relative_to(whole.directory) for path in whole.directory.rglob("*.*"))
    assert len(names) == 5
    assert all(
        (whole.directory / name).read_bytes() == (cut.directory / name).read_bytes()
        for name in names
    )


def test_weights_come_from_the_sources_and_do_not_tokenise_again(
    trained, texts, tmp_path, monkeypatch
):
    first = data.prepare(loaded(texts), trained, tmp_path)
    monkeypatch.setattr(data, "_write", None)
    second = data.prepare(loaded(texts, weight=2.5), trained, tmp_path)
    assert second.weights == (2.5,) and second.directory == first.directory


def test_progress_ends_with_all_bytes(trained, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_CHUNK_BYTES", 1009)
    seen = []
    made = data.prepare(
        loaded(texts), trained, tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    total = made.train[0].bytes + made.valid.bytes
    assert len(seen) > 7 and seen == sorted(seen) and seen[-1] == (total, total)


def test_what_is_there_is_not_made_again(trained, texts, tmp_path, monkeypatch):
    first = data.prepare(loaded(texts), trained, tmp_path)
    monkeypatch.setattr(trained_tokenizer.Trained, "encode_batch", None)
    monkeypatch.setattr(corpus.Corpus, "train_documents", None)
    assert (
        data.prepare(loaded(texts), trained, tmp_path).train[0].streams["text"].ids.tolist()
        == first.train[0].streams["text"].ids.tolist()
    )


@pytest.mark.parametrize("change", ["text", "tokenizer", "split"])
def test_a_changed_text_tokenizer_or_split_is_made_again(trained, texts, tmp_path, change):
    first = data.prepare(loaded(texts), trained, tmp_path / "data")
    if change == "text":
        texts.write_text(texts.read_text() + '{"text": "Callisto"}\n')
    other = tokenizer.train(TEXTS, vocab_size=311) if change == "tokenizer" else trained
    second = data.prepare(
        loaded(texts, format="text" if change == "split" else "auto"), other, tmp_path / "data"
    )
    assert second.digest != first.digest and second.directory != first.directory
    assert (
        second.train[0].streams["text"].ids.tolist() != first.train[0].streams["text"].ids.tolist()
    )


def test_being_killed_in_the_middle_leaves_nothing_that_is_taken_for_complete(
    trained, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(data, "_CHUNK_BYTES", 1009)
    whole = data.prepare(loaded(texts), trained, tmp_path / "whole")
    seen = []

    def die(done, total):
        seen.append(sorted(path.name for path in (tmp_path / "data").rglob("*")))
        if len(seen) == 3:
            raise KeyboardInterrupt

    # A kill runs no handler: what lies there then must not be found, nor stand in the way.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data.shutil, "rmtree", lambda *_, **__: None)
        data.prepare(loaded(texts), trained, tmp_path / "data", progress=die)
    assert "text.npy" in seen[-1] and not (tmp_path / "data" / whole.directory.name).exists()
    again = data.prepare(loaded(texts), trained, tmp_path / "data")
    assert (
        again.train[0].streams["text"].ids.tolist() == whole.train[0].streams["text"].ids.tolist()
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == [whole.directory.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda at: (at / "meta.json").write_text("{"),
        lambda at: (at / "meta.json").unlink(),
        lambda at: (at / "valid" / "text-offsets.npy").unlink(),
        lambda at: (at / "train-0" / "text.npy").write_bytes(
            (at / "train-0" / "text.npy").read_bytes()[:-2]
        ),
        lambda at: np.save(at / "train-0" / "text.npy", np.zeros(7, np.uint16)),
        lambda at: (
            np.save(at / "valid" / "text.npy", np.zeros(7, np.uint16)),
            np.save(at / "valid" / "text-offsets.npy", np.array([0, 7])),
        ),
    ],
)
def test_damaged_arrays_are_made_again(trained, texts, tmp_path, damage):
    first = data.prepare(loaded(texts), trained, tmp_path)
    expected = [
        first.train[0].streams["text"].ids.tolist(),
        first.valid.streams["text"].ids.tolist(),
    ]
    damage(first.directory)
    again = data.prepare(loaded(texts), trained, tmp_path)
    assert [
        again.train[0].streams["text"].ids.tolist(),
        again.valid.streams["text"].ids.tolist(),
    ] == expected


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(trained, texts, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        errors.BadInput, match=r"cannot write tokens to .*: No space left on device; free space"
    ) as caught:
        data.prepare(loaded(texts), trained, tmp_path / "data")
    assert not re.search("\n", str(caught.value)) and not list((tmp_path / "data").iterdir())
