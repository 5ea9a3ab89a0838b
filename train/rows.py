"""How do examples become the rows of a batch? Some ways, each a pure function of a row's number and the epoch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from model import errors, tokenizer
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from train import corruption, objectives, packing, tasks
from train.streams import Examples, Tokens
from train.tasks import Task

Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """Rows of equal shape."""

    def __len__(self) -> int: ...

    def row(self, index: int, epoch: int) -> Batch:
        """That row, as the epoch has it."""


class Packed:
    """Rows of `length` tokens cut from a stream, by index; each non-bos token is a target of exactly one row.

    A row's segments count its documents from 1, so attention within equal segments keeps documents apart;
    0 is padding, after the end of the stream. `overlap` lets a row repeat that many tokens of the row before
    it as context whose targets weigh 0.

    For documents `[b c e]` and `[b d e]` and length 4, row 0 is

        tokens    b c e b
        targets   c e b d
        segments  1 1 1 2
        weights   1 1 0 1

    and row 1 is tokens `d 0 0 0`, targets `e 0 0 0`, segments `1 0 0 0`, weights `1 0 0 0`.
    """

    def __init__(self, tokens: Tokens, length: int, overlap: int = 0):
        if length < 1:
            raise errors.BadInput(f"row length is {length}; it must be at least 1")
        if not 0 <= overlap < length:
            raise errors.BadInput(
                f"overlap of rows is {overlap}; it must be at least 0 and below their length {length}"
            )
        self.tokens, self.length, self.overlap = tokens, length, overlap

    def __len__(self) -> int:
        stride = self.length - self.overlap
        targets = len(self.tokens.ids) - 1
        return 1 + max(0, -(-(targets - self.length) // stride))

    def row(self, index: int, epoch: int = 0) -> Batch:
        """That row; the same in every epoch."""
        return self[index]

    def owners(self, index: int) -> np.ndarray:
        """Of which document each target of a row is, by number."""
        start = index * (self.length - self.overlap)
        places = np.arange(start + 1, start + 1 + self.length)
        return np.searchsorted(self.tokens.offsets, places, "right") - 1

    def __getitem__(self, index: int) -> Batch:
        ids, offsets = self.tokens.ids, self.tokens.offsets
        start = index * (self.length - self.overlap)
        count = min(self.length, len(ids) - 1 - start)
        if not (0 <= index < len(self) and count > 0):
            raise IndexError(f"row {index} of {len(self)}")
        row: Batch = {
            name: np.zeros(self.length, np.int32) for name in ("tokens", "targets", "segments")
        }
        row["weights"] = np.zeros(self.length, np.float32)
        row["tokens"][:count] = ids[start : start + count]
        row["targets"][:count] = ids[start + 1 : start + count + 1]
        # Where a document begins after the row's first token, up to its last target.
        first, last = np.searchsorted(offsets, [start, start + count], "right")
        begins = np.asarray(offsets[first:last]) - start
        row["segments"][begins[begins < count]] = 1
        row["segments"][:count] = 1 + np.cumsum(row["segments"][:count])
        row["weights"][:count] = 1
        row["weights"][begins - 1] = 0
        if index:
            row["weights"][: self.overlap] = 0
        return row


class Changed:
    """Rows cut from documents, each changed anew in every epoch.

    `change` is given a row of `Packed`, and the random numbers of this row in this epoch.
    """

    def __init__(
        self,
        packed: Packed,
        change: Callable[[Batch, np.random.Generator], Batch],
        seed: int,
        name: str,
    ) -> None:
        self._packed, self._change, self._seed, self._name = packed, change, seed, name

    def __len__(self) -> int:
        return len(self._packed)

    def row(self, index: int, epoch: int) -> Batch:
        """That row."""
        rng = objectives.generator(self._seed, index, epoch, self._name)
        return self._change(self._packed[index], rng)


class Gathered:
    """Rows of one or several whole examples, padded."""

    def __init__(
        self,
        examples: Examples,
        bins: packing.Bins,
        make: Callable[[Batch], Batch],
        length: int,
        source_length: int,
    ) -> None:
        self.examples, self.bins, self._make = examples, bins, make
        self._lengths = length, source_length

    def __len__(self) -> int:
        return len(self.bins)

    @property
    def note(self) -> str:
        """How full the rows are, and what became of examples that were too long."""
        bins = self.bins
        lost = ((bins.dropped, "dropped"), (bins.truncated, "truncated"))
        told = "".join(f", {count:,} {what}" for count, what in lost if count)
        return (
            f"{len(bins.order):,} examples in {len(bins):,} rows, {bins.efficiency:.0%} full{told}"
        )

    def row(self, index: int, epoch: int = 0) -> Batch:
        """That row; the same in every epoch."""
        made = (self._make(self.examples[int(number)]) for number in self.bins[index])
        return packing.assemble(made, *self._lengths)

    def owners(self, index: int) -> np.ndarray:
        """Of which example each token of a row is, by number; that of padding means nothing."""
        return np.asarray(self.bins[index])[self.row(index)["segments"] - 1]


class Pairs:
    """Rows of two texts, some of whose tokens are hidden: does the second follow the first (Devlin et al. 2019)?

    The loss of a pair weighs as much as those of the tokens hidden in a full row, so that both means count alike.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[np.ndarray]],
        hide: Callable[..., Batch],
        rate: float,
        words: Tokenizer,
        length: int,
        seed: int,
        name: str,
    ) -> None:
        self._documents, self._hide, self._weight = documents, hide, np.float32(rate * length)
        self._places = objectives.places(documents, length)
        self._cls, self._sep = words.prefix_ids[0], (*words.suffix_ids, tokenizer.end_id(words))[0]
        self._length, self._seed, self._name = length, seed, name

    def __len__(self) -> int:
        return len(self._places)

    def row(self, index: int, epoch: int) -> Batch:
        """That row, as the epoch has it."""
        rng = objectives.generator(self._seed, index, epoch, self._name)
        pair = objectives.next_sentence(
            self._documents,
            self._places[index],
            rng,
            length=self._length,
            cls_id=self._cls,
            sep_id=self._sep,
        )
        hidden = self._hide(pair["tokens"], rng)
        weights = pair["pair_weights"] * self._weight
        return packing.assemble([{**pair, **hidden, "pair_weights": weights}], self._length)


