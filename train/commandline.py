"""What is wrong with a command line? Which verb reads which flags, and every mistake in one line."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from decode import options
from model import errors

# Which flags a verb reads; one that it would ignore is refused. Some read a flag for each setting as well.
SETTINGS = ("decode", "inspect", "sweep")
READS: dict[str, tuple[str, ...]] = {
    "train": (
        *("config", "workdir", "allow_change", "profile", "coordinator", "process_id"),
        *("num_processes", "coordinator_timeout", "heartbeat_timeout"),
    ),
    "decode": (
        "from",
        "workdir",
        "config",
        "prompt",
        "prompts",
        "raw",
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
    "eval": ("from", "workdir", "compare"),
    "eval --shots": ("from", "config", "workdir", "shots", "limit", "batch_size"),
    "eval --config": ("from", "config", "workdir", "shots", "limit", "batch_size"),
    "eval --lm_eval": (
        *("from", "workdir", "lm_eval", "include_path", "shots", "limit", "batch_size"),
    ),
    "inspect": (
        *("from", "prompt", "words", "analogy", "similarity", "analogies", "several"),
        "lower_case",
    ),
    "replay": ("workdir",),
    "import": ("from", "workdir"),
    "export": ("from", "workdir"),
    "plan": ("config", "mesh", "chip"),
    "check": ("config",),
}


def parse(argv: Sequence[str], verbs: Mapping[str, Callable[..., int]]) -> list[str]:
    """The program, the verb, and the overrides of the config; every mistake is one line."""
    if not argv[1:] or any(word in ("-h", "--help") for word in argv):
        listed = "\n".join(f"  {name:<8} {function.__doc__}" for name, function in verbs.items())
        print(f"usage: python launch.py VERB [--flags]\n{listed}\n{flags.FLAGS.main_module_help()}")
        print(f"\nsettings, of {' and '.join(SETTINGS)}; {options.FORMS}\n{options.listing()}")
        sys.exit(0 if argv[1:] else 2)
    for name in options.NAMES:
        if name not in flags.FLAGS:
            flags.DEFINE_multi_string(name, None, f"decode.Settings.{name}")
    overrides = [word for word in argv if word.startswith("--config.")]
    try:
        words = flags.FLAGS([word for word in argv if word not in overrides])
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.to_dict()  # a file that failed to load says so only when it is read
    except Exception as error:  # of a flag, or of the person's config file, which may hold anything
        raise errors.BadInput(_complaint(error)) from error
    if len(words) != 2 or words[1] not in verbs:
        word = (words[2:] or words[1:] or ["nothing"])[0]
        if len(words) > 2:
            raise errors.BadInput(
                f"{word!r} is not a flag; everything but the verb is a --flag=value"
            )
        hint = errors.nearest(word, verbs)
        raise errors.BadInput(f"there is no verb {word!r}{hint}; known: {', '.join(verbs)}")
    variants = (name for name in READS if name.startswith(f"{words[1]} --"))
    present = [name for name in variants if flags.FLAGS[name.split(" --")[1]].present]
    verb = (present or [words[1]])[-1]
    reads, settings = READS[verb], options.NAMES if verb in SETTINGS else ()
    for name in (*options.NAMES, *(name for names in READS.values() for name in names)):
        if flags.FLAGS[name].present and name not in (*reads, *settings):
            listed = ", ".join(f"--{name}" for name in (*reads, *settings[:1]))
            more = " and the other settings" if settings else ""
            raise errors.BadInput(f"{verb} does not read --{name}; it reads {listed}{more}")
    if overrides and flags.FLAGS.config is None and verb != "eval":
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
    # A config file's own complaint stands at the end of how it came about.
    text = re.sub(r" Traceback \(most recent call last\): .* (\w+: )", r" \1", text)
    if isinstance(error, flags.Error):
        return re.sub(
            r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number", text
        )
    return f"config file cannot be read: {type(error).__name__}: {text}"
