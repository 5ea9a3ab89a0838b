"""How do the tasks of EleutherAI's lm-eval run on a model of ours? `model(lm)` is what its `simple_evaluate` takes.

The conventions are lm-eval's: what is longer than the window loses its beginning, which is counted and said; a text
without context stands behind a begin token; an encoder-decoder's continuation is its target, without an end.
"""

import collections
import dataclasses
import hashlib
import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

import decode
from decode import batch
from model import LM, errors, tokenizer
from train import few_shot, scoring
from train.scoring import Pair

INSTALL = "pip install 'ganymede[harness]'"
NEW_TOKENS = 256  # what a task that says nothing else may write; at most half of the window
NAMES_OF_ROOM = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Adapter:
    """Answers the requests of `lm_eval.api.model.LM`; results are in the order of the requests.

    Attributes:
        shortened: contexts that lost their beginning so far.
    """

    def __init__(self, lm: LM, rows: int = batch.BATCH_SIZE) -> None:
        super().__init__()
        self.reader = scoring.Reader(lm, rows)
        self.shortened = 0

    @property
    def tokenizer_name(self) -> str:
        """What names the tokenizer in lm-eval's caches."""
        return self.reader.lm.words.digest

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind its context, and whether greedy decoding would write it."""
        asked = [request.args for request in requests]
        pairs = [scoring.pairs(self.reader.lm, given, [text])[0] for given, text in asked]
        found = self.reader.likelihoods([self._fitted(pair) for pair in pairs])
        return [(each.logprob, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Log-probability of each whole text: every token once, behind as many before it as the window holds.

        The windows are lm-eval's `get_rolling_token_windows` with one token of context.
        """
        lm, utils = self.reader.lm, _library("lm_eval.utils")
        if lm.config.family == "encoder_decoder":
            raise errors.BadInput(
                "the model is an encoder_decoder, which predicts no text on its own, and this task of lm-eval asks for "
                "whole texts; take a task with continuations"
            )
        virtual, window = self._virtual, lm.config.context_length - len(self._virtual)
        pairs, counts = [], []
        for ids in lm.words.encode_batch([request.args[0] for request in requests]):
            begin = scoring.begin_id(lm.words)
            windows = utils.get_rolling_token_windows(ids, begin, window, 1)
            parts = [utils.make_disjoint_window(part) for part in windows]
            pairs += [Pair((*virtual, *context), (*text,)) for context, text in parts]
            counts.append(len(parts))
        found = iter(self.reader.likelihoods(pairs))
        return [sum(next(found).logprob for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """What the model writes behind each context, up to a stop text."""
        lm = self.reader.lm
        asked, seen = [], collections.Counter[str]()
        for request in requests:
            context, options = request.args
            wanted = self._settings(options)
            ids = tokenizer.prompt_ids(lm.words, context) or [scoring.begin_id(lm.words)]
            shared = lm.config.family != "encoder_decoder"
            room = lm.config.context_length - len(self._virtual) - wanted.max_new_tokens * shared
            self.shortened += len(ids) > room
            # Noise goes by what is asked, and not by where it stands: the order of requests changes nothing.
            said = json.dumps([context, options], sort_keys=True, default=str)
            name = hashlib.sha256(said.encode()).hexdigest()[:16]
            seen[name] += 1
            asked.append(decode.Request(ids[-room:], wanted, id=f"{name}-{seen[name]}"))
        done = decode.generate(lm, asked, seed=0, batch_size=self.reader.rows)
        return [completion.text for completion in done]

    @property
    def _virtual(self) -> tuple[int, ...]:
        lm = self.reader.lm
        return tuple(lm.config.vocab_size + i for i in range(lm.virtual_tokens))

    def _fitted(self, pair: Pair) -> Pair:
        """The pair, without the beginning of a context that the window has no room for."""
        config, virtual = self.reader.lm.config, self._virtual
        room = config.context_length
        if config.family != "encoder_decoder":
            room += 1 - len(pair.continuation)  # the last token is predicted, and never read
        if len(pair.context) <= room:
            return pair
        if room <= len(virtual):
            raise errors.BadInput(
                f"a continuation has {len(pair.continuation)} tokens, and the window holds {config.context_length}; "
                "take a model with a longer window"
            )
        self.shortened += 1
        return Pair(
            (*virtual, *pair.context[len(pair.context) - room + len(virtual) :]), pair.continuation
        )

    def _settings(self, options: Mapping[str, Any]) -> decode.Settings:
        """The settings of a task's `generation_kwargs`: greedy unless it draws."""
        left = dict(options)
        window = self.reader.lm.config.context_length
        rooms = [value for name in NAMES_OF_ROOM if (value := left.pop(name, None)) is not None]
        room = int((*rooms, min(NEW_TOKENS, window // 2))[0])
        if not 0 < room < window:
            raise errors.BadInput(
                f"a task of lm-eval asks for {room} new tokens, and the window holds {window}; set max_gen_toks in its "
                "generation_kwargs"
            )
        stop = left.pop("until", None) or ()
        warmth = float(left.pop("temperature", 0.0))
        drawn = left.pop("do_sample", warmth > 0)
        known = [field.name for field in dataclasses.fields(decode.Settings)]
        for name in left:
            if name not in known:
                raise errors.BadInput(
                    f"a task of lm-eval has {name}={left[name]!r} in generation_kwargs{errors.nearest(name, known)}, "
                    "which decoding does not have; leave it out"
                )
        temperature = (warmth or 1.0) if drawn else 0.0
        return decode.Settings(temperature=temperature, max_new_tokens=room, stop=stop, **left)


def model(lm: LM, rows: int = batch.BATCH_SIZE) -> Any:
    """The model as lm-eval takes it: an `lm_eval.api.model.LM`."""
    base = _library("lm_eval.api.model").LM
    return type("Model", (Adapter, base), {"__doc__": Adapter.__doc__})(lm, rows)


def run(
    lm: LM,
    tasks: Sequence[str],
    shot_counts: Sequence[int] = (),
    workdir: pathlib.Path | None = None,
    *,
    include: str | None = None,
    limit: int | None = None,
    rows: int = batch.BATCH_SIZE,
) -> int:
    """Runs tasks of lm-eval, prints its table for each number of shots, and writes what it found.

    Args:
        tasks: names; `include` is a directory with tasks of one's own beside lm-eval's.
        shot_counts: without any, each task has its own.
    """
    evaluator, utils = _library("lm_eval"), _library("lm_eval.utils")
    if include is not None and not pathlib.Path(include).is_dir():
        raise errors.BadInput(f"--include_path={include} is no directory; give one with YAML tasks")
    manager = _library("lm_eval.tasks").TaskManager(include_path=include)
    for name in tasks:
        if not manager.match_tasks([name]):
            raise errors.BadInput(
                f"lm-eval has no task {name!r}{errors.nearest(name, manager.all_tasks)}; tasks of your own are found "
                "with --include_path=DIRECTORY"
            )
    adapter, files = model(lm, rows), {}
    console = Console(highlight=False)
    counts: Sequence[int | None] = shot_counts or [None]
    for count in counts:
        found = evaluator.simple_evaluate(
            model=adapter,
            tasks=list(tasks),
            num_fewshot=count,
            limit=limit,
            task_manager=manager,
            torch_random_seed=None,
        )
        at = "" if count is None else f"shots-{count}/"
        samples = (
            {"task": name, **sample} for name, each in found["samples"].items() for sample in each
        )
        files[f"{at}predictions.jsonl"] = "".join(_json(sample) + "\n" for sample in samples)
        numbers = {name: found[name] for name in ("results", "n-shot", "versions", "configs")}
        files[f"{at}metrics.json"] = _json(numbers, indent=2) + "\n"
        print(utils.make_table(found))
    if adapter.shortened:
        console.print(
            f"{adapter.shortened:,} contexts lost their beginning: the window holds {lm.config.context_length} tokens",
            soft_wrap=True,
        )
    asked = {"lm_eval": list(tasks), "shots": list(shot_counts), "limit": limit}
    home = few_shot.home(lm, workdir, "lm-eval", asked)
    few_shot.write(home, files, {**asked, "model": few_shot.identity(lm)})
    console.print(f"wrote {home}", markup=False, soft_wrap=True)
    return 0


def _json(values: Any, **how: Any) -> str:
    return json.dumps(values, ensure_ascii=False, default=str, **how)


def _library(name: str) -> Any:
    """lm-eval, which takes seconds to import and need not be there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.BadInput(
            f"tasks of lm-eval need {name.split('.')[0]}, which is not installed; {INSTALL}"
        ) from error
