"""How good are predictions, by the field's own measures? Each gives a value, and the counts that it is made from.

A measure turns (predictions, references) into counts per example; the value of any set of examples is a function of
their counts' sum. So BLEU and F1 of the corpus can be resampled (train/bootstrap.py) without reading a text again.
Shares are in per cent. The letters of `counts_NKC` are those of train/bootstrap.py.
"""

import dataclasses
import functools
import importlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from model import errors
from train.bootstrap import Scores

Value = Callable[[np.ndarray], np.ndarray]
INSTALL = 'pip install "ganymede[metrics]"'
SHOWN = 60  # letters of what a message repeats
ANSWER = re.compile(r"#### (-?[0-9.,]+)")
TAG = re.compile(r"O|[BIES]-.+")
REFERENCE, PREDICTED, CORRECT = range(3)  # the parts of what an F1 is made from


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is measured: `title` says it with its unit; `of(predictions, references, **options)` measures."""

    title: str
    of: Callable[..., Scores]


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """The share of predictions that equal their reference."""
    _aligned(predictions, references)
    return _share(references, [p == r for p, r in zip(predictions, references, strict=True)])


def token_accuracy(
    predictions: Sequence[Sequence[Any]], references: Sequence[Sequence[Any]]
) -> Scores:
    """The share of tokens whose tag equals that of the reference; as many of both in each example."""
    _aligned(predictions, references)
    pairs = zip(predictions, references, strict=True)
    right = [100.0 * sum(p == r for p, r in zip(*pair, strict=True)) for pair in pairs]
    return _mean(references, right, [len(tags) for tags in references], lambda mean: mean)


def exact_match(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> Scores:
    """The share of texts that are one of their references, blanks around them aside (as in decode/quality.py)."""
    several = _several(predictions, references)
    return _share(
        references,
        [
            p.strip() in {text.strip() for text in texts}
            for p, texts in zip(predictions, several, strict=True)
        ],
    )


def number_match(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """GSM8K's exact match: the number behind the first `#### `, its commas removed, is that of the reference.

    Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems": as their grade_school_math does it, numbers
    compare as text, so 72.0 is not 72. A prediction without such a number is wrong; a reference without is refused.
    """
    _aligned(predictions, references)
    right = []
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if (wanted := final_number(reference)) is None:
            raise errors.BadInput(
                f"reference {i} ends {reference[-SHOWN:]!r}, without a number behind '#### '; give GSM8K's format"
            )
        right.append(final_number(prediction) == wanted)
    return _share(references, right)


def final_number(text: str) -> str | None:
    """The answer of a GSM8K text: `"#### 1,234"` gives `"1234"`; None if there is none."""
    found = ANSWER.search(text)
    return found.group(1).replace(",", "") if found else None


def macro_f1(
    predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[Any] = ()
) -> Scores:
    """The mean of the classes' F1, over those that occur in either; `labels` are classes that may occur.

    With all classes in `labels` or in both lists this is scikit-learn's `f1_score(average="macro")`.
    """
    _aligned(predictions, references)
    found = [([(p, p == r)], [r]) for p, r in zip(predictions, references, strict=True)]
    counts_NKC, classes = _counts(found, labels)

    def value(counts_KC: np.ndarray) -> np.ndarray:
        f1 = _f1(counts_KC)
        seen = ~np.isnan(f1)
        return np.where(seen, f1, 0).sum(-1) / np.maximum(seen.sum(-1), 1)

    return Scores(tuple(references), counts_NKC, classes, value, _table(counts_NKC, classes))


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    """F1 of entities, exact in bounds and type, all types together; `details["types"]` has each type's.

    Sang and De Meulder 2003 (CoNLL): entities as `conlleval` reads tags, by seqeval, so an I- that continues nothing
    begins an entity. Precision and recall of all are the row "all".
    """
    found = [
        ([(each[0], each in wanted) for each in tags], [each[0] for each in wanted])
        for tags, wanted in _tags(predictions, references)
    ]
    counts_NKC, types = _counts(found)
    return Scores(
        _frozen(references),
        counts_NKC,
        types,
        lambda counts_KC: _f1(counts_KC.sum(-1, keepdims=True))[..., 0],
        _table(counts_NKC, types),
    )


def surface_f1(
    predictions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    tokens: Sequence[Sequence[str]],
) -> Scores:
    """F1 over the different names: each (surface form, type) counts once, however often it occurs.

    Derczynski et al. 2017, "Results of the WNUT2017 Shared Task", second measure. A name is found if one of its
    occurrences is, in the right place. `tokens` are the words that the tags are of. A resample has fewer
    different names than the sample, so intervals of this measure are rough.
    """
    _aligned(tokens, references)
    found = []
    for (tags, wanted), words in zip(_tags(predictions, references), tokens, strict=True):
        name = {e: f"{' '.join(words[e[1] : e[2] + 1])} [{e[0]}]" for e in tags | wanted}
        found.append(([(name[e], e in wanted) for e in tags], [name[e] for e in wanted]))
    counts_NKC, names = _counts(found)
    return Scores(
        tuple(zip(_frozen(references), _frozen(tokens), strict=True)),
        counts_NKC,
        names,
        lambda counts_KC: _f1((counts_KC > 0).sum(-1, keepdims=True))[..., 0],
    )


def bleu(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    tokenize: str = "13a",
    lowercase: bool = False,
) -> Scores:
    """BLEU-4 of the corpus, by sacrebleu (Papineni et al. 2002, Post 2018); text in tokens takes `tokenize="none"`."""
    library = _library("sacrebleu.metrics")
    if tokenize not in library.BLEU.TOKENIZERS:
        raise errors.BadInput(
            f"tokenize is {tokenize!r}{errors.nearest(tokenize, library.BLEU.TOKENIZERS)}; "
            f"sacrebleu has: {', '.join(sorted(library.BLEU.TOKENIZERS))}"
        )
    # Forced: sacrebleu warns of text in tokens, which is what "none" is for.
    metric = library.BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    return _sacrebleu(metric, predictions, references)


def chrf(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    lowercase: bool = False,
) -> Scores:
    """chrF2 of the corpus, by sacrebleu (Popović 2015)."""
    metric = _library("sacrebleu.metrics").CHRF(lowercase=lowercase)
    return _sacrebleu(metric, predictions, references)


def rouge(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    kind: str = "rouge1",
) -> Scores:
    """F1 of ROUGE-1, -2 or -L with stemming, by rouge-score (Lin 2004); the mean over an example's references."""
    several = _several(predictions, references)
    scorer = _library("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=True)
    return _mean(
        references,
        [
            100 * math.fsum(scorer.score(text, p)[kind].fmeasure for text in texts) / len(texts)
            for p, texts in zip(predictions, several, strict=True)
        ],
        [1] * len(predictions),
        lambda mean: mean,
    )


def perplexity(nats: Sequence[float], counts: Sequence[int]) -> Scores:
    """exp(nats / counts): per token, or normalised by words, whatever is counted.

    `nats` are the negative log-likelihoods of the examples. Perplexities compare where the same things are counted.
    """
    return _mean(counts, nats, counts, np.exp)


def bits(nats: Sequence[float], counts: Sequence[int]) -> Scores:
    """nats / counts / log 2: bits per byte (or per character), which any two tokenizers share."""
    return _mean(counts, nats, counts, lambda mean: mean / math.log(2))


def loss(nats: Sequence[float], counts: Sequence[int]) -> Scores:
    """nats / counts, as it is."""
    return _mean(counts, nats, counts, lambda mean: mean)


def pass_at_k(correct: Sequence[int], samples: Sequence[int], k: int = 1) -> Scores:
    """The chance that one of k samples passes, unbiased from `correct` of n `samples` per task.

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1: 1 - C(n - c, k) / C(n, k).
    """
    _aligned(correct, samples)
    shares = []
    for i, (c, n) in enumerate(zip(correct, samples, strict=True)):
        if not 1 <= k <= n or not 0 <= c <= n:
            raise errors.BadInput(
                f"task {i} has {c} correct of {n} samples, and k is {k}; draw at least k samples of each task"
            )
        shares.append(100 * (1 - math.comb(n - c, k) / math.comb(n, k)))
    return _mean(samples, shares, [1] * len(shares), lambda mean: mean)


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy (%)", accuracy),
    "exact_match": Metric("exact match (%)", exact_match),
    "number_match": Metric("exact match of the number behind #### (%)", number_match),
    "macro_f1": Metric("mean F1 of the classes (%)", macro_f1),
    "entity_f1": Metric("F1 of entities (%)", entity_f1),
    "token_accuracy": Metric("tokens with the right tag (%)", token_accuracy),
    "surface_f1": Metric("F1 of different names (%)", surface_f1),
    "bleu": Metric("BLEU (0 to 100)", bleu),
    "chrf": Metric("chrF (0 to 100)", chrf),
    "rouge1": Metric("ROUGE-1 F1 (%)", functools.partial(rouge, kind="rouge1")),
    "rouge2": Metric("ROUGE-2 F1 (%)", functools.partial(rouge, kind="rouge2")),
    "rougeL": Metric("ROUGE-L F1 (%)", functools.partial(rouge, kind="rougeL")),
    "loss": Metric("nats per token", loss),
    "perplexity": Metric("perplexity per token", perplexity),
    "word_perplexity": Metric("perplexity per word", perplexity),
    "bits_per_byte": Metric("bits per byte", bits),
    "pass_at_k": Metric("pass@k (%)", pass_at_k),
}


