"""How does a segmenter come from the vocabulary in a Hugging Face directory?

One builder per kind of file: tokenizer.json, byte-level BPE, WordPiece, SentencePiece, Marian's two SentencePieces.
"""

import json
from collections.abc import Callable, Mapping

import sentencepiece
import tokenizers

from model import errors, segmentation, tokenizer_files


def build(
    source: tokenizer_files.Source, kind: str
) -> tuple[segmentation.Segmenter, str, dict[str, str]]:
    """The segmenter of the files, the family it belongs to, and its special tokens by role."""
    return BUILDERS[kind](source)


def _complete(
    source: tokenizer_files.Source, definition: tokenizers.Tokenizer, named: Mapping[str, str]
) -> segmentation.Fast:
    """A segmenter of the `tokenizers` library, with the tokens that the other files add."""
    stated = tokenizer_files.added_tokens(source)
    roles = set(named.values()) | set(tokenizer_files.extra_specials(source))
    known = {token.content: token for token in definition.get_added_tokens_decoder().values()}
    for id, (content, flags) in stated.items():
        flags = {"special": content in roles, **flags}
        flags["special"] = flags["special"] or content in roles
        if content not in known:
            definition.add_tokens([tokenizers.AddedToken(content, **flags)])
        if definition.token_to_id(content) != id:
            raise errors.BadInput(
                f"{source.where} adds the token {content!r} with id {id}, and its vocabulary gives it "
                f"{definition.token_to_id(content)}; the files do not belong together"
            )
    fresh = [
        content
        for content in sorted(roles)
        if content not in known and content not in dict(stated.values())
    ]
    definition.add_special_tokens(fresh)
    return segmentation.Fast(definition)


def _fast(source: tokenizer_files.Source) -> tuple[segmentation.Segmenter, str, dict[str, str]]:
    """tokenizer.json, taken as it is."""
    try:
        definition = tokenizers.Tokenizer.from_str(source.text("tokenizer.json"))
    except Exception as error:  # the library raises nothing more precise
        raise errors.BadInput(
            f"{source.where}/tokenizer.json is not a tokenizer ({_line(error)}); restore the file"
        ) from error
    model = json.loads(definition.to_str())["model"]
    family = "bert" if model.get("type") == "WordPiece" else "fast"
    present = {role: text for role, text in source.named(family).items()}
    if family == "fast" and model.get("unk_token"):
        present.setdefault("unk", model["unk_token"])
    return _complete(source, definition, present), family, present


def _bpe(source: tokenizer_files.Source) -> tuple[segmentation.Segmenter, str, dict[str, str]]:
    """GPT-2's byte-level BPE; with `<s>` and `</s>` around a text it is RoBERTa's and BART's."""
    old = "vocab.json" not in source.files
    vocabulary_name, merges_name = (
        ("encoder.json", "vocab.bpe") if old else ("vocab.json", "merges.txt")
    )
    if merges_name not in source.files:
        raise errors.BadInput(
            f"{source.where} holds {vocabulary_name} without {merges_name}; add the file that belongs to it"
        )
    vocabulary = _vocabulary(source, vocabulary_name)
    lines = source.text(merges_name).split("\n")
    merges = []
    for line in lines:
        first, _, second = line.partition(" ")
        if first and not line.startswith("#version"):
            merges.append((first, second.removesuffix("\r")))
    try:
        model = tokenizers.models.BPE(vocab=vocabulary, merges=merges)
    except Exception as error:  # the library raises nothing more precise
        raise errors.BadInput(
            f"{source.where}/{merges_name} does not belong to {vocabulary_name} ({_line(error)}); "
            "take both from one model"
        ) from error
    definition = tokenizers.Tokenizer(model)
    spaced = bool(source.settings.get("add_prefix_space", False))
    definition.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    definition.decoder = tokenizers.decoders.ByteLevel()
    framed = "roberta" in source.says or "bart" in source.says
    family = "roberta" if framed or {"<s>", "</s>", "<mask>"} <= set(vocabulary) else "gpt2"
    named = _present(source, family, vocabulary)
    return _complete(source, definition, named), family, named


