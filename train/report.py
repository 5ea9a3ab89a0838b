"""What happened in this run, and what does this model do? Numbers for the pictures, and tables for the terminal.

Each picture is a PNG for people and, beside it, a JSON file for programs with the very numbers that were drawn.
"""

import dataclasses
import math
import pathlib
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import decode
import model
from decode import batch, context, processors
from decode.requests import Completion, Request
from decode.settings import Settings
from model import errors, tokenizer
from model.config import RECURRENT
from train import answers, curves, embeddings, figures, scatter, visible, word_tests

PROMPTS = ("Where is Ganymede located in the solar system?",)
SETTINGS = Settings(temperature=0.7, top_k=10, top_p=0.8)  # each visible in a picture of 15 tokens
CELLS = 100  # attention weights on a side of one figure; a model with more gets a figure per layer
LONGEST = 64  # tokens that an attention map can label readably
CANDIDATES = 15  # tokens that a next-token panel shows
LONGEST_PROMPT = 300  # letters of a prompt that the table of completions repeats
_filter = jax.jit(processors.PRESETS["hf"])


def run(
    directory: pathlib.Path,
    prompts: Sequence[str] | None = None,
    changed: Mapping[str, Any] | None = None,
    asked: word_tests.Asked = word_tests.NOTHING,
) -> int:
    """Draws all pictures of a run, or of a model without one, into `<directory>/figures`.

    The settings that are shown are SETTINGS with the values that `changed` gives; `asked` says whose
    neighbours and places in the embedding space are shown, by default those of the most frequent words, and what else
    is asked of that space.
    """
    directory = pathlib.Path(directory)
    settings = errors.build(
        Settings, {**dataclasses.asdict(SETTINGS), **(changed or {})}, "settings"
    )
    lm, place = model.load(directory), directory / "figures"
    predicts = lm.config.family in ("decoder_only", *RECURRENT)
    if prompts and not predicts:
        raise errors.BadInput(
            f"{directory} holds an {lm.config.family} model, and prompts are for those that predict the next token; "
            "leave the prompts out, or give another directory"
        )
    told, counts_V = word_tests.answer(lm, asked), embeddings.token_counts(directory)
    pictures, numbers = scatter.embedding_space(lm, place, asked.words, counts_V, asked.several)
    if (directory / "metrics.jsonl").exists():
        print(f"loss curve: {loss_curve(directory)}")
    neighbours_table(numbers)
    word_tests.tell(told, place)
    for picture in pictures:
        print(f"embedding space: {picture}")
    prompts = (prompts or PROMPTS) if predicts else ()
    for i, prompt in enumerate(prompts, start=1):
        number = f"_{i}" if len(prompts) > 1 else ""
        if lm.config.family not in RECURRENT:
            for picture in attention_map(lm, prompt, place, f"attention{number}"):
                print(f"attention of {prompt!r}: {picture}")
        picture = next_token(lm, prompt, settings, place, f"next_token{number}")
        print(f"what may follow {prompt!r}: {picture}")
    print("the numbers of each picture stand beside it, in a .json file of the same name")
    return 0


def loss_curve(run: pathlib.Path) -> pathlib.Path:
    """Draws both losses of a run, from its `metrics.jsonl`, into `<run>/figures/loss.png`."""
    return figures.write(figures.loss, curves.loss(run), pathlib.Path(run) / "figures" / "loss")


def attention_map(
    lm: model.LM, text: str, directory: pathlib.Path, name: str = "attention"
) -> list[pathlib.Path]:
    """Draws where each token of `text` looks: a panel per head.

    Returns the pictures written: `<name>.png`, or `<name>_layer_0.png` and so on where the model
    has many heads.
    """
    tokens = prompt_tokens(lm, text)
    if len(tokens) > LONGEST:
        raise errors.BadInput(
            f"the text has {len(tokens)} tokens, and a map of more than {LONGEST} cannot be read; "
            "shorten the text"
        )
    look = jax.jit(lambda params, tokens_BT: lm.net.apply(params, tokens_BT)[1]["attention"])
    maps_BNTS = look({"params": lm.params}, jnp.array([tokens], jnp.int32))
    maps = [np.asarray(map_BNTS[0]) for map_BNTS in maps_BNTS]
    heads = maps[0].shape[0]
    whole = max(len(maps), heads) * max(len(tokens), 10) <= CELLS
    groups = [range(len(maps))] if whole else [range(i, i + 1) for i in range(len(maps))]
    pictures = []
    for layers in groups:
        numbers = {
            "figure": "attention",
            "text": text,
            "tokens": tokens,
            "pieces": [lm.tokenizer.piece(token) for token in tokens],
            "layers": list(layers),
            "heads": heads,
            "attention": [
                [_triangle(weights_TS) for weights_TS in maps[layer]] for layer in layers
            ],
        }
        stem = name if whole else f"{name}_layer_{layers[0]}"
        pictures.append(figures.write(figures.attention, numbers, pathlib.Path(directory) / stem))
    return pictures


