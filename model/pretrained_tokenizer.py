"""What is the tokenizer that came with published weights: its ids, its framing, its chat template?

The segmenter comes from `model/vocabulary.py`. Here it is settled, once, which ids are special and what stands around
a text, from the tokenizer's files and, where those are silent, from the model's configuration. `save` writes the
files as they were, with what was settled beside them, so that a tokenizer needs no model to be loaded again.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from model import chat, errors, segmentation, tokenizer_files, trained_tokenizer, vocabulary

FILE = "ganymede_tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Settled:
    """What was decided about a tokenizer.

    Attributes:
        kind: which builder of `model/vocabulary.py` reads the files.
        files: the names of the files it consists of.
        prefix_ids: what stands before a text that a model reads.
        suffix_ids: what stands behind it.
        eos_ids: every id that ends a text; `eos_id` is the first of them.
        start_id: what the decoder of an encoder-decoder model begins with.
    """

    kind: str
    files: tuple[str, ...]
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    mask_id: int | None
    start_id: int | None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published tokenizer behind the same call as our own.

    Text that looks like a special token stays text unless `special`; with WordPiece a literal `[MASK]` or `[CLS]` is
    always the special token, as in the original BERT. Ids at which the vocabulary has a hole, or that a padded
    embedding has beyond it, have no text.
    """

    files: Mapping[str, bytes] = dataclasses.field(repr=False)
    settled: Settled
    _segmenter: segmentation.Segmenter = dataclasses.field(repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        """The highest id the tokenizer has, plus one; added tokens included."""
        return self._segmenter.vocab_size

    @property
    def bos_id(self) -> int | None:
        return self.settled.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.settled.eos_id

    @property
    def pad_id(self) -> int | None:
        return self.settled.pad_id

    @property
    def unk_id(self) -> int | None:
        return self.settled.unk_id

    @property
    def mask_id(self) -> int | None:
        return self.settled.mask_id

    @property
    def start_id(self) -> int | None:
        return self.settled.start_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self.settled.eos_ids

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return self.settled.prefix_ids

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        return self.settled.suffix_ids

    def __hash__(self) -> int:
        return hash(self.digest)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over what was settled and every file, in hexadecimal."""
        found = hashlib.sha256(_dump(self.settled).encode())
        for name, content in sorted(self.files.items()):
            found.update(f"\n{name} {hashlib.sha256(content).hexdigest()}".encode())
        return found.hexdigest()

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text` without framing; special tokens written in it are taken for such only if `special`."""
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Iterable[str], *, special: bool = False) -> list[list[int]]:
        """The ids of each text; the same as `encode` one by one."""
        texts = list(texts)
        for text in texts:
            segmentation.check_unicode(text)
        return self._segmenter.encode_batch(texts, special)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids vanish, as do ids that no token has."""
        ids = np.asarray(ids if hasattr(ids, "__array__") else list(ids), dtype=np.int64).tolist()
        return self._segmenter.decode([id for id in ids if self._known(id)])

    def reader(self) -> segmentation.Reader:
        """Decodes ids one at a time; see `tokenizer.Tokenizer`."""
        return _Known(self._segmenter.reader(), self._known)

    def piece(self, id: int) -> str:
        """A printable label for figures; `<unused 32105>` where no token has the id."""
        return self._segmenter.piece(id) if self._known(id) else f"<unused {id}>"

    def raw(self, id: int, *, first: bool = False) -> bytes:
        """The bytes that an id adds to a text, or begins one with; none where no token has the id."""
        return self._segmenter.raw(id, first) if self._known(id) else b""

    def chat(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """`messages` in the words of the chat template; encode it with `special=True` and without framing."""
        source = tokenizer_files.Source("the tokenizer", self.files, {}, {})
        found = chat.templates(self.files, source.settings)
        if "default" not in found:
            raise errors.BadInput(
                f"the tokenizer has no chat template named default (it has: {', '.join(found) or 'none'}); "
                "give the prompt as text, or add chat_template.jinja to the model's directory"
            )
        return chat.render(
            found["default"],
            messages,
            add_generation_prompt=add_generation_prompt,
            tokens=self._tokens(source),
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the files as they were read, and what was settled beside them."""
        settled = {FILE: _dump(self.settled).encode()}
        trained_tokenizer.write_files(directory, {**self.files, **settled})

    def _tokens(self, source: tokenizer_files.Source) -> dict[str, str]:
        """The special tokens as a template knows them, such as `bos_token`."""
        ids = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        by_id = {role: self._segmenter.content(id) for role, id in ids.items() if id is not None}
        tokens = {**by_id, **source.named("fast")}
        return {f"{role}_token": text for role, text in tokens.items() if text}

    def _known(self, id: int) -> bool:
        """Whether the tokenizer itself has the id; refuses what can be none."""
        if id < 0:
            raise errors.BadInput(
                f"token id {id} is not in the vocabulary; ids run from 0 to {self.vocab_size - 1}"
            )
        return id < self.vocab_size


