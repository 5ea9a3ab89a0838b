"""Do the pictures hold the numbers they claim to, can they be read, and do the tables keep the text?"""

import dataclasses
import io
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import decode
import model
from decode.requests import Completion, Request
from decode.settings import Settings
from model import errors, tokenizer
from model.config import ModelConfig
from tests import legible
from train import figures, report, terminal

PIECES = ["▁", "⏎", "$x$", "▁the", "中文", "ab\tc", "a_much_too_long_piece", "<0xC3>"]
SENTENCE = "def f(x):\n x"  # 13 tokens with the one that begins a text


class Letters:
    """A tokenizer that gives each character of a text the id `ord(character) mod 61`."""

    vocab_size, bos_id, eos_id, pad_id, unk_id = 61, 2, None, None, None
    prefix_ids, suffix_ids = (2,), ()

    def encode(self, text: str) -> list[int]:
        return [ord(character) % 61 for character in text]

    def raw(self, token: int) -> bytes:
        return f" ab{chr(97 + token % 26)}".encode()

    def piece(self, token: int) -> str:
        return PIECES[token] if token < len(PIECES) else f"t{token}"


@pytest.fixture(scope="module")
def lm() -> model.LM:
    """Random weights, large enough that attention maps and distributions are far from flat."""
    config = ModelConfig(vocab_size=61, context_length=97, layers=2, width=18, heads=3)
    net = model.build(config)
    params = jax.jit(lambda key: model.init(net, key=key))(jax.random.key(7))
    params = jax.tree.map(lambda leaf: 2 * leaf, params)
    return model.LM(config, params, Letters(), net)  # type: ignore[arg-type]


def numbers_of(picture: pathlib.Path) -> dict:
    return json.loads(picture.with_suffix(".json").read_text("utf-8"))


def metric(step: int, split: str = "train", **values) -> str:
    return json.dumps({"step": step, "split": split, **values}) + "\n"


# Attention maps


def test_attention_rows_are_the_models_and_sum_to_one_over_what_a_token_sees(lm, tmp_path):
    (picture,) = report.attention_map(lm, SENTENCE, tmp_path)
    numbers = numbers_of(picture)
    tokens = jnp.array([[2, *lm.tokenizer.encode(SENTENCE)]])
    _, aux = lm.net.apply({"params": lm.params}, tokens)
    assert (numbers["layers"], numbers["heads"]) == ([0, 1], 3)
    assert numbers["pieces"] == [lm.tokenizer.piece(token) for token in numbers["tokens"]]
    for layer, head in itertools.product(range(2), range(3)):
        rows = numbers["attention"][layer][head]
        assert [len(row) for row in rows] == list(range(1, 14))
        np.testing.assert_allclose([sum(row) for row in rows], 1, atol=1e-6)
        for t, row in enumerate(rows):
            np.testing.assert_allclose(row, aux["attention"][layer][0, head, t, : t + 1], atol=1e-4)


