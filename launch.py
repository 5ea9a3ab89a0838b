"""The command line: `python launch.py VERB [--config=FILE] [--config.group.key=value ...] [--flag=value ...]`.

A table of contents: each verb reads its flags and calls one function. Exit codes: 0 done; 1 a replay
that differs; 2 bad input, told in one line on standard error; 128 + the signal when interrupted.
"""

import dataclasses
import errno
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from decode.settings import Request, Settings
from model import errors

_CONFIG = config_flags.DEFINE_config_file("config", None, "a recipe, such as configs/quickstart.py")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run's directory; decode writes its record there"
)
_FROM = flags.DEFINE_string("from", None, "the run whose model is used")
_PROMPT = flags.DEFINE_multi_string("prompt", None, "a prompt, or - for standard input; repeatable")
_PROMPTS = flags.DEFINE_string("prompts", None, "JSON lines with prompts; - is standard input")
_SEED = flags.DEFINE_integer("seed", 0, "the root of all randomness of a decoding run")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ganymede", "xla"),
    "where compiled programs are kept for the next run; empty keeps none",
)
_SETTINGS = {
    field.name: flags.DEFINE_string(field.name, None, f"decode: by default {field.default}")
    for field in dataclasses.fields(Settings)
}


def train_verb() -> int:
    """make tokenizer and data, train, evaluate; goes on where the workdir's run was stopped"""
    from train import loop, recipe

    if _CONFIG.value is None:
        raise errors.BadInput(
            "train needs a recipe; add --config=configs/quickstart.py, or your own"
        )
    loop.run(recipe.from_config(_CONFIG.value.to_dict()), _directory("workdir"))
    return 0


def decode_verb() -> int:
    """complete prompts, and write completions.jsonl and manifest.json"""
    import decode
    import model
    from decode import manifest
    from train import report

    source = _directory("from")
    lm = model.load(source)
    named = _requests(source)
    requests = decode.requests(request for _, request in named)
    name = f"{manifest.digest(requests)[:8]}-{_SEED.value}"  # the same request is the same record
    workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else source / "decode" / name
    if len(requests) == 1 and requests[0].settings.n == 1 and sys.stdout.isatty():
        pieces = decode.stream(lm, requests[0], seed=_SEED.value)
        completions = [report.completion_stream(_text(lm, requests[0]), pieces)]
    else:
        completions = decode.generate(lm, requests, seed=_SEED.value)
        told = {r.id: (name, _text(lm, r)) for (name, _), r in zip(named, requests, strict=True)}
        report.completions_table((*told[c.id], c) for c in completions)
    manifest.write(workdir, lm, requests, completions, seed=_SEED.value, prompts=_PROMPTS.value)
    print(f"wrote {workdir}/completions.jsonl and {workdir}/manifest.json")
    return 0


def eval_verb() -> int:
    """measure a run's model on its held-out text, beside what a compressor makes of it"""
    from train import evaluate, report

    report.evaluation_table(evaluate.of_run(_directory("from")))
    return 0


def inspect_verb() -> int:
    """draw a run's loss curve, attention map and next-token distribution"""
    from train import report

    return report.run(_directory("from"), _PROMPT.value)


def replay_verb() -> int:
    """repeat a decoding run from its manifest: identical, or where it first differs"""
    from decode import manifest

    report = manifest.replay(_directory("workdir"))
    print(report)
    return 0 if report.identical else 1


def _requests(source: pathlib.Path) -> list[tuple[str, Any]]:
    """What to complete, and under which name of settings: as the flags say, or else as the recipe does."""
    from decode import prompts
    from train import recipe

    flags_given = {name: flag.value for name, flag in _SETTINGS.items() if flag.value is not None}
    given = prompts.numbers(flags_given)
    if _PROMPTS.value:
        return [("", request) for request in prompts.read(_PROMPTS.value, given)]
    if _PROMPT.value:
        texts = [sys.stdin.read() if text == "-" else text for text in _PROMPT.value]
        return [
            ("", Request(text, errors.build(Settings, given, "flags"), place))
            for place, text in enumerate(texts)
        ]
    if _CONFIG.value is not None:
        return recipe.from_config(_CONFIG.value.to_dict()).decode.requests(given)
    return recipe.of_run(source).decode.requests(given)


def _text(lm: Any, request: Request) -> str:
    """A prompt as people read it."""
    prompt = request.prompt
    return prompt if isinstance(prompt, str) else lm.tokenizer.decode(prompt)


VERBS: dict[str, Callable[[], int]] = {
    "train": train_verb,
    "decode": decode_verb,
    "eval": eval_verb,
    "inspect": inspect_verb,
    "replay": replay_verb,
}


def run(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main, argv, flags_parser=_parse)
    except errors.BadInput as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print(
            "\nganymede: interrupted; the same command goes on from what is on disk",
            file=sys.stderr,
        )
        sys.exit(130)
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.EFBIG,
        ):
            raise
        _fail(
            f"{error.filename or 'the disk'}: {error.strerror}; make room or choose another directory"
        )


def main(argv: Sequence[str]) -> int:
    """Calls the verb."""
    if _CACHE.value:
        import jax

        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return VERBS[argv[1]]()


def _parse(argv: Sequence[str]) -> list[str]:
    """The verb, after the flags were read; every mistake is one line."""
    try:
        words = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that failed to load says so only when it is read
    except Exception as error:  # of a flag, or of the person's config file, which may hold anything
        raise errors.BadInput(_complaint(error, argv)) from error
    if len(words) == 2 and words[1] in VERBS:
        return words
    if len(words) == 1:
        print(_usage())
        sys.exit(2)
    if words[1] not in VERBS:
        hint = errors.nearest(words[1], VERBS)
        raise errors.BadInput(f"there is no verb {words[1]!r}{hint}; known: {', '.join(VERBS)}")
    raise errors.BadInput(
        f"{words[2]!r} stands behind the verb; everything but the verb is a --flag=value"
    )


def _complaint(error: Exception, argv: Sequence[str]) -> str:
    """What was wrong with the flags, in one line.

    Of an unknown config key, ml_collections tells its last name and perhaps a similar one.
    """
    text = re.sub(r"\s+", " ", str(error.args[0] if error.args else error)).strip()
    missing = re.search(r"(\S+) \[Errno \d+\] (No such file|Is a directory)", text)
    if missing:
        return f"--config={missing.group(1)}: {missing.group(2)}; give a recipe such as configs/quickstart.py"
    unknown = re.match(r"\W*(\w+)\W*(?:n?Did you mean \W*(\w+).*)?$", text)
    if isinstance(error, AttributeError | KeyError) and unknown:
        word = unknown.group(1)
        flag = next(
            (a.split("=")[0] for a in argv if re.search(rf"\b{word}\b", a.split("=")[0])), word
        )
        hint = f" (did you mean {unknown.group(2)!r}?)" if unknown.group(2) else ""
        return f"{flag}: the config has no key {word!r}{hint}"
    told = isinstance(error, flags.Error | errors.BadInput)
    return (
        text.rstrip(".") if told else f"the config cannot be read: {type(error).__name__}: {text}"
    )


def _usage() -> str:
    lines = [f"  {name:<8} {function.__doc__}" for name, function in VERBS.items()]
    return "\n".join(["usage: python launch.py VERB [--flags]", *lines, "--help lists the flags."])


def _directory(flag: str) -> pathlib.Path:
    value = flags.FLAGS[flag].value
    if not value:
        raise errors.BadInput(f"this verb needs a directory; add --{flag}=runs/NAME")
    return pathlib.Path(value)


def _fail(message: str) -> None:
    print(f"ganymede: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