class _Known:
    """A reader that skips ids without a token."""

    def __init__(self, reader: segmentation.Reader, known: Callable[[int], bool]):
        self._reader = reader
        self._is_known = known

    def push(self, id: int) -> str:
        return self._reader.push(id) if self._is_known(id) else ""

    def flush(self) -> str:
        return self._reader.flush()


def load(directory: pathlib.Path) -> Pretrained:
    """The tokenizer of a Hugging Face directory, or one that `save` wrote."""
    path = directory / FILE
    if not path.is_file():
        return settle(tokenizer_files.open_directory(directory))
    settled = errors.build(Settled, tokenizer_files.parse(str(path), path.read_bytes()), str(path))
    if settled.kind not in vocabulary.BUILDERS:
        raise errors.BadInput(
            f"{path} has kind {settled.kind!r}; known: {', '.join(vocabulary.BUILDERS)}; restore the file"
        )
    source = tokenizer_files.open_directory(directory, settled.files)
    return Pretrained(source.files, settled, vocabulary.build(source, settled.kind)[0])


def settle(source: tokenizer_files.Source) -> Pretrained:
    """The tokenizer that these files say, with all decided that they leave open."""
    kind = tokenizer_files.kind_of(source)
    segmenter, family, named = vocabulary.build(source, kind)
    return Pretrained(source.files, _settle(source, kind, family, named, segmenter), segmenter)


def _settle(
    source: tokenizer_files.Source,
    kind: str,
    family: str,
    named: Mapping[str, str],
    segmenter: segmentation.Segmenter,
) -> Settled:
    """Which ids are special, and what stands around a text."""
    ids = {role: segmenter.id_of(text) for role, text in named.items()}
    for role in ("bos", "eos", "pad"):
        if role not in named and f"{role}_token" not in source.settings:
            ids[role] = _configured(source, f"{role}_token_id", segmenter.vocab_size)
    mask = (segmenter.id_of(text) for text in ("[MASK]", "<mask>"))
    ids.setdefault("mask", next((id for id in mask if id is not None), None))
    prefix, suffix = _framing(source, family, ids, segmenter)
    ends = [ids.get("eos"), *_listed(source, "eos_token_id")]
    return Settled(
        kind=kind,
        files=tuple(sorted(source.files)),
        prefix_ids=prefix,
        suffix_ids=suffix,
        eos_ids=tuple(
            dict.fromkeys(id for id in ends if id is not None and id < segmenter.vocab_size)
        ),
        bos_id=ids.get("bos"),
        eos_id=ids.get("eos"),
        pad_id=ids.get("pad"),
        unk_id=ids.get("unk"),
        mask_id=ids.get("mask"),
        start_id=_configured(source, "decoder_start_token_id", segmenter.vocab_size),
    )


def _framing(
    source: tokenizer_files.Source,
    family: str,
    ids: Mapping[str, int | None],
    segmenter: segmentation.Segmenter,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and behind a text: of the family, of the post-processor, or as `add_bos_token` says."""
    around = {
        "bert": ("cls", "sep"),
        "roberta": ("cls", "sep"),
        "t5": (None, "eos"),
        "marian": (None, "eos"),
        "llama": ("bos", None),
        "gpt2": (None, None),
        "fast": (None, None),
    }
    first, last = (ids.get(role or "") for role in around[family])
    usual = tuple(() if id is None else (id,) for id in (first, last))
    prefix, suffix = segmenter.framing() or usual
    says = {role: source.settings.get(f"add_{role}_token") for role in ("bos", "eos")}
    bos, eos = ids.get("bos"), ids.get("eos")
    plain = set(prefix) <= {bos} and set(suffix) <= {eos} and not (prefix and suffix)
    if family in ("gpt2", "llama", "fast") and plain and set(says.values()) != {None}:
        prefix = (bos,) if says["bos"] and bos is not None else ()
        suffix = (eos,) if says["eos"] and eos is not None else ()
    return prefix, suffix


def _listed(source: tokenizer_files.Source, key: str) -> list[int]:
    """The ids of a key in generation_config.json or config.json, which hold a number, a list, or nothing."""
    for config in (source.generation, source.config):
        value = config.get(key)
        ids = value if isinstance(value, list) else [value]
        if ids := [id for id in ids if type(id) is int and id >= 0]:
            return ids
    return []


def _configured(source: tokenizer_files.Source, key: str, size: int) -> int | None:
    """The id of a key in the model's configuration, which must be in the vocabulary."""
    ids = _listed(source, key)
    if ids and ids[0] >= size:
        raise errors.BadInput(
            f"{source.where}/config.json has {key}={ids[0]}, and the tokenizer's ids run from 0 to {size - 1}; "
            "take both from one model"
        )
    return ids[0] if ids else None


def _dump(settled: Settled) -> str:
    return json.dumps(dataclasses.asdict(settled), indent=1) + "\n"