def build(
    task: Task,
    examples: Examples,
    words: Tokenizer,
    config: ModelConfig,
    *,
    length: int,
    source_length: int,
    overlap: int = 0,
    seed: int = 0,
    name: str = "",
    virtual: int = 0,
) -> Rows:
    """The rows of a task for a model.

    Args:
        length: tokens of a row, of the target where there is a source.
        source_length: tokens of its source.
        overlap: of `Packed`.
        seed, name: of the random numbers, which also depend on row and epoch.
        virtual: tokens of a soft prompt, which stand before every example.
    """
    if virtual and not task.whole:
        raise errors.BadInput(
            f"config.adapt.virtual_tokens is {virtual}, and config.task.kind={task.kind!r} cuts rows from documents, "
            "before which nothing stands; use a task of records"
        )
    if task.kind == "causal":
        return Packed(examples.streams["text"], length, overlap)
    if task.whole:
        return _gathered(task, examples, words, config, length, source_length, virtual)
    if task.next_sentence:
        hide, pieces = _hider(task, words)
        stream = examples.streams["text"]
        texts = (_inner(stream[i], words) for i in range(len(stream)))
        found = [pieces.sentences(text) for text in texts if len(text)]
        return Pairs(found, hide, task.rate, words, length, seed, f"{name} pairs")
    raw, change = _changes(task, words, length, source_length)
    return Changed(Packed(examples.streams["text"], raw), change, seed, f"{name} {task.kind}")


def start_id(words: Tokenizer) -> int:
    """What the decoder of an encoder-decoder begins with."""
    start = tokenizer.decoder_start(words)
    if start is None:
        raise errors.BadInput(
            f"tokenizer {words.digest[:16]} has no id for a decoder to begin with; use another"
        )
    return start


def _gathered(
    task: Task,
    examples: Examples,
    words: Tokenizer,
    config: ModelConfig,
    length: int,
    source_length: int,
    virtual: int,
) -> Gathered:
    streams = examples.streams
    two = config.family == "encoder_decoder"
    make = {
        "seq2seq": functools.partial(_pair, start_id(words)) if two else _continued,
        "chat": _said,
        "classify": _classified,
        "tag": _tagged,
    }[task.kind]
    if task.kind == "seq2seq":
        lengths = [streams["source"].lengths, streams["target"].lengths]
        if not two:  # the last token is a target only
            lengths = [np.add(*lengths) - 1]
    else:
        lengths = [streams["text"].lengths - (task.kind == "chat")]
    if virtual:
        lengths[0] = lengths[0] + virtual
        make = functools.partial(_prompted, task.kind, virtual, config.vocab_size, make)
    capacity = (source_length, length) if two else (length,)
    bins = packing.first_fit(np.stack(lengths, axis=1), capacity, too_long=task.too_long)
    return Gathered(examples, bins, make, length, source_length if two else 0)