def test_a_model_with_many_heads_gets_a_figure_per_layer(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CELLS", 38)
    pictures = report.attention_map(lm, SENTENCE, tmp_path, "look")
    assert [picture.name for picture in pictures] == ["look_layer_0.png", "look_layer_1.png"]
    assert [numbers_of(picture)["layers"] for picture in pictures] == [[0], [1]]
    assert [len(numbers_of(picture)["attention"]) for picture in pictures] == [1, 1]


def test_masked_cells_are_blank_and_all_panels_share_one_scale(lm, tmp_path):
    figure = figures.attention(numbers_of(report.attention_map(lm, SENTENCE, tmp_path)[0]))
    images = [image for axes in figure.axes for image in axes.images]
    assert len(images) == 6
    for image in images:
        np.testing.assert_array_equal(image.get_array().mask, np.triu(np.ones((13, 13), bool), 1))
        assert image.get_clim() == (0, 1) and image.cmap is figures.ATTENTION
    assert figures.ATTENTION(0.0)[:3] != (1, 1, 1), "a weight of 0 must differ from blank"


# Next-token distributions


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def survivors(probabilities: np.ndarray, top_k: int = 61, top_p: float = 1.0) -> np.ndarray:
    """Which tokens top-k and then top-p leave, by going through them one after the other."""
    order = sorted(range(61), key=lambda token: (-probabilities[token], token))[:top_k]
    total = sum(probabilities[token] for token in order)
    kept, mass = np.zeros(61, bool), 0.0
    for token in order:
        if mass >= top_p:
            break
        kept[token] = True
        mass += probabilities[token] / total
    return kept


def test_each_panel_equals_brute_force(lm, tmp_path):
    settings = Settings(temperature=1.7, top_k=11, top_p=0.6)
    numbers = numbers_of(report.next_token(lm, SENTENCE, settings, tmp_path))
    logits, _ = lm.net.apply(
        {"params": lm.params}, jnp.array([[2, *lm.tokenizer.encode(SENTENCE)]])
    )
    logits = np.asarray(logits[0, -1], np.float64)
    plain, warm = softmax(logits), softmax(logits / 1.7)
    everything = np.ones(61, bool)
    expected = {
        "the model": (plain, everything),
        "temperature 1.7": (warm, everything),
        "top-k 11": (plain, survivors(plain, top_k=11)),
        "top-p 0.6": (plain, survivors(plain, top_p=0.6)),
        "all three, left to right": (warm, survivors(warm, top_k=11, top_p=0.6)),
    }
    shown = np.array(numbers["tokens"])
    assert shown.tolist() == np.argsort(-logits)[:15].tolist()
    assert [panel["name"] for panel in numbers["panels"]] == list(expected)
    assert 1 < survivors(warm, top_k=11, top_p=0.6).sum() < 11, "the example must use all settings"
    for panel in numbers["panels"]:
        before, kept = expected[panel["name"]]
        after = np.where(kept, before, 0) / before[kept].sum()
        assert panel["kept"] == kept.sum() and panel["drawable"] == kept[shown].tolist()
        others = np.setdiff1d(np.arange(61), shown)
        assert panel["others_kept"] == kept[others].sum()
        np.testing.assert_allclose(panel["mass"], before[kept].sum(), rtol=1e-5)
        np.testing.assert_allclose(panel["before"], before[shown], rtol=1e-4)
        np.testing.assert_allclose(panel["after"], after[shown], rtol=1e-4)
        np.testing.assert_allclose(panel["others_after"], after[others].sum(), atol=1e-5)


def test_settings_that_do_nothing_get_no_panel():
    names = [name for name, _ in report.strategies(Settings())]
    assert names == ["the model"]
    names = [name for name, _ in report.strategies(Settings(top_k=3, top_p=0.5))]
    assert names == ["the model", "top-k 3", "top-p 0.5", "both, left to right"]


def test_temperature_0_keeps_the_likeliest_token_alone(lm, tmp_path):
    picture = report.next_token(lm, SENTENCE, Settings(temperature=0.0), tmp_path)
    panel = numbers_of(picture)["panels"][1]
    assert (panel["name"], panel["kept"]) == ("greedy", 1)
    assert panel["drawable"] == [True] + [False] * 14 and panel["after"][0] == 1


@pytest.mark.parametrize("draw", ["attention_map", "next_token"])
@pytest.mark.parametrize(
    "prompt, complaint", [("", "prompt is empty"), ("a" * 97, "98 tokens.* 97.*shorten")]
)
def test_a_prompt_that_cannot_be_read_is_refused_in_one_line(lm, tmp_path, draw, prompt, complaint):
    settings = [] if draw == "attention_map" else [Settings()]
    with pytest.raises(errors.BadInput, match=complaint) as caught:
        getattr(report, draw)(lm, prompt, *settings, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_neither_draws_nor_writes_even_from_token_ids(lm, tmp_path):
    mute = dataclasses.replace(lm, tokenizer=None, directory=tmp_path / "mute")
    request = Request((3, 5), Settings(max_new_tokens=2))
    for act in (
        lambda: report.attention_map(mute, "moon", tmp_path),
        lambda: report.next_token(mute, "moon", Settings(), tmp_path),
        lambda: terminal.complete(mute, [("", request)], 0),
        lambda: decode.generate(mute, [request], seed=0),
        lambda: next(decode.stream(mute, request, seed=0)),
    ):
        with pytest.raises(
            errors.BadInput, match="mute has no tokenizer; put its files beside the"
        ):
            act()
    assert not list(tmp_path.iterdir())


def test_an_attention_map_that_nobody_could_read_is_refused(lm, tmp_path):
    with pytest.raises(errors.BadInput, match="65 tokens.* more than 64 cannot be read; shorten"):
        report.attention_map(lm, "a" * 64, tmp_path)


def test_pictures_show_the_tokens_that_decoding_reads():
    words = tokenizer.train([SENTENCE * 7], kind="bpe", vocab_size=271)
    config = ModelConfig(vocab_size=271, context_length=97, layers=1, width=6, heads=1)
    net = model.build(config)
    params = jax.jit(lambda key: model.init(net, key=key))(jax.random.key(5))
    lm = model.LM(config, params, words, net)
    (completion,) = decode.generate(lm, [SENTENCE], Settings(max_new_tokens=1), seed=3)
    assert report.prompt_tokens(lm, SENTENCE) == list(completion.prompt_tokens)


# All pictures


def test_a_run_gets_a_picture_of_each_kind_for_each_prompt(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model, "load", lambda directory: lm)
    (tmp_path / "metrics.jsonl").write_text(metric(1, loss=2.0))
    assert report.run(tmp_path, [SENTENCE, SENTENCE[::-1]]) == 0
    names = ["attention_1", "attention_2", "loss", "next_token_1", "next_token_2"]
    names += ["neighbours", "embeddings_2d", "embeddings_3d"]
    there = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert there == sorted(f"{name}.{kind}" for name in names for kind in ("json", "png"))
    said = capsys.readouterr().out
    assert "nearest in the embedding space" in said
    assert all(str(tmp_path / "figures" / f"{name}.png") in said for name in names)


def drawn(kind: str, lm: model.LM, directory: pathlib.Path) -> pathlib.Path:
    """A picture of each kind that is hard to lay out."""
    if kind == "loss":
        lines = [metric(step, loss=2 + 5 / step) for step in range(1, 900)]
        lines += [metric(10, "valid", loss=3), metric(899, "valid", loss=2.01, bits_per_byte=1)]
        (directory / "metrics.jsonl").write_text("".join(lines))
        (directory / "evaluation.json").write_text('{"bytes": 8000, "xz_bytes": 1003}')
        return report.loss_curve(directory)
    text = "".join(chr(61 * 3 + i) for i in range(len(PIECES))) + "abcdefghijk"
    if kind == "attention":
        return report.attention_map(lm, text, directory)[0]
    settings = Settings(temperature=0.3, top_k=5, top_p=0.9)
    return report.next_token(lm, f"{text} $5 and $6\n" * 3, settings, directory)


KINDS = ["loss", "attention", "next_token"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_bytes_without_a_date(lm, tmp_path, kind):
    first = drawn(kind, lm, tmp_path)
    image, data = first.read_bytes(), first.with_suffix(".json").read_bytes()
    second = drawn(kind, lm, tmp_path)
    assert second.read_bytes() == image and second.with_suffix(".json").read_bytes() == data
    chunks, at = set(), 8
    while at < len(image):
        chunks.add(image[at + 4 : at + 8])
        at += 12 + int.from_bytes(image[at : at + 4])
    assert chunks <= {b"IHDR", b"IDAT", b"IEND", b"pHYs"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_is_inside_the_picture_large_enough_and_clear_of_the_others(lm, tmp_path, kind):
    legible.check(getattr(figures, kind), numbers_of(drawn(kind, lm, tmp_path)))


def test_labels_show_blanks_escape_what_the_font_lacks_and_stay_short():
    labels = [figures.label(piece) for piece in PIECES]
    assert labels == ["·", "⏎", "$x$", "·the", r"\u4e2d\u6587", "ab⇥c", "a_much_too_lo…", "<0xC3>"]
    assert figures.label(" \n\x1b\u202e") == r"·⏎\x1b\u202e"


def test_percentages_have_three_digits():
    shares = [1, 0.35, 0.084, 0.000123, 3e-6, 0]
    texts = ["100 %", "35.0 %", "8.40 %", "0.0123 %", "<0.001 %", "0.00 %"]
    assert [figures.percent(share) for share in shares] == texts


def test_a_place_that_takes_no_picture_is_named_in_one_line(lm, tmp_path):
    (tmp_path / "figures").write_text("a file where a directory should be")
    (tmp_path / "metrics.jsonl").write_text(metric(1, loss=2.0))
    with pytest.raises(errors.BadInput, match="figures does not take the figure loss .* choose"):
        report.loss_curve(tmp_path)


# Tables


def row(name: str, prompt: str, text: str, reason: str = "length", logprobs=(-1.0, -0.5)) -> tuple:
    blank: tuple = ()
    return name, prompt, Completion(0, 0, blank, blank, text, reason, logprobs, blank, blank)


def printed(show, what, terminal: bool = False, width: int = 60) -> str:
    file, colors = io.StringIO(), "standard" if terminal else None
    show(what, Console(file=file, force_terminal=terminal, width=width, color_system=colors))
    return file.getvalue()


def test_completions_stand_by_prompt_then_setting_with_their_end_and_mean():
    rows = [
        row(name, prompt, f" {name} text", reason)
        for name, reason in [("greedy", "stop"), ("top-k 5", "length")]
        for prompt in ["First", "Second"]
    ]
    text = printed(terminal.completions_table, rows)
    places = [
        text.index(f"{p}▸ {n} text") for p in ("First", "Second") for n in ("greedy", "top-k 5")
    ]
    assert places == sorted(places)
    assert text.count("stop · -0.750") == 2 and text.count("length · -0.750") == 2
    assert "\x1b" not in text and not any(line != line.rstrip() for line in text.splitlines())


def test_code_keeps_its_lines_and_final_line_breaks_are_seen():
    code = row("greedy", "def f(x):\n", "    if x:\n\n        return [bold]x\n\n")
    lines = printed(terminal.completions_table, [code]).splitlines()
    start = next(i for i, line in enumerate(lines) if "def f(x):" in line)
    column = lines[start].index("def")
    body = [line[column:] for line in lines[start : start + 4]]
    assert body == ["def f(x):", "▸    if x:", "", "        return [bold]x⏎⏎"]


def test_blanks_at_the_end_are_seen_and_counted():
    text = printed(terminal.completions_table, [row("greedy", "p", " x  \n\t" + 48 * " ")])
    assert "p▸ x··⏎⇥·×48" in text
    assert "p▸·×48" in printed(terminal.completions_table, [row("greedy", "p", 48 * " ")])


def test_long_text_wraps_to_the_width_and_nothing_is_lost():
    words = [f"w{i}" for i in range(97)]
    text = printed(terminal.completions_table, [row("greedy", "p", " ".join(words))], width=43)
    assert max(map(len, text.splitlines())) <= 43
    assert [word for word in text.replace("p▸", " ").split() if word in words] == words


def test_text_cannot_move_the_cursor():
    evil = row("greedy", "a\x1b[2J", "b\rc\x9b1m\u202ed\x07")
    text = printed(terminal.completions_table, [evil])
    assert r"a\x1b[2J▸b\rc\x9b1m\u202ed\x07" in text
    assert not set(text) & set("\x1b\r\x9b\u202e\x07")


def test_on_a_terminal_the_prompt_is_dim_and_the_completion_is_not():
    text = printed(terminal.completions_table, [row("greedy", "start", " end")], terminal=True)
    assert "\x1b[2mstart\x1b[0m\x1b[1m▸\x1b[0m end" in text


def test_a_completion_without_tokens_has_no_mean():
    text = printed(terminal.completions_table, [row("greedy", "p", "", "stop", ())])
    assert "p▸" in text and "nan" not in text


def test_a_completion_without_a_name_for_its_settings_stands_beside_its_end():
    lines = printed(terminal.completions_table, [row("", "p", " rest", "stop")]).splitlines()
    assert [line.split() for line in lines][4:5] == ["stop · -0.750 p▸ rest".split()]


def test_a_stream_prints_each_piece_as_it_comes_and_then_the_end(capsys):
    completion = row("", "", "\x1b two", "stop")[2]
    heard = []

    def pieces():
        for piece in ("\x1b", " two"):
            yield piece
            heard.append(capsys.readouterr().out)
        yield dataclasses.replace(completion, tokens=(5, 7, 11))

    assert terminal.completion_stream("one\n", pieces()).tokens == (5, 7, 11)
    assert heard == ["one\n\\x1b", " two"]
    assert capsys.readouterr().out == "\n\n3 tokens · stop · log-prob -0.750 a token\n"


def test_the_evaluation_stands_beside_what_xz_needs():
    metrics = dict(
        loss=2.5,
        perplexity=12.1825,
        accuracy=0.25,
        bits_per_byte=1.5,
        word_perplexity=701.5,
        tokens=431.0,
        bytes=1009,
        xz_bytes=227,
    )
    text = printed(terminal.evaluation_table, metrics, width=80)
    lines = [line.split() for line in text.splitlines()]
    assert lines == [
        "held-out text 1,009 bytes in 431 tokens".split(),
        "loss 2.5000 nats per target".split(),
        "perplexity 12.18".split(),
        "accuracy 25.00% of targets are the likeliest".split(),
        "word perplexity 701.50 per word".split(),
        "bits per byte 1.5000 this model: 190 bytes, 16.7% below xz".split(),
        "1.7998 xz -9e: 227 bytes for the same text".split(),
    ]
    assert "10.0% above xz" in printed(
        terminal.evaluation_table, metrics | {"bits_per_byte": 1.7998 * 1.1}, width=80
    )
