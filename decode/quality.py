"""How good are completions, and how sure is that? Measures with the value that they have without each prompt.

A measure of a set of prompts has an interval by the jackknife over prompts (Quenouille 1956, Tukey 1958): the
values without each prompt say how much each one moves it. Of a mean it is the interval of Student's t. Two arms
with the same prompts are compared by the jackknife of the difference, which is the paired t interval.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import scipy.special  # type: ignore[import-untyped]

from decode.requests import Completion

try:
    from sacrebleu import metrics as sacrebleu
except ImportError:
    sacrebleu = None  # type: ignore[assignment]

REPEATED = 4  # tokens of the n-grams that `repetition` counts
MOST = 100  # completions that self-BLEU compares with each other: its cost grows with the square
LEVEL = 0.95

Groups = Sequence[Sequence[Completion]]
References = Mapping[str | int, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value over N prompts, and the same without each one: `without_N[i]` is the value without prompt i."""

    value: float
    without_N: np.ndarray

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.without_N - other.without_N)

    def half_width(self, level: float = LEVEL) -> float | None:
        """Half of the confidence interval around the value; None where the prompts do not say.

        Prompt i's pseudo-value is p_i = N x - (N - 1) x_(i); the half width is t sqrt(var(p) / N), with N - 1 degrees
        of freedom.
        """
        count = len(self.without_N)
        if count < 2 or not np.isfinite([self.value, *self.without_N]).all():
            return None
        pseudo_N = count * self.value - (count - 1) * self.without_N
        t = float(scipy.special.stdtrit(count - 1, 0.5 + level / 2))
        return t * float(np.sqrt(pseudo_N.var(ddof=1) / count))


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured: `label` heads its column, `title` says it in full, `digits` behind the point are shown."""

    label: str
    title: str
    digits: int
    of: Callable[[Groups], Estimate | None]


@dataclasses.dataclass(frozen=True)
class Task:
    """A measure against references: those of the prompt of each completion."""

    label: str
    title: str
    digits: int
    of: Callable[[Groups, References], Estimate | None]


def measure(
    completions: Iterable[Completion], references: References | None = None
) -> dict[str, Estimate | None]:
    """Every measure of completions, and every task metric of those whose prompts have references.

    None where there is nothing to measure: no likelihood record, no references, or no library for it.
    """
    groups = by_prompt(completions)
    found = {name: each.of(groups) for name, each in MEASURES.items()}
    judged = [group for group in groups if group[0].id in (references or {})]
    for name, task in TASKS.items():
        found[name] = task.of(judged, references) if judged and references else None
    return found


def by_prompt(completions: Iterable[Completion]) -> list[list[Completion]]:
    """The samples of each prompt together."""
    groups: dict[str | int, list[Completion]] = collections.defaultdict(list)
    for done in completions:
        groups[done.id].append(done)
    return list(groups.values())


def logprob(groups: Groups) -> Estimate | None:
    """The model's log-probability per token: the sum over all tokens divided by their number."""
    return _per_token(groups, lambda done: done.logprobs)


def perplexity(groups: Groups) -> Estimate | None:
    """exp(-log-probability per token): how many equally likely tokens the model would be as surprised by."""
    mean = logprob(groups)
    if mean is None:
        return None
    with np.errstate(over="ignore"):
        return Estimate(float(np.exp(-mean.value)), np.exp(-mean.without_N))


def distinct(groups: Groups, n: int) -> Estimate | None:
    """Distinct-n: different n-grams of tokens in all completions, divided by how many n-grams there are.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models". It falls as there is
    more text, so only sets of the same size compare.
    """
    counts = [
        collections.Counter(gram for done in group for gram in ngrams(done.tokens, n))
        for group in groups
    ]
    total = sum(counts, collections.Counter())
    # Without a prompt, the n-grams that occur nowhere else are gone.
    own_N = [sum(total[gram] == count for gram, count in each.items()) for each in counts]
    return _without(len(total), total.total(), own_N, [each.total() for each in counts])


def repetition(groups: Groups, n: int = REPEATED) -> Estimate | None:
    """Seq-rep-n: 1 - different n-grams / n-grams of a completion, the mean of those that have n tokens.

    Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", equation 8.
    """
    return _mean(
        groups,
        lambda done: (
            1 - len(set(grams)) / len(grams) if (grams := ngrams(done.tokens, n)) else None
        ),
    )


def tokens(groups: Groups) -> Estimate | None:
    """Tokens in a completion, an end token among them."""
    return _mean(groups, lambda done: len(done.tokens))


def stopped(groups: Groups) -> Estimate | None:
    """The share of completions that ended by themselves, before the cap."""
    return _mean(groups, lambda done: float(done.finish_reason == "stop"))