def _prompted(
    kind: str, virtual: int, vocabulary: int, make: Callable[[Batch], Batch], example: Batch
) -> Batch:
    """A row that begins with the ids behind the vocabulary, which are read and never targets."""
    ids = vocabulary + np.arange(virtual, dtype=np.int32)
    ahead = {"source": ids, "text": ids, "said": np.zeros_like(ids)}
    if kind == "tag":  # its labels are those of tokens
        ahead["labels"] = np.full_like(ids, -1)
    row = make(
        {
            name: np.concatenate([ahead[name], array]) if name in ahead else array
            for name, array in example.items()
        }
    )
    return {**row, "targets": np.where(row["targets"] >= vocabulary, 0, row["targets"])}


def _pair(start: int, example: Batch) -> Batch:
    return objectives.pair(example["source"], example["target"], start_id=start)


def _continued(example: Batch) -> Batch:
    return objectives.continuation(example["source"], example["target"])


def _said(example: Batch) -> Batch:
    return objectives.causal(example["text"], example["said"])


def _classified(example: Batch) -> Batch:
    return objectives.classification(example["text"], int(example["labels"][0]))


def _tagged(example: Batch) -> Batch:
    return objectives.tagging(example["text"], example["labels"])


def _changes(
    task: Task, words: Tokenizer, length: int, source_length: int
) -> tuple[int, Callable[[Batch, np.random.Generator], Batch]]:
    """How many tokens of text a row needs, and what is made of them."""
    if task.kind == "prefix":
        return length, _prefixed
    if task.kind == "masked":
        return length, functools.partial(_masked, _hider(task, words)[0])
    lay = functools.partial(packing.assemble, length=length, source_length=source_length)
    end, start = tokenizer.end_id(words), start_id(words)
    if task.kind == "spans":
        sentinels = tasks.special_ids(words, tasks.SENTINELS)
        raw, target = corruption.span_lengths(source_length, task.rate, task.mean_span)
        if target > length:
            raise errors.BadInput(
                f"config.data.length is {length}, and sources of config.data.source_length={source_length} have "
                f"targets of {target} tokens at rate {task.rate} and spans of {task.mean_span}; raise it to that"
            )
        cut = functools.partial(
            corruption.span_corruption,
            sentinels=sentinels,
            eos_id=end,
            density=task.rate,
            mean_span=task.mean_span,
        )
        return raw, functools.partial(_cut, cut, start, lay)
    frame = len(words.prefix_ids) + len(words.suffix_ids)
    noise = functools.partial(
        corruption.denoising, mask_id=_mask(words), rate=task.rate, mean_span=task.mean_span
    )
    pieces = corruption.pieces(words) if task.permuted else None
    spoil = functools.partial(_spoilt, noise, pieces, words, start, lay)
    return min(source_length - frame, length - 1), spoil


def _hider(task: Task, words: Tokenizer) -> tuple[Callable[..., Batch], corruption.Pieces]:
    """What hides tokens of a masked LM, and what it knows of the vocabulary."""
    pieces = corruption.pieces(words)
    how: dict[str, Any] = dict(mask_id=_mask(words), rate=task.rate, whole_words=task.whole_words)
    return functools.partial(corruption.masked, pieces=pieces, **how), pieces


def _mask(words: Tokenizer) -> int:
    """The id of the token that hides others."""
    if words.mask_id is not None:
        return words.mask_id
    return tasks.special_ids(words, (tasks.MASK,))[0]


def _inner(text: np.ndarray, words: Tokenizer) -> np.ndarray:
    """A document without its begin and its end."""
    frame = (*words.prefix_ids, *words.suffix_ids, words.bos_id, words.eos_id)
    return text[~np.isin(text, [id for id in frame if id is not None])].astype(np.int32)


def _prefixed(row: Batch, rng: np.random.Generator) -> Batch:
    return {**row, **objectives.prefix(row["segments"], row["weights"], rng)}


def _masked(hide: Callable[..., Batch], row: Batch, rng: np.random.Generator) -> Batch:
    changed = hide(row["tokens"], rng, segments=row["segments"])
    return {**changed, "segments": row["segments"]}


def _cut(cut: Callable[..., tuple], start: int, lay: Callable, row: Batch, rng) -> Batch:
    source, target = cut(row["tokens"][row["segments"] > 0], rng)
    return lay([objectives.pair(source, target, start_id=start)])


def _spoilt(
    noise: Callable[..., np.ndarray],
    pieces: corruption.Pieces | None,
    words: Tokenizer,
    start: int,
    lay: Callable,
    row: Batch,
    rng: np.random.Generator,
) -> Batch:
    text = _inner(row["tokens"][row["segments"] > 0], words)
    source = noise(text, rng, sentences=pieces.sentences(text) if pieces else None)
    source = np.concatenate([words.prefix_ids, source, words.suffix_ids]).astype(np.int32)
    target = np.append(text, np.int32(tokenizer.end_id(words)))
    return lay([objectives.pair(source, target, start_id=start)])
