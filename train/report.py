"""What happened in this run, and what does this model do? The numbers of its pictures.

Each picture is a PNG for people and, beside it, a JSON file for programs with the very numbers that were drawn.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import model
from decode import context, processors
from decode.settings import Settings
from model import errors, tokenizer
from model.config import RECURRENT
from train import curves, embeddings, figures, scatter, terminal, word_tests

PROMPTS = ("Where is Ganymede located in the solar system?",)
SETTINGS = Settings(temperature=0.7, top_k=10, top_p=0.8)  # each visible in a picture of 15 tokens
CELLS = 100  # attention weights on a side of one figure; a model with more gets a figure per layer
LONGEST = 64  # tokens that an attention map can label readably
CANDIDATES = 15  # tokens that a next-token panel shows
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
    terminal.neighbours_table(numbers)
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
