"""The command line: `python launch.py VERB [--config=FILE] [--config.group.key=value ...] [--flag=value ...]`.

A table of contents: each verb reads its flags and calls one function. Exit codes: 0 done; 1 a replay
that differs, or a check that fails; 2 bad input, told in one line on standard error; 128 + the signal when interrupted.
"""

# ruff: noqa: E402  the signal goes first
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run` answers it

import os
import sys

if any(word.lstrip("-").startswith("coordinator") for word in sys.argv):
    # Where JAX would print a stack trace when its coordinator is lost, train/distributed.py says it in a line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "4")

import errno
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

# What a disk or its owner may refuse; everything else of the operating system is a bug of ours.
_REFUSALS = {
    getattr(errno, n) for n in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR")
}
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a recipe, such as configs/quickstart.py", sys_argv=[]
)  # its own overrides can only name what the file spells out; `_config` makes them
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run's directory; what decode, import and export write goes there"
)
_FROM = flags.DEFINE_string("from", None, "the model: a run, a bundle, or a Hugging Face directory")
_PROMPT = flags.DEFINE_multi_string("prompt", None, "a prompt, or - for standard input; repeatable")
_PROMPTS = flags.DEFINE_string("prompts", None, "JSON lines with prompts; - is standard input")
_RAW = flags.DEFINE_bool("raw", False, "prompts as they are, not in the template of the run's task")
_SEED = flags.DEFINE_integer("seed", None, "the root of all randomness in decoding, by default 0")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ganymede", "xla"),
    "where compiled programs are kept for the next run; empty keeps none",
)
_DRAFT = flags.DEFINE_string("draft", None, "the model of --num_assistant_tokens")
_AMATEUR = flags.DEFINE_string("amateur", None, "the model of --contrastive_beta")
_ROWS = flags.DEFINE_integer("batch_size", 8, "rows that run at once; part of a run's arithmetic")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of several, or auto to ask the cluster"
)
_PROCESS = flags.DEFINE_integer("process_id", None, "which of several processes this is, from 0")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes train together")
_PATIENCE = flags.DEFINE_float(
    "coordinator_timeout", 300.0, "seconds that processes wait for each other to start"
)
_SILENCE = flags.DEFINE_float(
    "heartbeat_timeout", 60.0, "seconds of silence after which a process counts as dead"
)
_ALLOW = flags.DEFINE_list(
    "allow_change", [], "keys of the config that may differ when a run goes on"
)
_ARMS = flags.DEFINE_string(
    "arms", None, "a JSON list of settings objects, in place of a grid of flags"
)
_MESH = flags.DEFINE_string("mesh", None, "devices to plan for, such as data:8,fsdp:64,tensor:4")
_CHIP = flags.DEFINE_string("chip", None, "what these devices are, such as v5p or h100")
_BASELINE = flags.DEFINE_string("baseline", None, "the arm that others are compared with")
_COMPARE = flags.DEFINE_string("compare", None, "another run, or evaluation, of the same records")
_PROFILE = flags.DEFINE_string("profile", None, "START:COUNT traces so many steps for the profiler")
# Of prompts that are evaluated.
_SHOTS = flags.DEFINE_list("shots", None, "numbers of shots, such as 0,1,2,4; an arm for each")
_LIMIT = flags.DEFINE_integer("limit", None, "only so many questions, the first ones")
_LM_EVAL = flags.DEFINE_list("lm_eval", None, "tasks of lm-eval, by name")
_INCLUDE = flags.DEFINE_string("include_path", None, "a directory with more tasks of lm-eval")
# Of an embedding space.
_WORDS = flags.DEFINE_list("words", None, "words whose neighbours and places are shown")
_ANALOGY = flags.DEFINE_multi_string("analogy", None, "such as man:king::woman; repeatable")
_SIMILARITY = flags.DEFINE_multi_string(
    "similarity", None, "a file of word, word and people's score; repeatable"
)
_ANALOGIES = flags.DEFINE_multi_string(
    "analogies", None, "a file of four words a line, in sections; repeatable"
)
_SEVERAL = flags.DEFINE_string(
    "several", "mean", "what a word of several pieces is: their mean, or out"
)
_LOWER = flags.DEFINE_bool("lower_case", False, "these words, in lower case")
# Of sweeps over a config.
_ZIP = flags.DEFINE_bool("zip", False, "the keys of a sweep move together, instead of a product")
_CHAIN = flags.DEFINE_bool("chain", False, "one key after the other, the rest as the config has it")
_RANDOM = flags.DEFINE_integer("random", None, "so many draws; keys may be log:1e-4:1e-2")
_DRAWS = flags.DEFINE_integer("sweep_seed", 0, "of the draws of --random")
_SEEDS = flags.DEFINE_string("seeds", None, "how many seeds per setting, or a list of them")
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n trains every n-th arm from the i-th on, from 0")
_RETRY = flags.DEFINE_bool("retry", False, "train arms that failed again")
_REPORT = flags.DEFINE_bool("report", False, "train nothing; the table of what there is")
_UNEQUAL = flags.DEFINE_bool("allow_unequal_tokens", False, "compare arms of unequal token budgets")


def train_verb(overrides: Sequence[str]) -> int:
    """make tokenizer and data, train, evaluate; goes on where the workdir's run was stopped"""
    from model import errors
    from train import distributed, loop

    if _CONFIG.value is None:
        raise errors.BadInput(
            "train needs a recipe; add --config=configs/quickstart.py, or your own"
        )
    asked, directory = _recipe(overrides), _directory("workdir")
    with distributed.join(
        _COORDINATOR.value, _PROCESS.value, _PROCESSES.value, _PATIENCE.value, _SILENCE.value
    ) as peers:
        loop.run(asked, directory, peers, _ALLOW.value, _PROFILE.value)
    return 0


def decode_verb(overrides: Sequence[str]) -> int:
    """complete prompts, and write completions.jsonl and manifest.json"""
    import model
    from decode import manifest, options, prompts, rules
    from model import errors
    from train import recipe, terminal

    source, given = _directory("from"), options.values(_given())
    lm, seed = model.load(source), _SEED.value
    draft, amateur = _helpers()
    frame = None if _RAW.value or lm.tokenizer is None else recipe.frame_of(source, lm.tokenizer)
    named = prompts.asked(_PROMPT.value, _PROMPTS.value, given, lm.tokenizer, frame)
    if not named:
        asked = recipe.of_run(source) if _CONFIG.value is None else _recipe(overrides)
        if not asked.decode.prompts:
            raise errors.BadInput(
                "config.decode.prompts is empty, so nothing is asked; add --prompt=TEXT"
            )
        named = [(name, request) for name, _, request in asked.requests(lm.words, given)]
        seed = asked.decode.seed if seed is None else seed
    for note in rules.notes(lm, [request.settings for _, request in named]):
        print(f"note: {note}", file=sys.stderr)
    others: dict[str, Any] = dict(draft=draft, amateur=amateur, batch_size=_ROWS.value)
    requests, completions = terminal.complete(lm, named, seed := seed or 0, **others)
    name = manifest.name(requests, seed, draft, amateur)
    workdir = pathlib.Path(_WORKDIR.value or manifest.home(source) / "decode" / name)
    manifest.write(
        workdir,
        lm,
        requests,
        completions,
        seed=seed,
        prompts=_PROMPTS.value,
        **others,
    )
    print(f"wrote {workdir}/completions.jsonl and {workdir}/manifest.json")
    failed = dict.fromkeys(done.error for done in completions if done.error)
    for error in failed:
        print(f"ganymede: {error}", file=sys.stderr)
    return 2 if failed else 0


def sweep_verb(overrides: Sequence[str]) -> int:
    """train a config, or decode prompts, under every combination of values; a table and pictures"""
    if _CONFIG.value is not None:
        return _training_sweep(overrides)
    import model
    from decode import grid, sweep
    from model import errors
    from train import heatmap

    source, arms = _directory("from"), grid.arms(_given(), _ARMS.value)
    if not _PROMPTS.value:
        raise errors.BadInput("sweep needs prompts; add --prompts=FILE.jsonl")
    lm, seed = model.load(source), _SEED.value or 0
    draft, amateur = _helpers()
    asked = sweep.read(_PROMPTS.value, lm.tokenizer)
    workdir = pathlib.Path(_WORKDIR.value or sweep.home(source, asked, arms, seed))
    helpers: dict[str, Any] = dict(draft=draft, amateur=amateur, baseline=_BASELINE.value)
    outcome = sweep.run(lm, asked, arms, workdir, seed=seed, **helpers)
    if outcome.numbers["measures"]:
        print(f"picture: {heatmap.draw(outcome.numbers, workdir)}")
    return outcome.code


def _training_sweep(overrides: Sequence[str]) -> int:
    """What `sweep` does with a config: a `train` process per arm, in turn."""
    import jax

    from train import standings, trials

    jax.config.update("jax_platforms", "cpu")  # an accelerator's memory is the arms'
    way = trials.way(zip=_ZIP.value, chain=_CHAIN.value, random=_RANDOM.value is not None)
    draws: dict[str, Any] = dict(draws=_RANDOM.value or 0, sweep_seed=_DRAWS.value)
    more: dict[str, Any] = dict(seeds=_SEEDS.value, unequal=_UNEQUAL.value)
    asked = trials.arms(_CONFIG.value.to_dict(), overrides, way=way, **draws, **more)
    train = [sys.executable, os.path.abspath(__file__), "train"]
    train.append(f"--compilation_cache={_CACHE.value}")
    how: dict[str, Any] = dict(shard=_SHARD.value, retry=_RETRY.value, only_report=_REPORT.value)
    return standings.run(asked, _directory("workdir"), train, **how)


def eval_verb(overrides: Sequence[str]) -> int:
    """measure a run's model on its held-out text and on the records of its task; or any model by prompts"""
    if any(flag.present for flag in (_LM_EVAL, _SHOTS, _CONFIG)):
        return _prompted(overrides)
    from train import task_eval

    return task_eval.run(_directory("from"), overrides, _WORKDIR.value, _COMPARE.value)


def _prompted(overrides: Sequence[str]) -> int:
    """What `eval` does with prompts: ours, of a config, or those of lm-eval's tasks."""
    import model
    from model import errors
    from train import few_shot, harness

    tasks, shots = _LM_EVAL.value, few_shot.counts(_SHOTS.value or ())
    workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
    more: dict[str, Any] = dict(limit=_LIMIT.value, rows=_ROWS.value)
    if (tasks is None) == (_CONFIG.value is None or "prompt" not in _CONFIG.value):
        raise errors.BadInput(
            "eval needs --config=FILE with a group prompt, or --lm_eval=TASKS, one of them; --shots alone asks nothing"
        )
    lm = model.load(_directory("from"))
    if tasks is not None:
        return harness.run(lm, tasks, shots, workdir, include=_INCLUDE.value, **more)
    return few_shot.run(_config(overrides), lm, shots or [0], workdir, **more)


def inspect_verb(overrides: Sequence[str]) -> int:
    """draw a run's loss curve, embedding space, attention maps and next-token distributions"""
    from decode import options
    from train import report, word_tests

    files: dict[str, Any] = dict(
        similarity=_SIMILARITY.value or (), analogy_files=_ANALOGIES.value or ()
    )
    how: dict[str, Any] = dict(several=_SEVERAL.value, lower_case=_LOWER.value)
    asked = word_tests.read(_WORDS.value or (), _ANALOGY.value or (), **files, **how)
    return report.run(_directory("from"), _PROMPT.value, options.values(_given()), asked)


def replay_verb(overrides: Sequence[str]) -> int:
    """repeat a decoding run from its manifest: identical, or where it first differs"""
    from decode import manifest

    report = manifest.replay(_directory("workdir"))
    print(report)
    return 0 if report.identical else 1


def import_verb(overrides: Sequence[str]) -> int:
    """turn a Hugging Face directory into a bundle"""
    from model import bundle

    print(bundle.import_(_directory("from"), _directory("workdir")))
    return 0


def export_verb(overrides: Sequence[str]) -> int:
    """turn a run or a bundle into a Hugging Face directory"""
    from model import bundle

    print(bundle.export(_directory("from"), _directory("workdir")))
    return 0


def plan_verb(overrides: Sequence[str]) -> int:
    """what a config would cost: parameters, bytes, operations; on a mesh that need not be there, each device's share"""
    from model import errors
    from train import plan

    if _CONFIG.value is None:
        raise errors.BadInput("plan needs a config; add --config=configs/preset.py:gpt2-124m")
    return plan.run(_config(overrides), _MESH.value, _CHIP.value)


def check_verb(overrides: Sequence[str]) -> int:
    """test a config's own model, text and optimiser for what goes wrong silently"""
    from model import errors
    from train import check

    if _CONFIG.value is None:
        raise errors.BadInput(
            "check needs a recipe; add --config=configs/quickstart.py, or your own"
        )
    return check.run(_recipe(overrides))


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_verb,
    "decode": decode_verb,
    "sweep": sweep_verb,
    "eval": eval_verb,
    "inspect": inspect_verb,
    "replay": replay_verb,
    "import": import_verb,
    "export": export_verb,
    "plan": plan_verb,
    "check": check_verb,
}


def run(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        from model import errors
        from train import commandline

        logging.set_verbosity(logging.ERROR)
        try:
            app.run(main, argv, flags_parser=lambda words: commandline.parse(words, VERBS))
        except errors.BadInput as error:
            _fail(str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        _fail(
            f"{error.filename or 'the disk'}: {error.strerror}; choose another directory, or make room"
        )


def _interrupted(signum: int, frame: Any) -> None:
    """Ends at once: every file is whole or absent at any moment, and an exception could surface anywhere."""
    os.write(2, b"\nganymede: interrupted; run the same command again\n")
    os._exit(128 + signum)


def main(argv: Sequence[str]) -> int:
    """Calls the verb."""
    import jax

    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    code = VERBS[argv[1]](argv[2:])
    sys.stdout.flush()
    return code


def _config(overrides: Sequence[str]) -> dict[str, Any]:
    """The groups of the config file with `--config.group.key=value` put in; keys are checked by the recipe."""
    from train import overrides as config_overrides

    return config_overrides.apply(_CONFIG.value.to_dict(), overrides)


def _recipe(overrides: Sequence[str]) -> Any:
    """The recipe of the config file."""
    from train import recipe

    return recipe.from_config(_config(overrides))


def _given() -> dict[str, list[str]]:
    """The texts of the settings that were given as flags."""
    from decode import options

    return {
        name: list(flags.FLAGS[name].value or ())
        for name in options.NAMES
        if flags.FLAGS[name].present
    }


def _helpers() -> Any:
    """The draft and the amateur model, None where none is given."""
    import model

    return (model.load(f.value) if f.value else None for f in (_DRAFT, _AMATEUR))


def _directory(flag: str) -> pathlib.Path:
    from model import errors

    value = flags.FLAGS[flag].value
    if not value:
        raise errors.BadInput(f"this verb needs a directory; add --{flag}=runs/NAME")
    return pathlib.Path(value)


def _fail(message: str) -> None:
    print(f"ganymede: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
