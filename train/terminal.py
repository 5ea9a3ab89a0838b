"""What does a person read in the terminal? Tables of completions, of an encoder's answers, of losses and of words."""

import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import decode
import model
from decode import batch
from decode.requests import Completion, Request
from train import answers, visible

LONGEST_PROMPT = 300  # letters of a prompt that the table of completions repeats


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


def neighbours_table(
    numbers: Mapping[str, Any], console: Console | None = None, header: str = "word"
) -> None:
    """Prints each word and what is nearest to it by cosine, a row per word; nothing where there is none."""
    if not numbers["words"]:
        return
    table = _grid(box.HORIZONTALS, show_header=True)
    table.columns[0].header = header
    table.add_column("nearest in the embedding space, with cosine", overflow="fold", ratio=1)
    for word in numbers["words"]:
        pairs = zip(word["pieces"], word["cosines"], strict=True)
        table.add_row(
            Text(_safe(word["word"]), "bold"),
            Text("  ".join(f"{_safe(piece)} {cosine:.2f}" for piece, cosine in pairs)),
        )
    _print(table, console)


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
