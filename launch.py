"""The command line: `python launch.py VERB [--config=FILE] [--config.group.key=value ...] [--flag=value ...]`.

A table of contents: each verb reads its flags and calls one function. Exit codes: 0 done; 1 a replay
that differs; 2 bad input, told in one line on standard error; 128 + the signal when interrupted.
"""

# ruff: noqa: E402  the signal goes first
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run` answers it

import errno
import os
import pathlib
import re
import sys
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
_SEED = flags.DEFINE_integer("seed", None, "the root of all randomness in decoding, by default 0")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ganymede", "xla"),
    "where compiled programs are kept for the next run; empty keeps none",
)
_DRAFT = flags.DEFINE_string("draft", None, "the model of --num_assistant_tokens")
_AMATEUR = flags.DEFINE_string("amateur", None, "the model of --contrastive_beta")
_ROWS = flags.DEFINE_integer("batch_size", 8, "rows that run at once; part of a run's arithmetic")
_ARMS = flags.DEFINE_string(
    "arms", None, "a JSON list of settings objects, in place of a grid of flags"
)
_BASELINE = flags.DEFINE_string("baseline", None, "the arm that others are compared with")
_PROFILE = flags.DEFINE_string("profile", None, "START:COUNT traces so many steps for the profiler")
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

# Which flags a verb reads; one that it would ignore is refused. Some read a flag for each setting as well.
_SETTINGS = ("decode", "inspect", "sweep")
_READS: dict[str, tuple[str, ...]] = {
    "train": ("config", "workdir", "profile"),
    "decode": (
        "from",
        "workdir",
        "config",
        "prompt",
        "prompts",
        "seed",
        "draft",
        "amateur",
        "batch_size",
    ),
    "sweep": ("from", "prompts", "arms", "baseline", "workdir", "seed", "draft", "amateur"),
    "sweep --config": (
        *("config", "workdir", "zip", "chain", "random", "sweep_seed", "seeds", "shard"),
        *("retry", "report", "allow_unequal_tokens"),
    ),
    "eval": ("from",),
    "inspect": ("from", "prompt"),
    "replay": ("workdir",),
    "import": ("from", "workdir"),
    "export": ("from", "workdir"),
    "plan": ("config",),
}


def train_verb(overrides: Sequence[str]) -> int:
    """make tokenizer and data, train, evaluate; goes on where the workdir's run was stopped"""
    from model import errors
    from train import loop

    if _CONFIG.value is None:
        raise errors.BadInput(
            "train needs a recipe; add --config=configs/quickstart.py, or your own"
        )
    loop.run(_recipe(overrides), _directory("workdir"), profile=_PROFILE.value)
    return 0


def decode_verb(overrides: Sequence[str]) -> int:
    """complete prompts, and write completions.jsonl and manifest.json"""
    import model
    from decode import manifest, options, prompts, rules
    from train import recipe, report

    source, given = _directory("from"), options.values(_given())
    lm, seed = model.load(source), _SEED.value
    draft, amateur = _helpers()
    named = prompts.asked(_PROMPT.value, _PROMPTS.value, given, lm.tokenizer)
    if not named:
        asked = (recipe.of_run(source) if _CONFIG.value is None else _recipe(overrides)).decode
        named, seed = asked.requests(given), asked.seed if seed is None else seed
    for note in rules.notes(lm, [request.settings for _, request in named]):
        print(f"note: {note}", file=sys.stderr)
    others: dict[str, Any] = dict(draft=draft, amateur=amateur, batch_size=_ROWS.value)
    requests, completions = report.complete(lm, named, seed := seed or 0, **others)
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
    """measure a run's model on its held-out text, beside what a compressor makes of it"""
    from train import evaluate, report

    report.evaluation_table(evaluate.of_run(_directory("from")))
    return 0


def inspect_verb(overrides: Sequence[str]) -> int:
    """draw a run's loss curve, attention maps and next-token distributions"""
    from decode import options
    from train import report

    return report.run(_directory("from"), _PROMPT.value, options.values(_given()))


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
    """what a config would cost: parameters by part, bytes, operations"""
    from model import errors
    from train import plan

    if _CONFIG.value is None:
        raise errors.BadInput("plan needs a config; add --config=configs/preset.py:gpt2-124m")
    return plan.run(_config(overrides))


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
}


def run(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        from model import errors

        logging.set_verbosity(logging.ERROR)
        try:
            app.run(main, argv, flags_parser=_parse)
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


def _parse(argv: Sequence[str]) -> list[str]:
    """The program, the verb, and the overrides of the config; every mistake is one line."""
    from decode import options
    from model import errors

    if not argv[1:] or any(word in ("-h", "--help") for word in argv):
        verbs = "\n".join(f"  {name:<8} {function.__doc__}" for name, function in VERBS.items())
        print(f"usage: python launch.py VERB [--flags]\n{verbs}\n{flags.FLAGS.main_module_help()}")
        print(f"\nsettings, of {' and '.join(_SETTINGS)}; {options.FORMS}\n{options.listing()}")
        sys.exit(0 if argv[1:] else 2)
    for name in options.NAMES:
        if name not in flags.FLAGS:
            flags.DEFINE_multi_string(name, None, f"decode.Settings.{name}")
    overrides = [word for word in argv if word.startswith("--config.")]
    try:
        words = flags.FLAGS([word for word in argv if word not in overrides])
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that failed to load says so only when it is read
    except Exception as error:  # of a flag, or of the person's config file, which may hold anything
        raise errors.BadInput(_complaint(error)) from error
    if len(words) != 2 or words[1] not in VERBS:
        word = (words[2:] or words[1:] or ["nothing"])[0]
        if len(words) > 2:
            raise errors.BadInput(
                f"{word!r} is not a flag; everything but the verb is a --flag=value"
            )
        hint = errors.nearest(word, VERBS)
        raise errors.BadInput(f"there is no verb {word!r}{hint}; known: {', '.join(VERBS)}")
    verb = "sweep --config" if words[1] == "sweep" and flags.FLAGS["config"].present else words[1]
    reads, settings = _READS[verb], options.NAMES if verb in _SETTINGS else ()
    for name in (*options.NAMES, *(name for names in _READS.values() for name in names)):
        if flags.FLAGS[name].present and name not in (*reads, *settings):
            listed = ", ".join(f"--{name}" for name in (*reads, *settings[:1]))
            more = " and the other settings" if settings else ""
            raise errors.BadInput(f"{verb} does not read --{name}; it reads {listed}{more}")
    if overrides and _CONFIG.value is None:
        raise errors.BadInput(
            f"{overrides[0]} changes a recipe, and none is given; add --config=FILE"
        )
    return [*words, *overrides]


def _complaint(error: Exception) -> str:
    """What was wrong with the flags or the config file, in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip().rstrip(".").replace(" ?", "?")
    missing = re.search(r"(\S+) \[Errno \d+\] (No such file|Is a directory)", text)
    if missing:
        return f"--config={missing.group(1)}: {missing.group(2)}; give a recipe such as configs/quickstart.py"
    if isinstance(error, flags.Error):
        return re.sub(
            r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number", text
        )
    return f"{_CONFIG.name} file cannot be read: {type(error).__name__}: {text}"


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