def _wordpiece(
    source: tokenizer_files.Source,
) -> tuple[segmentation.Segmenter, str, dict[str, str]]:
    """BERT's WordPiece: lower case as tokenizer_config.json says, else unless the vocabulary holds capitals."""
    lines = source.text("vocab.txt").removesuffix("\n").split("\n")
    vocabulary = {line.removesuffix("\r"): id for id, line in enumerate(lines)}
    named = _present(source, "bert", vocabulary)
    if named.get("unk") not in vocabulary:
        raise errors.BadInput(
            f"{source.where}/vocab.txt has no {named.get('unk', '[UNK]')}; it must be a WordPiece vocabulary, "
            "one piece a line"
        )
    plain = [piece for piece in vocabulary if not piece.startswith("[")]
    settings = source.settings
    model = tokenizers.models.WordPiece(vocabulary, unk_token=named["unk"])
    definition = tokenizers.Tokenizer(model)
    definition.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", all(piece == piece.lower() for piece in plain)),
    )
    definition.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    definition.decoder = tokenizers.decoders.WordPiece(prefix="##")
    return _complete(source, definition, named), "bert", named


def _sentencepiece(
    source: tokenizer_files.Source,
) -> tuple[segmentation.Segmenter, str, dict[str, str]]:
    """A SentencePiece model: LLaMA's, or T5's with sentinels behind the pieces, `<extra_id_0>` the last of them."""
    name = next((name for name in source.files if name.endswith(".model")), None)
    if name is None:
        raise errors.BadInput(f"{source.where} holds no SentencePiece model; restore the file")
    processor = load_sentencepiece(f"{source.where}/{name}", source.files[name])
    if name == "sentencepiece.bpe.model":
        return _xlm_roberta(source, processor)
    ids = {
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "unk": processor.unk_id(),
        "pad": processor.pad_id(),
    }
    silent = source.says == "none none" and (ids["bos"], ids["eos"], ids["pad"]) == (-1, 1, 0)
    family = "t5" if silent or "t5" in source.says else "llama"
    size = processor.vocab_size()
    usual = {role: processor.id_to_piece(id) for role, id in ids.items() if id >= 0}
    known = source.settings
    named = {role: text for role, text in usual.items() if f"{role}_token" not in known}
    named |= source.named(family)
    sentinels = 0
    if family == "t5":
        sentinels = known.get("extra_ids", 100)
        if type(sentinels) is not int or sentinels < 0:
            raise errors.BadInput(
                f"{source.where}/tokenizer_config.json has extra_ids={sentinels!r}; it must be a number of sentinels"
            )
    extra = {f"<extra_id_{i}>": size + sentinels - 1 - i for i in reversed(range(sentinels))}
    segmenter = _pieces(source, processor, processor, None, extra, named)
    return segmenter, family, named


def _xlm_roberta(
    source: tokenizer_files.Source, processor: sentencepiece.SentencePieceProcessor
) -> tuple[segmentation.Segmenter, str, dict[str, str]]:
    """XLM-RoBERTa's ids: fairseq's four special tokens, the pieces one later than in the file, and the mask."""
    if source.says != "none none" and "xlm" not in source.says:
        raise errors.BadInput(
            f"{source.where}/sentencepiece.bpe.model alone does not give the ids of this model ({source.says}); "
            "add the tokenizer.json that belongs to it"
        )
    size = processor.vocab_size()
    first = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    pieces = {processor.id_to_piece(id): id + 1 for id in range(3, size)}
    vocabulary = first | pieces | {"<mask>": size + 1}
    named = source.named("roberta")
    return _pieces(source, processor, processor, vocabulary, {}, named), "roberta", named