def _aligned(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if not references or len(predictions) != len(references):
        raise errors.BadInput(
            f"there are {len(predictions)} predictions and {len(references)} references; "
            "give as many of each, and at least one"
        )


def _several(predictions: Sequence[str], references: Sequence[Any]) -> list[list[str]]:
    """The references of each example as a list."""
    _aligned(predictions, references)
    several = [[r] if isinstance(r, str) else list(r) for r in references]
    if not all(several):
        raise errors.BadInput(f"example {several.index([])} has no reference; give it one")
    return several


def _library(name: str) -> Any:
    """A package that only some measures need; seqeval and rouge-score take over a second to import."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.BadInput(
            f"this metric needs {name.split('.')[0]}, which is not installed; {INSTALL}"
        ) from error


def _mean(
    references: Sequence[Any], sums: Sequence[float], counts: Sequence[float], of: Value
) -> Scores:
    """`of` the quotient of two sums."""
    _aligned(sums, counts)
    if min(counts) < 0 or not sum(counts):
        raise errors.BadInput("what is divided by counts nothing; give examples with tokens")

    def value(counts_KC: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return of(counts_KC[..., 0, 0] / counts_KC[..., 1, 0])

    counts_NKC = np.stack([np.array(sums, float), np.array(counts, float)], axis=1)[..., None]
    return Scores(_frozen(references), counts_NKC, ("",), value)


def _share(references: Sequence[Any], right: Sequence[bool]) -> Scores:
    return _mean(references, [100.0 * each for each in right], [1] * len(right), lambda mean: mean)


def _frozen(references: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(r) if isinstance(r, list) else r for r in references)


def _sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[Any]) -> Scores:
    """What sacrebleu counts of each sentence, and its score of such counts: the two ends of its `corpus_score`."""
    several = _several(predictions, references)
    most = max(len(texts) for texts in several)
    streams = [[(*texts, *[None] * most)[i] for texts in several] for i in range(most)]
    rows = metric._extract_corpus_statistics(predictions, streams)

    def value(counts_KC: np.ndarray) -> np.ndarray:
        flat = counts_KC[..., 0].reshape(-1, counts_KC.shape[-2]).astype(int).tolist()
        scores = [metric._compute_score_from_stats(row).score for row in flat]
        return np.array(scores).reshape(counts_KC.shape[:-2])

    signature = f"{metric.get_signature()}"
    return Scores(
        _frozen(references),
        np.array(rows, float)[..., None],
        ("",),
        value,
        {"signature": signature},
    )


def _tags(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> list[tuple[set[tuple], set[tuple]]]:
    """The entities (type, first, last) of each example: predicted, and in the reference."""
    _aligned(predictions, references)
    found = []
    for i, (tags, wanted) in enumerate(zip(predictions, references, strict=True)):
        if len(tags) != len(wanted):
            raise errors.BadInput(
                f"example {i} has {len(tags)} predicted tags and {len(wanted)} in the reference; give one per token"
            )
        for tag in (*tags, *wanted):
            if not TAG.fullmatch(tag):
                raise errors.BadInput(
                    f"example {i} has the tag {tag!r}; tags are O, or B- or I- and a type"
                )
        found.append((entities(tags), entities(wanted)))
    return found


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities (type, first token, last token) that tags name, as `conlleval` reads them, by seqeval."""
    return set(_library("seqeval.metrics.sequence_labeling").get_entities(list(tags)))


def _counts(
    found: Sequence[tuple[Sequence[tuple[Any, bool]], Sequence[Any]]], classes: Sequence[Any] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Per example and class how many are in the reference, predicted, and correct.

    Each example is a list of (predicted class, whether it is correct), and the classes in its reference.
    """
    every = {each for _, wanted in found for each in wanted} | set(classes)
    every |= {each for predicted, _ in found for each, _ in predicted}
    column = {each: i for i, each in enumerate(sorted(every, key=str))}
    counts_NKC = np.zeros((len(found), 3, len(column)))
    for i, (predicted, wanted) in enumerate(found):
        for each, right in predicted:
            counts_NKC[i, PREDICTED, column[each]] += 1
            counts_NKC[i, CORRECT, column[each]] += right
        for each in wanted:
            counts_NKC[i, REFERENCE, column[each]] += 1
    return counts_NKC, tuple(str(each) for each in column)


def _f1(counts_KC: np.ndarray) -> np.ndarray:
    """Per class 2 correct / (predicted + reference) in per cent; not a number where both are none."""
    parts = np.moveaxis(counts_KC, -2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 200 * parts[CORRECT] / (parts[PREDICTED] + parts[REFERENCE])


def _table(counts_NKC: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and how many there are, of each class and of all."""
    rows = {}
    sums_KC = counts_NKC.sum(0)
    for name, (reference, predicted, correct) in [
        *zip(classes, sums_KC.T, strict=True),
        ("all", sums_KC.sum(-1)),
    ]:
        rows[name] = {
            "precision": 100 * correct / predicted if predicted else None,
            "recall": 100 * correct / reference if reference else None,
            "f1": 200 * correct / (predicted + reference) if predicted + reference else None,
            "references": int(reference),
            "predictions": int(predicted),
        }
    return {"types": rows}
