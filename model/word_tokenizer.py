"""How does a text become whole words of a closed vocabulary, as word-level language models are measured?

Words are what lies between white space; a word outside the vocabulary is `<unk>`. A line end is `</s>`, that of a
text's last line is left to whoever frames the text: so a line of n words counts n + 1 predicted ids, whether lines are
texts of their own or one text, and perplexity per id is the word perplexity of the literature.
"""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import tokenizers

from model import (
    chat,
    errors,
    pretrained_tokenizer,
    tokenizer_files,
    tokenizer_training,
    trained_tokenizer,
)
from model.pretrained_tokenizer import Pretrained

_FIXED = trained_tokenizer.FIXED
_PAD, _UNKNOWN, _BEGIN, _END = _FIXED


def train(
    texts: Iterable[str],
    *,
    vocab_size: int | None = None,
    min_count: int = 1,
    special: Sequence[str] = (),
) -> Pretrained:
    """The words that occur at least `min_count` times, the commonest first: all of them, or `vocab_size` ids in all."""
    if min_count < 1:
        raise errors.BadInput(f"tokenizer min_count is {min_count}; it must be at least 1")
    counts = collections.Counter(word for text in texts for word in text.split())
    for token in (*_FIXED, *special):
        del counts[token]
    words = sorted(
        (word for word in counts if counts[word] >= min_count),
        key=lambda word: (-counts[word], word),
    )
    if not words:
        raise errors.BadInput(
            f"there is no word that occurs {min_count} times to train a tokenizer on; give more text"
        )
    reserved = len(_FIXED) + len(special)
    if vocab_size and not reserved < vocab_size <= reserved + len(words):
        raise errors.BadInput(
            f"tokenizer vocab_size is {vocab_size}, and there are {len(words)} words and {reserved} special tokens; "
            f"set vocab_size from {reserved + 1} to {reserved + len(words)}, or leave it out"
        )
    return _build(words[: vocab_size - reserved if vocab_size else None], special)


def read(path: pathlib.Path, special: Sequence[str] = ()) -> Pretrained:
    """The vocabulary in a file of one word per line; its order is that of the ids. Our special tokens need no line."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except OSError as error:
        raise errors.BadInput(
            f"cannot read the words of {path}: {error.strerror or error}; restore the file"
        ) from error
    except UnicodeDecodeError as error:
        raise errors.BadInput(
            f"{path} is not UTF-8 text (byte {error.start}); convert the file to UTF-8"
        ) from error
    known = {token: 0 for token in (*_FIXED, *special)}
    words = []
    for number, line in enumerate(lines, 1):
        word = line.removesuffix("\r")
        if word.split() != [word] and word:
            raise errors.BadInput(
                f"{path} line {number} is {word!r}; a vocabulary has one word a line, without white space"
            )
        if known.get(word):
            raise errors.BadInput(
                f"{path} line {number} repeats {word!r} of line {known[word]}; leave it out"
            )
        if word and word not in known:
            known[word] = number
            words.append(word)
    if not words:
        raise errors.BadInput(f"{path} holds no word; give one a line")
    return _build(words, special)


def _build(words: Sequence[str], special: Sequence[str]) -> Pretrained:
    """The two files of a Hugging Face tokenizer, of the `tokenizers` library's WordLevel model, and what they mean."""
    tokenizer_training.check_special(special)
    entries = [*_FIXED, *special, *words]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {entry: id for id, entry in enumerate(entries)}, unk_token=_UNKNOWN
        )
    )
    apart = [entry for entry in entries[: len(_FIXED) + len(special)] if entry != _UNKNOWN]
    written = "|".join(map(re.escape, sorted(apart, key=len, reverse=True)))
    replace, regex = tokenizers.normalizers.Replace, tokenizers.Regex
    made.normalizer = tokenizers.normalizers.Sequence(
        [
            # What looks like a special token is a word that nobody knows.
            replace(regex(rf"(?<!\S)(?:{written})(?!\S)"), _UNKNOWN),
            replace(regex(r"\n\z"), ""),
            replace("\n", f" {_END} "),
        ]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(apart)
    # Known to the library as a word that is shown, so that it does not vanish with the special ones.
    made.add_tokens([tokenizers.AddedToken(_UNKNOWN, single_word=True, special=False)])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": _BEGIN,
        "eos_token": _END,
        "pad_token": _PAD,
        "unk_token": _UNKNOWN,
    }
    if trained_tokenizer.MASK in special:
        settings["mask_token"] = trained_tokenizer.MASK
    ends = [entries.index(_END)]
    if set(chat.SPECIAL) <= set(special):
        settings["chat_template"] = chat.OWN
        ends.append(entries.index(chat.END))
    files = {
        "tokenizer.json": made.to_str().encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=1) + "\n").encode(),
    }
    return pretrained_tokenizer.settle(
        tokenizer_files.Source("the tokenizer", files, {}, {"eos_token_id": ends})
    )