def _marian(source: tokenizer_files.Source) -> tuple[segmentation.Segmenter, str, dict[str, str]]:
    """Marian: a SentencePiece model for each side, and the ids of both in vocab.json."""
    missing = [
        name for name in ("source.spm", "target.spm", "vocab.json") if name not in source.files
    ]
    if missing:
        raise errors.BadInput(
            f"{source.where} lacks {', '.join(missing)}; a Marian tokenizer is source.spm, target.spm and vocab.json"
        )
    reader, writer = (
        load_sentencepiece(f"{source.where}/{name}", source.files[name])
        for name in ("source.spm", "target.spm")
    )
    vocabulary = _vocabulary(source, "vocab.json")
    named = source.named("marian")
    if "<unk>" not in vocabulary:
        raise errors.BadInput(
            f"{source.where}/vocab.json has no <unk>; take the three files of a Marian tokenizer from one model"
        )
    return _pieces(source, reader, writer, vocabulary, {}, named), "marian", named


def _pieces(
    source: tokenizer_files.Source,
    encoder: sentencepiece.SentencePieceProcessor,
    decoder: sentencepiece.SentencePieceProcessor,
    vocabulary: dict[str, int] | None,
    extra: dict[str, int],
    named: Mapping[str, str],
) -> segmentation.Pieces:
    """A SentencePiece segmenter, with the tokens that the other files add."""
    size = encoder.vocab_size()
    ids = vocabulary or {encoder.id_to_piece(id): id for id in range(size)}
    stated = tokenizer_files.added_tokens(source)
    added = dict(extra)
    for id, (content, _) in stated.items():
        if (ids | added).get(content, id) != id:
            raise errors.BadInput(
                f"{source.where} adds the token {content!r} with id {id}, and its vocabulary gives it "
                f"{(ids | added)[content]}; the files do not belong together"
            )
        if content not in ids:
            added[content] = id
    for content in [*named.values(), *tokenizer_files.extra_specials(source)]:
        if content not in ids and content not in added:
            added[content] = max((ids | added).values(), default=-1) + 1
    special = {content for content, flags in stated.values() if flags["special"]} | set(extra)
    special |= set(named.values()) | set(tokenizer_files.extra_specials(source))
    everything = ids | added
    if vocabulary is None:
        control = filter(lambda id: encoder.is_control(id) or encoder.is_unknown(id), range(size))
        special |= {encoder.id_to_piece(id) for id in control}
    # transformers 5 repeats the dummy prefix behind a special token where `legacy` says so, and for unigram models.
    byte_fallback = encoder.is_byte(encoder.piece_to_id("<0x00>"))
    return segmentation.Pieces(
        encoder,
        decoder,
        vocabulary,
        added,
        frozenset(everything[content] for content in special if content in everything),
        prefix_each=not byte_fallback or bool(source.settings.get("legacy", False)),
    )


def load_sentencepiece(name: str, model: bytes) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model, or one line that says it is none."""
    try:
        # SentencePiece takes an empty file for a model and complains on the terminal.
        if not model:
            raise RuntimeError("the file is empty")
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise errors.BadInput(
            f"{name} is not a SentencePiece model; restore the file or train the tokenizer again"
        ) from error


def _vocabulary(source: tokenizer_files.Source, name: str) -> dict[str, int]:
    """A JSON vocabulary: each piece with its id."""
    vocabulary = source.json(name)
    wrong = [piece for piece, id in vocabulary.items() if type(id) is not int or id < 0]
    if wrong or not vocabulary:
        raise errors.BadInput(
            f"{source.where}/{name} is no vocabulary: it must give each piece its id"
            + (f", and gives {wrong[0]!r} {vocabulary[wrong[0]]!r}" if wrong else "; it is empty")
        )
    return vocabulary


def _present(
    source: tokenizer_files.Source, family: str, vocabulary: dict[str, int]
) -> dict[str, str]:
    """The special tokens by role; of those that only the family names, the ones in the vocabulary."""
    named = source.named(family)
    said = {role for role in tokenizer_files.ROLES if f"{role}_token" in source.settings}
    return {role: text for role, text in named.items() if role in said or text in vocabulary}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


BUILDERS: dict[
    str, Callable[[tokenizer_files.Source], tuple[segmentation.Segmenter, str, dict[str, str]]]
] = {
    "tokenizer.json": _fast,
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "sentencepiece": _sentencepiece,
    "marian": _marian,
}
