"""What do the files of a Hugging Face directory say about its tokenizer?

`open_directory` reads them; `Source` answers: which kind it is, which special tokens are named, which tokens are added.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from model import errors

ROLES = ("bos", "eos", "unk", "pad", "mask", "cls", "sep")
KNOWN = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "vocab.txt",
    "source.spm",
    "target.spm",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
TEMPLATES = "additional_chat_templates"
ACCEPTED = (
    "tokenizer.json, vocab.json with merges.txt, source.spm with target.spm and vocab.json, vocab.txt, "
    "or a SentencePiece model such as tokenizer.model"
)

_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")

# The special tokens of a family, where its files name none.
DEFAULTS: dict[str, dict[str, str]] = {
    "fast": {},
    "gpt2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "roberta": {
        "bos": "<s>",
        "eos": "</s>",
        "unk": "<unk>",
        "pad": "<pad>",
        "mask": "<mask>",
        "cls": "<s>",
        "sep": "</s>",
    },
    "bert": {"unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]"},
    "t5": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "marian": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "llama": {},
}


# What settings may be, when a file says them.
KINDS: dict[str, Any] = {
    "add_bos_token": bool | None,
    "add_eos_token": bool | None,
    "do_lower_case": bool,
    "tokenize_chinese_chars": bool,
    "strip_accents": bool | None,
    "additional_special_tokens": tuple | dict | None,
    "extra_special_tokens": tuple | dict | None,
}


@dataclasses.dataclass(frozen=True)
class Source:
    """What a directory says: the tokenizer's files, their settings, and the model's two configurations."""

    where: str
    files: Mapping[str, bytes]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]

    def json(self, name: str, kind: type = dict) -> Any:
        """A JSON file of the tokenizer; empty where there is none."""
        return parse(f"{self.where}/{name}", self.files.get(name, b"{}"), kind)

    @property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json, over special_tokens_map.json."""
        settings = self.json("special_tokens_map.json") | self.json("tokenizer_config.json")
        for key in KINDS.keys() & settings.keys():
            errors.typed(f"{self.where}/tokenizer_config.json: {key}", settings[key], KINDS[key])
        return settings

    def text(self, name: str) -> str:
        """A text file of the tokenizer."""
        if name not in self.files:
            raise errors.BadInput(f"{self.where} lacks {name}; restore the file")
        try:
            return self.files[name].decode()
        except UnicodeDecodeError as error:
            raise errors.BadInput(
                f"{self.where}/{name} is not UTF-8 text (byte {error.start}); restore the file"
            ) from error

    def named(self, family: str) -> dict[str, str]:
        """The special tokens by role, as the files name them, else as the family does."""
        settings = self.settings
        named = {role: self.content_of(f"{role}_token", settings) for role in ROLES}
        silent = {role for role in ROLES if f"{role}_token" not in settings}
        usual = {role: text for role, text in DEFAULTS[family].items() if role in silent}
        return {role: text for role, text in named.items() if text} | usual

    def content_of(self, key: str, settings: Mapping[str, Any]) -> str | None:
        """The text of a special token, which files write as text or as a group with `content`."""
        token = settings.get(key)
        content = token.get("content") if isinstance(token, dict) else token
        if content is not None and not isinstance(content, str):
            raise errors.BadInput(
                f"{self.where}/tokenizer_config.json has {key}={token!r}; a token must be text"
            )
        return content

    @property
    def says(self) -> str:
        """What the tokenizer's and the model's class are called, in lower case."""
        return f"{self.settings.get('tokenizer_class')} {self.config.get('model_type')}".lower()


def open_directory(directory: pathlib.Path, names: tuple[str, ...] | None = None) -> Source:
    """Reads the files of a tokenizer: all that are known, or exactly `names`."""
    try:
        if names is None:
            others = sorted(path.name for path in directory.glob("*.model"))
            extra = [
                f"{TEMPLATES}/{path.name}"
                for path in sorted(directory.glob(f"{TEMPLATES}/*.jinja"))
            ]
            found = dict.fromkeys([*KNOWN, *others, *extra])
            names = tuple(name for name in found if (directory / name).is_file())
        files = {name: (directory / name).read_bytes() for name in names}
        configs = [
            parse(str(path), path.read_bytes()) if path.is_file() else {}
            for path in (directory / "config.json", directory / "generation_config.json")
        ]
    except OSError as error:
        raise errors.BadInput(
            f"cannot read the tokenizer of {directory}: {error.strerror or error} ({error.filename}); restore the file"
        ) from error
    return Source(str(directory), files, *configs)


def parse(name: str, raw: bytes, kind: type = dict) -> Any:
    """JSON of the wanted type, or one line that says it is none."""
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise errors.BadInput(f"{name} is not valid JSON ({error}); restore the file") from error
    if not isinstance(value, kind):
        raise errors.BadInput(
            f"{name} holds {type(value).__name__}; it must hold {errors.WORDS.get(kind, kind.__name__)}"
        )
    return value


def kind_of(source: Source) -> str:
    """Which of the files make the tokenizer, in the order in which transformers would take them."""
    files = source.files
    if "tokenizer.json" in files:
        return "tokenizer.json"
    if "source.spm" in files or "target.spm" in files:
        return "marian"
    if "vocab.json" in files or "encoder.json" in files:
        return "bpe"
    if "vocab.txt" in files:
        return "wordpiece"
    if any(name.endswith(".model") for name in files):
        return "sentencepiece"
    raise errors.BadInput(
        f"cannot read the tokenizer of {source.where}: there is none; the directory must hold {ACCEPTED}"
    )


def added_tokens(source: Source) -> dict[int, tuple[str, dict[str, Any]]]:
    """Tokens that the files add at stated ids: content and flags."""
    plain = source.json("added_tokens.json")
    detailed = source.settings.get("added_tokens_decoder") or {}
    try:
        found: dict[int, tuple[str, dict[str, Any]]] = {
            int(id): (content, {"special": False}) for content, id in plain.items()
        }
        for id, token in detailed.items():
            flags = {key: value for key, value in token.items() if key in _FLAGS}
            found[int(id)] = (token["content"], flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.BadInput(
            f"{source.where}: the added tokens of tokenizer_config.json or added_tokens.json are damaged "
            f"({error!r}); restore the files"
        ) from error
    return dict(sorted(found.items()))


def extra_specials(source: Source) -> list[str]:
    """Special tokens without a role."""
    found = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = source.settings.get(key) or []
        named = (
            listed if isinstance(listed, dict) else {f"{key}[{i}]": v for i, v in enumerate(listed)}
        )
        found += [content for name in named if (content := source.content_of(name, named))]
    return found
