"""Does an encoder's answer say what its head says of the text as training frames it, whatever shares its batch?"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny
import tokenizer_homes

import decode
import model
from decode import labels, manifest, rules
from decode.requests import Request
from decode.settings import Settings
from model import errors, tokenizer
from model.config import Head, ModelConfig
from train import answers, step, tasks

TEXT = tiny.TEXT
TAGS = ("O", "B-moon", "I-moon", "B-cat", "I-cat")
HEADS = {
    "sequence": Head("sequence", ("yes", "no", "perhaps")),
    "token": Head("token", TAGS),
    "lm": Head(),
}
LONG = "cat " * 61
PROMPTS = {
    "sequence": ["a cat sat", "the moon ganymede is located in the solar system, larger", "mat"],
    "token": ["a cat sat", "the moon ganymede is located in the solar system, larger", "mat"],
    "lm": ["a <mask> sat on [MASK]", "the moon <mask> is located in the solar system", "<mask>"],
}


@functools.cache
def words():
    return tokenizer.train([TEXT] * 7, vocab_size=311, special=("<mask>",))


def hollow(head, tokens=None):
    """An encoder without weights, and with 13 rows of its table that no piece has."""
    shape = dict(tiny.GPT2, family="encoder_only", context_length=47, tied=head.kind == "lm")
    config = ModelConfig(vocab_size=words().vocab_size + 13, head=head, **shape)
    return model.LM(config, {}, tokens or words(), model.build(config))


@functools.cache
def lm(kind):
    """The same with random weights."""
    bare = hollow(HEADS[kind])
    shapes = jax.eval_shape(lambda: model.init(bare.net, key=jax.random.key(5)))
    rng = np.random.default_rng(11)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes)
    return dataclasses.replace(bare, params=params)


def writer():
    return dataclasses.replace(lm("lm"), config=ModelConfig(7, 5, 1, 4, 2))


def classify(texts, **others):
    return decode.classify(lm("sequence"), texts, **others)


def framed(text, special=False):
    return [words().bos_id, *words().encode(text, special=special), words().eos_id]


@functools.cache
def compiled(kind):
    net, head = lm(kind).net, step.head(lm(kind).net, key=None)

    def call(params, batch):
        return head(params, step.features(net, params, batch, key=None)[0])

    return jax.jit(call)


def head(kind, ids):
    """Log-probabilities that training's own forward pass over a row of this text says."""
    row = jnp.zeros((1, 47), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
    segments = (jnp.arange(47, dtype=jnp.int32)[None] < len(ids)).astype(jnp.int32)
    logits = compiled(kind)(lm(kind).params, {"tokens": row, "segments": segments})
    return scipy.special.log_softmax(np.asarray(logits, np.float64)[0], axis=-1)[: len(ids)]


def test_a_text_has_the_probability_of_every_label_the_likeliest_first():
    for text, done in zip(PROMPTS["sequence"], classify(PROMPTS["sequence"]), strict=True):
        assert list(done.prompt_tokens) == framed(text)
        expected = head("sequence", framed(text))[0]
        names = HEADS["sequence"].labels
        assert done.labels[0] == tuple(names[i] for i in np.argsort(-expected))
        np.testing.assert_allclose(done.label_logprobs[0], np.sort(expected)[::-1], atol=1e-5)
        assert (done.text, done.tokens) == (done.labels[0][0], (int(expected.argmax()),))
        assert math.isclose(math.fsum(map(math.exp, done.label_logprobs[0])), 1, abs_tol=1e-5)
        np.testing.assert_allclose(done.margins[0], np.diff(np.sort(expected))[-1], atol=1e-5)


def test_a_text_to_classify_or_tag_is_framed_as_a_training_example():
    record = {"text": "a cat sat", "label": "no", "tokens": ["a", "cat", "sat"], "tags": ["O"] * 3}
    for task, ask in (
        (tasks.Task("classify", labels=("no",)), decode.classify),
        (tasks.Task("tag", source="tokens", labels=("O",)), decode.tag),
    ):
        (example,) = task.encode([record], words())
        kind = "sequence" if task.kind == "classify" else "token"
        (done,) = ask(lm(kind), [task.framed(record, words())])
        assert list(done.prompt_tokens) == example["text"]
        if task.kind == "tag":
            assert list(done.places) == [i for i, x in enumerate(example["labels"]) if x == 0]


def test_the_first_piece_of_each_word_decides_its_tag():
    text = "the Zebra moon"
    pieces = words().encode_batch(["the", " Zebra", " moon"])
    assert len(pieces[1]) > 1
    (done,) = decode.tag(lm("token"), [text])
    starts = [1, 1 + len(pieces[0]), 1 + len(pieces[0]) + len(pieces[1])]
    assert list(done.places) == starts
    expected = head("token", framed(text))[starts]
    assert [names[0] for names in done.labels] == [TAGS[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose(done.logprobs, expected.max(axis=1), atol=1e-5)
    assert done == decode.tag(lm("token"), [["the", "Zebra", "moon"]])[0]


def test_a_word_without_any_token_is_outside():
    _, done, _ = decode.tag(lm("token"), [["a"], ["", "cat"], ["cat"]])
    assert (done.places[0], done.labels[0], done.margins[0]) == (-1, ("O",), math.inf)
    assert done.labels[1] == decode.tag(lm("token"), [" cat"])[0].labels[0]


def test_every_mask_has_its_likeliest_pieces_and_none_beyond_the_vocabulary():
    text = "a <mask> sat on [MASK]"
    (done,) = decode.fill(lm("lm"), [text], top_k=7)
    ids = framed("a<mask> sat on<mask>", special=True)
    places = [i for i, id in enumerate(ids) if id == words().mask_id]
    assert (list(done.prompt_tokens), list(done.places)) == (ids, places) and len(places) == 2
    expected = head("lm", ids)[places][:, : words().vocab_size]
    order = np.argsort(-expected, axis=1)[:, :7]
    assert [list(names) for names in done.labels] == [[*map(words().piece, row)] for row in order]
    sure = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(done.label_logprobs, sure, atol=1e-5)
    for place, id in zip(places, order[:, 0], strict=True):
        ids[place] = int(id)
    assert (done.text, list(done.tokens)) == (words().decode(ids), order[:, 0].tolist())
    (five,) = decode.generate(lm("lm"), [text], seed=0)
    assert [names[:5] for names in done.labels] == list(five.labels)


def test_a_mask_hides_the_space_before_a_piece_too_but_not_that_between_characters():
    assert words().encode("a <mask> cat", special=True) == [
        *words().encode("a"),
        words().mask_id,
        *words().encode(" cat"),
    ]
    letters = tokenizer.train([TEXT], kind="char", special=("<mask>",))
    assert letters.encode("a <mask>b", special=True) == [
        *letters.encode("a "),
        letters.mask_id,
        *letters.encode("b"),
    ]


def test_a_published_tokenizer_is_asked_with_its_own_mask_and_frame():
    bert = tokenizer_homes.loaded()["bert"]
    config = ModelConfig(bert.vocab_size, 31, 1, 4, 2, family="encoder_only", position="learned")
    lm = model.LM(config, {}, bert, model.build(config))
    for text in ("The moon [MASK] of", "the moon <mask> of"):
        asked = labels.of(lm, Request(text, id=0))
        pieces = [bert.piece(id) for id in asked.ids]
        assert pieces == ["[CLS]", "the", "moon", "[MASK]", "of", "[SEP]"]
        assert (asked.places, asked.count) == ((3,), 5)


@pytest.mark.parametrize("kind", PROMPTS)
def test_an_answer_is_the_same_bits_in_any_company_and_any_row(kind):
    many = PROMPTS[kind] * 5  # two batches of 8 rows
    together = decode.generate(lm(kind), [*many[::-1]], seed=0)[::-1]
    for text, done in zip(many, together, strict=True):
        (alone,) = decode.generate(lm(kind), [Request(text, id=done.id)], seed=3)
        assert alone == done


@pytest.mark.parametrize("kind", PROMPTS)
def test_answers_are_replayed_to_the_bit(kind, tmp_path):
    asked = decode.requests(PROMPTS[kind], Settings(top_k=2))
    done = decode.generate(lm(kind), asked, seed=0)
    manifest.write(tmp_path, lm(kind), asked, done, seed=0)
    _, _, read = manifest.read(tmp_path)
    assert read == done
    report = manifest.replay(tmp_path, lm(kind))
    assert report.identical
    assert str(report).endswith("answers, every number to the bit")


def test_a_piece_that_reads_as_a_number_is_a_text_in_a_replay(tmp_path):
    class Odd:
        def __getattr__(self, name):
            return getattr(words(), name)

        def piece(self, id):
            return "<mask>" if id == words().mask_id else "nan"

    odd = dataclasses.replace(lm("lm"), tokenizer=Odd())
    asked = decode.requests(["a <mask>"])
    manifest.write(tmp_path, odd, asked, decode.generate(odd, asked, seed=0), seed=0)
    assert manifest.replay(tmp_path, odd).identical


def test_a_soft_prompt_stands_before_a_text_as_before_an_example():
    whole = lm("lm")
    weight = np.random.default_rng(7).standard_normal((3, whole.config.width)).astype(np.float32)
    table = {**whole.params["embedding"], "prompt": {"weight": weight}}
    prompted = dataclasses.replace(whole, params={**whole.params, "embedding": table})
    (done,) = decode.fill(prompted, ["a <mask> sat"])
    size = whole.config.vocab_size
    assert done.prompt_tokens[:4] == (size, size + 1, size + 2, words().bos_id)
    assert done.prompt_tokens[done.places[0]] == words().mask_id
    (plain,) = decode.fill(whole, ["a <mask> sat"])
    assert done.label_logprobs != plain.label_logprobs


def test_entities_are_those_of_the_fields_own_script_for_all_tags():
    """As `conlleval` has it, by seqeval: every sequence of up to four tags over two types."""
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    for size in range(5):
        for tags in itertools.product(("O", "B-a", "I-a", "B-b", "I-b"), repeat=size):
            expected = [(kind, i, j + 1) for kind, i, j in seqeval.get_entities(list(tags))]
            assert decode.entities(tags) == expected
    assert decode.entities(["B-per", "I-per", "O", "I-loc"]) == [("per", 0, 2), ("loc", 3, 4)]


def test_only_the_request_that_cannot_be_followed_fails_when_others_stand_beside_it():
    asked = decode.requests(["a <mask>", "no hole"])
    first, second = decode.generate(lm("lm"), asked, seed=0, strict=False)
    assert first.finish_reason == "stop" and second.finish_reason == "failed"
    assert second.error.startswith("request 1 has no <mask>, and")
    assert answers.lines("lm", "no hole", second) == [("failed", "no hole")]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classify(["cat " * 61]), "request 0 has a text of .*, and the context window of 47 must hold"),
        (lambda: decode.tag(lm("token"), ["a", LONG]), "request 1 has a text of .*, and the context window of 47"),
        (lambda: classify([""]), "request 0 has an empty prompt; give it text"),
        (lambda: classify([[5, 911]]), "request 0 has token id 911; this model's are 0 to 323"),
        (lambda: classify(["a"], batch_size=0), "batch_size is 0; it must be a whole number"),
        (lambda: decode.generate(lm("token"), [[5]], seed=0), "request 0 has token ids, and tags are of words; give"),
        (lambda: decode.fill(lm("lm"), ["a cat"]), "request 0 has no <mask>, and the model says what is behind one"),
        (lambda: decode.fill(hollow(Head(), tiny.words()), ["<mask>"]), "the tokenizer of this model has no mask"),
        (lambda: decode.tag(lm("lm"), ["a"]), "head 'lm'; to tag words an 'encoder_only' with head 'token' is"),
        (lambda: decode.classify(writer(), ["a"]), "family 'decoder_only' and head 'lm'; to classify"),
        (lambda: decode.generate(hollow(Head("none")), ["a"], seed=0), "this model has head 'none', which says"),
        (lambda: next(decode.stream(lm("lm"), "a", seed=0)), "labels texts and fills masks at once: it is no helper"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_told_in_one_line(call, message):
    with pytest.raises(errors.BadInput, match=message):
        call()


def test_settings_that_only_a_writer_heeds_are_told():
    settings = [Settings(temperature=0, top_k=3), Settings(top_p=0.5, top_k=3), Settings(top_p=0.5)]
    assert rules.notes(lm("lm"), settings) == [
        "top_p is 0.5, and an encoder does not write; of settings it heeds top_k alone"
    ]


def test_weights_that_are_not_numbers_are_told():
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), lm("sequence").params)
    with pytest.raises(errors.BadInput, match="request 0: the logits are not numbers; the weights"):
        decode.classify(dataclasses.replace(lm("sequence"), params=broken), ["a cat"])


def test_a_table_shows_labels_entities_and_masks():
    done = decode.Completion(
        "x", 0, (), (1, 2), "B-moon I-moon", "stop", (0.0, 0.0), (0.0, 0.0), (1.0, 1.0),
        places=(1, 2), labels=(("B-moon", "O"), ("I-moon", "O")),
        label_logprobs=((math.log(0.75), math.log(0.25)),) * 2,
    )  # fmt: skip
    assert answers.lines("token", "Ganymede III shines"[:12], done) == [
        ("entities", "moon: Ganymede III (words 1 to 2)"),
        ("B-moon", "Ganymede  B-moon 75.0%  O 25.0%"),
        ("I-moon", "III  I-moon 75.0%  O 25.0%"),
    ]
    assert answers.lines("lm", "", done)[1] == ("mask 1", "B-moon 75.0%  O 25.0%")
    assert answers.lines("sequence", "a", done) == [("B-moon I-moon", "a\nB-moon 75.0%  O 25.0%")]
    assert answers.likely(tuple("abcdefghijklm"), (0.0,) * 13).endswith("l 100.0%  …")
