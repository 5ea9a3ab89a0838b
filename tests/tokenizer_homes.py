"""What does the Hugging Face directory of each kind of tokenizer hold?

`homes()` writes one of each, small, with vocabularies that the libraries themselves train; `loaded()` is what we read.
"""

import atexit
import functools
import io
import json
import pathlib
import shutil
import tempfile

import sentencepiece
import tokenizers

from model import tokenizer

PROSE = """Ganymede is the largest moon of Jupiter, and the only moon known to have a magnetic field.
It was discovered by Galileo Galilei in 1610; the name was proposed by Simon Marius soon after.
Où est Ganymède ? It takes seven days to go around the planet, doesn't it.
"""
LINES = PROSE.splitlines() * 3
TEXTS = [
    "",
    " ",
    "The moon of Jupiter",
    "  seven  days ",
    "moon\n\nfield\t.",
    "doesn't it, Galileo?",
    "naïve 木星 😀🏳️‍🌈 é",
    "<s> </s> <pad> [MASK] <|endoftext|> <extra_id_0>",
]
USER = [{"role": "user", "content": "Where is Ganymede?"}]
CHATML = (
    "{{ bos_token or '' }}{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT = "<|im_start|>user\nWhere is Ganymede?<|im_end|>\n<|im_start|>assistant\n"


def write(directory: pathlib.Path, **files) -> None:
    """Writes JSON files, named without their ending."""
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


def byte_level(directory: pathlib.Path, special: list[str], size: int) -> None:
    trainer = tokenizers.ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        LINES, vocab_size=size, special_tokens=special, min_frequency=2, show_progress=False
    )
    trainer.save_model(str(directory))


def pieces(path: pathlib.Path, lines=LINES, size=307, **options) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, num_threads=1, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


def gpt2(directory):
    byte_level(directory, ["<|endoftext|>"], 283)
    write(
        directory,
        config={"model_type": "gpt2"},
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer"},
    )


def bart(directory):
    byte_level(directory, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], 293)
    write(
        directory,
        config={"model_type": "bart", "decoder_start_token_id": 2},
        tokenizer_config={"tokenizer_class": "BartTokenizer"},
    )


def bert(directory):
    trainer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(LINES, vocab_size=151, min_frequency=1, show_progress=False)
    trainer.save_model(str(directory))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    write(directory, config={"model_type": "bert"}, tokenizer_config=settings)


def t5(directory):
    pieces(directory / "spiece.model", size=61, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write(
        directory,
        config={"model_type": "t5", "decoder_start_token_id": 0, "vocab_size": 251},
        tokenizer_config={"tokenizer_class": "T5Tokenizer", "extra_ids": 7},
    )


def llama(directory):
    options = dict(model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2)
    pieces(
        directory / "tokenizer.model", size=331, normalization_rule_name="identity",
        remove_extra_whitespaces=False, **options,
    )  # fmt: skip
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "chat_template": "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
    }
    write(
        directory,
        config={"model_type": "llama"},
        tokenizer_config=settings,
        generation_config={"eos_token_id": [2, 7]},
    )


def marian(directory):
    pieces(directory / "source.spm", LINES, size=101)
    pieces(directory / "target.spm", [line.upper() for line in LINES], size=101)
    sides = [
        sentencepiece.SentencePieceProcessor(model_file=str(directory / name))
        for name in ("source.spm", "target.spm")
    ]
    found = {side.id_to_piece(id) for side in sides for id in range(3, side.vocab_size())}
    vocabulary = ["</s>", "<unk>", *sorted(found), "<pad>"]
    write(
        directory,
        vocab={piece: id for id, piece in enumerate(vocabulary)},
        config={"model_type": "marian", "decoder_start_token_id": len(vocabulary) - 1},
        tokenizer_config={
            "tokenizer_class": "MarianTokenizer",
            "source_lang": "en",
            "target_lang": "EN",
        },
    )


def qwen2(directory):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    made.train_from_iterator(
        LINES,
        tokenizers.trainers.BpeTrainer(
            vocab_size=277,
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.add_special_tokens(special)
    made.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": special[1:],
        "added_tokens_decoder": {
            str(made.token_to_id(token)): {"content": token, "special": True} for token in special
        },
        "chat_template": CHATML,
    }
    write(
        directory,
        config={"model_type": "qwen2", "bos_token_id": made.token_to_id(special[0])},
        generation_config={"eos_token_id": [made.token_to_id(token) for token in special[::2]]},
        tokenizer_config=settings,
    )


def llama_json(directory):
    """LLaMA 2's tokenizer.json: byte pieces, and a decoder in four steps."""
    words = ["▁", "m", "o", "n", "▁m", "oo", "▁moo", "▁moon", "mo", "<extra>"]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", "m"), ("o", "o"), ("▁m", "oo"), ("▁moo", "n"), ("m", "o")]
    model = tokenizers.models.BPE(
        vocab={piece: id for id, piece in enumerate(vocabulary)}, merges=merges,
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    made = tokenizers.Tokenizer(model)
    steps = tokenizers.normalizers
    made.normalizer = steps.Sequence([steps.Prepend("▁"), steps.Replace(" ", "▁")])
    parts = tokenizers.decoders
    made.decoder = parts.Sequence(
        [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.enable_truncation(3)
    made.save(str(directory / "tokenizer.json"))
    write(
        directory,
        config={"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1},
    )


KINDS = {make.__name__: make for make in (gpt2, bart, bert, t5, llama, marian, qwen2, llama_json)}


@functools.cache
def homes() -> dict[str, pathlib.Path]:
    """A Hugging Face directory of each kind, until the process ends."""
    root = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name, make in KINDS.items():
        (root / name).mkdir()
        make(root / name)
    return {name: root / name for name in KINDS}


@functools.cache
def loaded() -> dict[str, tokenizer.Tokenizer]:
    """The tokenizer of each kind."""
    return {name: tokenizer.load(home) for name, home in homes().items()}


def streamed(words: tokenizer.Tokenizer, ids: list[int]) -> str:
    """The text of `ids`, taken one at a time."""
    stream = words.reader()
    return "".join(map(stream.push, ids)) + stream.flush()