def next_token(
    lm: model.LM, prompt: str, settings: Settings, directory: pathlib.Path, name: str = "next_token"
) -> pathlib.Path:
    """Draws what may follow `prompt`: under no setting, under each alone, and under all in order."""
    tokens = prompt_tokens(lm, prompt)
    predict = jax.jit(lambda params, tokens_BT: lm.net.apply(params, tokens_BT)[0][0, -1])
    logits_V = np.asarray(predict({"params": lm.params}, jnp.array([tokens], jnp.int32)))
    shown = np.argsort(-logits_V, kind="stable")[:CANDIDATES]
    numbers = {
        "figure": "next_token",
        "prompt": prompt,
        "prompt_tokens": tokens,
        "vocab_size": len(logits_V),
        "tokens": shown.tolist(),
        "pieces": [lm.tokenizer.piece(token) for token in shown.tolist()],
        "panels": [panel(title, logits_V, each, shown) for title, each in strategies(settings)],
    }
    return figures.write(figures.next_token, numbers, pathlib.Path(directory) / name)


def neighbours_table(numbers: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints each word and what is nearest to it by cosine, a row per word."""
    table = _grid(box.HORIZONTALS, show_header=True)
    table.columns[0].header = "word"
    table.add_column("nearest in the embedding space, with cosine", overflow="fold", ratio=1)
    for word in numbers["words"]:
        pairs = zip(word["pieces"], word["cosines"], strict=True)
        table.add_row(
            Text(_safe(word["word"]), "bold"),
            Text("  ".join(f"{_safe(piece)} {cosine:.2f}" for piece, cosine in pairs)),
        )
    _print(table, console)


def strategies(settings: Settings) -> list[tuple[str, Settings]]:
    """The panels of `next_token`: no setting, each active one alone, then all of them in order."""
    if settings.temperature == 0:
        return [("the model", Settings()), ("greedy", settings)]
    active = {
        f"temperature {settings.temperature:g}": Settings(temperature=settings.temperature),
        f"top-k {settings.top_k}": Settings(top_k=settings.top_k),
        f"top-p {settings.top_p:g}": Settings(top_p=settings.top_p),
    }
    panels = [(title, alone) for title, alone in active.items() if alone != Settings()]
    if len(panels) > 1:
        panels.append((f"{'all three' if len(panels) == 3 else 'both'}, left to right", settings))
    return [("the model", Settings()), *panels]


def evaluation_table(metrics: Mapping[str, float], console: Console | None = None) -> None:
    """Prints how well a text is predicted, and what `xz -9e` needs for the same bytes.

    Args:
        metrics: those of `evaluate.evaluate`; of a text also its `bytes`, and the `xz_bytes` that it compresses to.
        console: where to; standard output if not given.
    """
    table = _grid()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    size, tokens = int(metrics.get("bytes", 0)), f"{int(metrics['tokens']):,}"
    if size:
        table.add_row("held-out text", f"{size:,}", f"bytes in {tokens} tokens")
    else:
        table.add_row("held-out targets", tokens, "")
    table.add_row("loss", f"{metrics['loss']:.4f}", "nats per target")
    table.add_row("perplexity", f"{metrics['perplexity']:,.2f}", "")
    table.add_row("accuracy", f"{metrics['accuracy']:.2%}", "of targets are the likeliest")
    if "word_perplexity" in metrics:
        table.add_row("word perplexity", f"{metrics['word_perplexity']:,.2f}", "per word")
    if "bits_per_byte" in metrics and not size:
        table.add_row("bits per byte", f"{metrics['bits_per_byte']:.4f}", "")
    if size:
        bits, xz_bytes = metrics["bits_per_byte"], int(metrics["xz_bytes"])
        xz_bits = 8 * xz_bytes / size
        saved = 1 - bits / xz_bits
        verdict = f"{abs(saved):.1%} {'below' if saved > 0 else 'above'} xz"
        own = f"this model: {math.ceil(bits * size / 8):,} bytes, {verdict}"
        table.add_row("bits per byte", f"{bits:.4f}", own)
        table.add_row("", f"{xz_bits:.4f}", f"xz -9e: {xz_bytes:,} bytes for the same text")
    _print(table, console)


def completions_table(
    rows: Iterable[tuple[str, str, Completion]], console: Console | None = None
) -> None:
    """Prints completions as a table: a block per prompt, in it a row per setting.

    A `▸` stands where the prompt ends and the completion begins; on a terminal the prompt is also
    dimmed. Under the name of the setting stand why it ended and its tokens' mean log-probability.

    Args:
        rows: (settings name, prompt, completion).
        console: where to; standard output if not given.
    """
    table = _grid(box.HORIZONTALS, show_header=True)
    table.columns[0].header = "settings\nend · log-prob"
    table.add_column(
        "prompt▸completion\nlog-prob: the model's, token mean", overflow="fold", ratio=1
    )
    blocks: dict[str, list[tuple[str, Completion]]] = {}
    for name, prompt, completion in rows:
        blocks.setdefault(prompt, []).append((name, completion))
    for prompt, block in blocks.items():
        for i, (name, completion) in enumerate(block):
            logprobs = list(completion.logprobs)
            mean = f" · {math.fsum(logprobs) / len(logprobs):.3f}" if logprobs else ""
            name = f"{name}\n" if name else ""
            side = Text.assemble((name, "bold"), f"{completion.finish_reason}{mean}", no_wrap=True)
            start = prompt if len(prompt) <= LONGEST_PROMPT else "…" + prompt[1 - LONGEST_PROMPT :]
            body, end = visible.ending(completion.text)
            text = Text.assemble((_safe(start), "dim"), ("▸", "bold"), _safe(body), (end, "dim"))
            last = i == len(block) - 1
            table.add_row(side, text if last else Text.assemble(text, "\n"), end_section=last)
    _print(table, console)


def answers_table(
    kind: str, rows: Iterable[tuple[str, str, Completion]], console: Console | None = None
) -> None:
    """Prints what a head says of each prompt, as `answers.lines` has it; `rows` are those of `completions_table`."""
    table = _grid(box.HORIZONTALS, show_header=True)
    table.columns[0].header = "answer"
    table.add_column("of what\nprobabilities, the largest first", overflow="fold", ratio=1)
    for name, prompt, completion in rows:
        lines = answers.lines(kind, prompt, completion)
        for i, (side, text) in enumerate(lines):
            side = f"{name}\n{side}" if name and not i else side
            table.add_row(
                Text(_safe(side), "bold"), Text(_safe(text)), end_section=i == len(lines) - 1
            )
    _print(table, console)


def complete(
    lm: model.LM,
    named: Sequence[tuple[str, Request]],
    seed: int,
    *,
    draft: model.LM | None = None,
    amateur: model.LM | None = None,
    batch_size: int = batch.BATCH_SIZE,
) -> tuple[list[Request], list[Completion]]:
    """Completes and prints: one completion on a terminal while it is made, everything else as a table.

    `draft`, `amateur` and `batch_size` are those of `decode.generate`. Of several requests
    those that cannot be followed fail, each with its reason; a single one is refused.
    """
    others: dict[str, Any] = dict(seed=seed, draft=draft, amateur=amateur, batch_size=batch_size)
    requests = decode.requests(request for _, request in named)
    texts = [r.prompt if isinstance(r.prompt, str) else lm.words.decode(r.prompt) for r in requests]
    single = len(requests) == 1 and max(requests[0].settings.n, requests[0].settings.best_of) == 1
    encoder = lm.config.family == "encoder_only"
    if single and sys.stdout.isatty() and not encoder:
        pieces = decode.stream(lm, requests[0], **others)
        return requests, [completion_stream(texts[0], pieces)]
    completions = decode.generate(lm, requests, strict=len(requests) == 1, **others)
    names = [name for name, _ in named]
    told = {r.id: (name, text) for r, name, text in zip(requests, names, texts, strict=True)}
    rows = [(*told[done.id], done) for done in completions]
    if encoder:
        answers_table(lm.config.head.kind, rows)
    else:
        completions_table(rows)
    return requests, completions


def completion_stream(prompt: str, pieces: Iterable[str | Completion]) -> Completion:
    """Prints a completion behind its prompt while it is made, and returns it.

    `pieces` are those of `decode.stream`: text, and the completion at the end.
    """
    Console().print(Text(_safe(prompt), style="dim"), end="", soft_wrap=True)
    for piece in pieces:
        if isinstance(piece, Completion):
            mean = math.fsum(piece.logprobs) / max(len(piece.logprobs), 1)
            print(
                f"\n\n{len(piece.tokens)} tokens · {piece.finish_reason} · log-prob {mean:.3f} a token"
            )
            return piece
        print(_safe(piece), end="", flush=True)
    raise AssertionError("a stream ends with its completion")


def prompt_tokens(lm: model.LM, prompt: str) -> list[int]:
    """The tokens of a prompt as decoding reads them: behind the begin-of-text token."""
    if not prompt:
        raise errors.BadInput("the prompt is empty; give it at least one character")
    tokens = tokenizer.prompt_ids(lm.words, prompt)
    if len(tokens) > lm.config.context_length:
        raise errors.BadInput(
            f"the prompt has {len(tokens)} tokens, and the context window holds "
            f"{lm.config.context_length}; shorten the prompt"
        )
    return tokens


def panel(
    title: str, logits_V: np.ndarray, settings: Settings, shown: np.ndarray
) -> dict[str, Any]:
    """What settings do to one distribution.

    Returns:
        `kept`: how many tokens can still be drawn; `mass`: the probability that these had under the
        temperature alone; per token in `shown` whether it can be drawn, its probability under the
        temperature alone and in the end; and of all other tokens how many are kept, and what
        probability they have.
    """
    heat = Settings(temperature=settings.temperature)
    before_V, after_V = (
        np.asarray(_filter(jnp.asarray(logits_V)[None], context.bare([s], len(logits_V))))[0]
        for s in (heat, settings)
    )
    kept_V = np.isfinite(after_V)
    if settings.temperature == 0:
        kept_V = np.arange(len(logits_V)) == logits_V.argmax()
        after_V = np.where(kept_V, after_V, -np.inf)
    before_V, after_V = _softmax(before_V), _softmax(after_V)
    return {
        "name": title,
        "kept": int(kept_V.sum()),
        "mass": _number(before_V[kept_V].sum()),
        "drawable": kept_V[shown].tolist(),
        "before": [_number(probability) for probability in before_V[shown]],
        "after": [_number(probability) for probability in after_V[shown]],
        "others_kept": int(np.delete(kept_V, shown).sum()),
        "others_after": _number(np.delete(after_V, shown).sum()),
    }


def _triangle(weights_TS: np.ndarray) -> list[list[float]]:
    """Row t as its t + 1 visible weights."""
    return [[_number(weight) for weight in row[: t + 1]] for t, row in enumerate(weights_TS)]


def _softmax(logits_V: np.ndarray) -> np.ndarray:
    weights_V = np.exp(logits_V.astype(np.float64) - logits_V.max())
    return weights_V / weights_V.sum()


def _number(value: Any) -> float:
    """The shortest decimal that is this value in float32."""
    return float(str(np.float32(value)))


def _grid(style: box.Box | None = None, show_header: bool = False) -> Table:
    table = Table(
        box=style, show_header=show_header, pad_edge=False, padding=(0, 2, 0, 0), border_style="dim"
    )
    table.add_column(style="dim", no_wrap=True)
    return table


def _print(table: Table, console: Console | None) -> None:
    """Prints a table; where colours cannot be shown, without the blanks that fill its lines."""
    console = console or Console()
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    lines = (line.rstrip() for line in capture.get().rstrip("\n").split("\n"))
    console.print("\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True)


def _safe(text: str) -> str:
    """Text that cannot move the cursor: controls become escapes; line breaks and tabs stay."""
    return "".join(
        letter
        if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs")
        else letter.encode("unicode_escape").decode()
        for letter in text
    )
