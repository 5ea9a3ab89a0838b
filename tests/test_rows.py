"""Are the rows of every task what its model reads, and functions of their number and the epoch alone?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import errors, tokenizer
from train import losses, rows, step, streams, tasks

TEXT = "the small moon goes around the large planet. the dog looks at the moon. a cat does not.\n"
SIZES = dict(vocab_size=449, context_length=64, layers=1, width=12, heads=2, hidden=11)
CONFIGS = {
    "decoder_only": model.ModelConfig(**SIZES),
    "encoder_only": model.ModelConfig(family="encoder_only", token_types=2, **SIZES),
    "encoder_decoder": model.ModelConfig(family="encoder_decoder", **SIZES),
    "gru": model.ModelConfig(family="gru", **SIZES),
}
LABELS = ("no", "yes", "perhaps")
CHAT = [{"role": "user", "content": "the moon"}, {"role": "assistant", "content": "goes"}]
PAIRS = [{"a": "the moon " * (1 + n % 3), "b": "a dog " * (1 + n % 2)} for n in range(11)]
CASES = {
    "causal": (tasks.Task(), "decoder_only", [TEXT] * 5),
    "prefix": (tasks.Task("prefix"), "decoder_only", [TEXT] * 5),
    "masked": (tasks.Task("masked", whole_words=True), "encoder_only", [TEXT] * 5),
    "pairs": (tasks.Task("masked", next_sentence=True), "encoder_only", [TEXT, TEXT * 2]),
    "spans": (tasks.Task("spans", rate=0.2), "encoder_decoder", [TEXT] * 5),
    "denoising": (tasks.Task("denoising"), "encoder_decoder", [TEXT] * 5),
    "seq2seq": (
        tasks.Task("seq2seq", source="{{ a }}", target="{{ b }}"),
        "encoder_decoder",
        PAIRS,
    ),
    "continuation": (tasks.Task("seq2seq", source="{{ a }}", target="{{ b }}"), "gru", PAIRS),
    "chat": (tasks.Task("chat"), "decoder_only", [{"messages": CHAT}] * 5),
    "classify": (
        tasks.Task("classify", labels=LABELS),
        "encoder_only",
        [{"text": "the moon", "label": label} for label in LABELS],
    ),
    "tag": (
        tasks.Task("tag", source="tokens", labels=LABELS),
        "encoder_only",
        [{"tokens": ["the", "moon"], "tags": ["no", "yes"]}] * 5,
    ),
}
LENGTH, SOURCE = 23, 29


@pytest.fixture(scope="module")
def words():
    special = dict.fromkeys(name for names in tasks.SPECIAL.values() for name in names)
    return tokenizer.train([TEXT * 7], kind="bpe", vocab_size=440, special=tuple(special))


@pytest.fixture(scope="module")
def store(tmp_path_factory, words):
    """The examples of a case, as they lie on disk."""

    @functools.cache
    def stored(name):
        task, _, items = CASES[name]
        directory = tmp_path_factory.mktemp(name) / "split"
        with streams.Writer(directory, words.vocab_size) as writer:
            writer.add(task.encode(items, words), map(task.measure, items))
            return streams.open_(directory, writer.complete())

    return stored


def build(name, store, words, **changed):
    task, family, _ = CASES[name]
    lengths = {"length": LENGTH, "source_length": SOURCE} | changed
    return rows.build(task, store(name), words, CONFIGS[family], seed=3, name="0", **lengths)


@pytest.mark.parametrize("name", CASES)
def test_rows_have_the_arrays_that_their_model_reads(name, store, words):
    made = build(name, store, words)
    row = made.row(0, 0)
    two = CASES[name][1] == "encoder_decoder"
    more = {"source", "source_segments"} if two else set()
    more |= {"prefix": {"prefix"}, "pairs": {"types", "pair_targets", "pair_weights"}}.get(
        name, set()
    )
    assert row.keys() == {"tokens", "targets", "segments", "weights"} | more
    for key, array in row.items():
        assert array.shape == (SOURCE if key.startswith("source") else LENGTH,)
        assert array.dtype == (np.float32 if key.endswith("weights") else np.int32)
    assert (row["weights"][row["segments"] == 0] == 0).all() and row["weights"].sum() > 0
    assert len(made) >= 1


@pytest.mark.parametrize("name", CASES)
def test_a_row_depends_on_its_number_and_the_epoch_and_on_nothing_else(name, store, words):
    one, other = (build(name, store, words) for _ in range(2))
    last = len(one) - 1
    other.row(last, 5), other.row(0, 1)
    for place in [(0, 0), (last, 3)]:
        for key, array in one.row(*place).items():
            np.testing.assert_array_equal(array, other.row(*place)[key])
    moved = any(
        (one.row(0, 0)[key] != one.row(0, epoch)[key]).any()
        for key in one.row(0, 0)
        for epoch in (1, 2, 3)
    )
    assert moved == (name in ("prefix", "masked", "pairs", "spans", "denoising"))


def test_pairs_share_a_row_and_targets_begin_behind_the_start(store, words):
    row = build("seq2seq", store, words).row(0, 0)
    assert row["segments"].max() == row["source_segments"].max() > 1
    second = row["segments"] == 2
    source, target = PAIRS[1]["a"], PAIRS[1]["b"]
    assert row["source"][row["source_segments"] == 2].tolist() == [
        words.bos_id,
        *words.encode(source),
    ]
    assert row["targets"][second].tolist() == [*words.encode(target), words.eos_id]
    assert row["tokens"][second].tolist() == [words.bos_id, *words.encode(target)]


def test_spans_fill_their_source_and_hold_the_text(store, words):
    row = build("spans", store, words).row(0, 0)
    sentinels = set(tasks.special_ids(words, tasks.SENTINELS))
    source, target = (
        row[name][row[segments] > 0].tolist()
        for name, segments in (("source", "source_segments"), ("targets", "segments"))
    )
    assert len(source) >= SOURCE - 1 and source[-1] == target[-1] == words.eos_id
    assert [id for id in source if id in sentinels] == [id for id in target if id in sentinels]
    parts = [[]]
    for id in target[:-1]:
        parts = [*parts, []] if id in sentinels else [*parts[:-1], [*parts[-1], id]]
    gaps = iter(parts[1:])
    whole = [id for each in source[:-1] for id in (next(gaps) if each in sentinels else [each])]
    (text, _) = store("spans").streams["text"].ids, None
    assert whole == text[: len(whole)].tolist()


def test_a_denoised_target_is_the_text_and_its_source_has_masks(store, words):
    row = build("denoising", store, words).row(0, 0)
    target = row["targets"][row["segments"] > 0]
    text = store("denoising").streams["text"].ids[1 : len(target)]
    assert target.tolist() == [*text.tolist(), words.eos_id]
    assert words.mask_id in row["source"]


def test_what_no_row_holds_is_refused_dropped_or_cut(store, words):
    with pytest.raises(
        errors.BadInput, match=r"^example \d+ .*has \d+ (source )?tokens, and a row holds 5; raise"
    ):
        build("seq2seq", store, words, length=5)
    with pytest.raises(
        errors.BadInput,
        match=r"^config.data.length is 7, and sources of config.data.source_length=29",
    ):
        build("spans", store, words, length=7)


def first_tokens(net, params, row):
    """Logits [1, T, C] of the first token of each text, each read alone; 0 elsewhere."""
    segments, found = np.asarray(row["segments"])[0], np.zeros((1, LENGTH, len(LABELS)))
    for number in range(1, segments.max() + 1):
        (places,) = np.nonzero(segments == number)
        alone, _ = net.apply({"params": params}, row["tokens"][:, places])
        found[0, places[0]] = alone[0]
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_whole_logits_whatever_the_family(name, store, words):
    task, family, _ = CASES[name]
    config = model.ModelConfig(
        **{**SIZES, "family": family, "token_types": 2 * (family == "encoder_only")},
        head=model.config.Head(**task.head),
    )
    net = model.build(config)
    params = jax.jit(functools.partial(model.init, net))(key=jax.random.key(0))
    made = build(name, store, words)
    row = {key: jnp.asarray(array)[None] for key, array in made.row(0, 0).items()}
    sums = jax.jit(functools.partial(step.batch_loss, net, losses.LossConfig(chunk=8)))(
        params, row, jax.random.key(0)
    )
    if family == "encoder_decoder":
        inputs = (row["source"], row["tokens"])
        sides = dict(source_segments=row["source_segments"], target_segments=row["segments"])
    else:
        inputs, sides = (row["tokens"],), dict(segments=row["segments"])
    sides |= {"types": row["types"]} if name == "pairs" else {}
    sides |= {"prefix": row["prefix"].sum(axis=1)} if name == "prefix" else {}
    logits, aux = net.apply({"params": params}, *inputs, **sides)
    if task.kind == "classify":
        logits = first_tokens(net, params, row)
    logits = np.asarray(logits, np.float64)
    targets, weights = np.asarray(row["targets"]), np.asarray(row["weights"])
    nats = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    )
    expected = (nats * weights).sum()
    assert float(sums.nats) == pytest.approx(expected, rel=1e-5)
    if name == "pairs":
        pair = np.asarray(aux["next_sentence"], np.float64)[0]
        chosen = int(row["pair_targets"][0, 0])
        expected += (np.log(np.exp(pair).sum()) - pair[chosen]) * task.rate * LENGTH
    assert float(sums.objective) == pytest.approx(expected, rel=1e-5)