def self_bleu(groups: Groups) -> Estimate | None:
    """Self-BLEU, 0 to 100: each completion's BLEU-4 with all other completions as references; high is uniform.

    Zhu et al. 2018, "Texygen". sacrebleu's sentence BLEU: its 13a words, exponential smoothing, effective order. Of
    more than `MOST` completions, so many at equal distances are compared. The interval takes their scores as given.
    """
    every = [done for group in groups for done in group]
    chosen = every[:: -(-len(every) // MOST)] if every else []
    if sacrebleu is None or len(chosen) < 2:
        return None
    bleu = sacrebleu.BLEU(effective_order=True)
    texts = [done.text for done in chosen]
    scores = {
        id(done): bleu.sentence_score(done.text, texts[:i] + texts[i + 1 :]).score
        for i, done in enumerate(chosen)
    }
    return _mean(groups, lambda done: scores.get(id(done)))


def entropy(groups: Groups) -> Estimate | None:
    """Of the model's distribution at each token, in nats, before temperature and filters."""
    return _per_token(groups, lambda done: done.entropies)


def kept_mass(groups: Groups) -> Estimate | None:
    """The probability of the tokens that the filters keep, per token."""
    return _per_token(groups, lambda done: done.kept_masses)


def kept_count(groups: Groups) -> Estimate | None:
    """How many tokens the filters keep, per token."""
    return _per_token(groups, lambda done: done.kept_counts)


def exact_match(groups: Groups, references: References) -> Estimate | None:
    """The share of completions that are one of their references, blanks around them aside."""
    return _mean(
        groups,
        lambda done: float(done.text.strip() in {text.strip() for text in references[done.id]}),
    )


def chrf(groups: Groups, references: References) -> Estimate | None:
    """The mean of the completions' chrF2, 0 to 100, by sacrebleu (Popović 2015): overlap of letters' n-grams."""
    if sacrebleu is None:
        return None
    metric = sacrebleu.CHRF()
    return _mean(
        groups, lambda done: metric.sentence_score(done.text, list(references[done.id])).score
    )


def bleu(groups: Groups, references: References) -> Estimate | None:
    """Corpus BLEU-4, 0 to 100, by sacrebleu (Papineni et al. 2002, Post 2018), of all completions together."""
    if sacrebleu is None:
        return None
    metric = sacrebleu.BLEU(effective_order=True)
    rows_NC = []
    for group in groups:
        scores = [metric.sentence_score(d.text, list(references[d.id])) for d in group]
        rows_NC.append(
            np.sum([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], axis=0)
        )
    total_C = np.sum(rows_NC, axis=0)

    def score(counts_C: np.ndarray) -> float:
        numbers = [int(count) for count in counts_C]
        order = (len(numbers) - 2) // 2
        return sacrebleu.BLEU.compute_bleu(
            correct=numbers[:order],
            total=numbers[order:-2],
            sys_len=numbers[-2],
            ref_len=numbers[-1],
            smooth_method="exp",
        ).score

    return Estimate(score(total_C), np.array([score(total_C - row_C) for row_C in rows_NC]))


def mean(values: Sequence[float]) -> Estimate | None:
    """Of independent numbers, such as a loss per seed; its interval is that of Student's t."""
    return _without(math.fsum(values), len(values), values, [1] * len(values))


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """The runs of n tokens, in order."""
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def _per_token(
    groups: Groups, numbers: Callable[[Completion], Sequence[float] | None]
) -> Estimate | None:
    """The mean of a number that each token has; None if a completion lacks it."""
    lists = [[numbers(done) for done in group] for group in groups]
    if any(each is None for group in lists for each in group):
        return None
    sums = [math.fsum(x for each in group for x in each or ()) for group in lists]
    counts = [sum(len(each or ()) for each in group) for group in lists]
    return _without(math.fsum(sums), sum(counts), sums, counts)


def _mean(groups: Groups, number: Callable[[Completion], float | None]) -> Estimate | None:
    """The mean of a number that each completion has; those where it is None do not count."""
    lists = [[x for done in group if (x := number(done)) is not None] for group in groups]
    sums, counts = [math.fsum(group) for group in lists], [len(group) for group in lists]
    return _without(math.fsum(sums), sum(counts), sums, counts)


def _without(
    total: float, count: float, own: Sequence[float], counts: Sequence[float]
) -> Estimate | None:
    """total / count, and without each prompt's own part of both."""
    if not count:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        rest_N = (total - np.array(own, float)) / (count - np.array(counts, float))
    return Estimate(total / count, rest_N)


MEASURES: dict[str, Measure] = {
    "logprob": Measure("log-prob", "log-probability (nats/token)", 3, logprob),
    "perplexity": Measure("perplexity", "perplexity", 2, perplexity),
    **{
        f"distinct_{n}": Measure(f"dist-{n}", f"distinct-{n}", 3, functools.partial(distinct, n=n))
        for n in (1, 2, 3)
    },
    "repetition": Measure(f"rep-{REPEATED}", f"repeated {REPEATED}-grams", 3, repetition),
    "tokens": Measure("tokens", "tokens per completion", 1, tokens),
    "stopped": Measure("stopped", "share that stopped", 3, stopped),
    "self_bleu": Measure("self-BLEU", "self-BLEU", 1, self_bleu),
    "entropy": Measure("entropy", "entropy (nats/token)", 3, entropy),
    "kept_mass": Measure("kept mass", "probability mass kept", 3, kept_mass),
    "kept_count": Measure("kept", "tokens kept", 1, kept_count),
}
TASKS: dict[str, Task] = {
    "exact_match": Task("exact", "exact match", 3, exact_match),
    "chrf": Task("chrF", "chrF", 1, chrf),
    "bleu": Task("BLEU", "BLEU", 1, bleu),
}
COLUMNS: dict[str, Measure | Task] = {**MEASURES, **TASKS}
