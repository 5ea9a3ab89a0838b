"""What does decoding cost beside its steps? Compilation, memory, a long limit, a sampler, empty rows.

    python benchmarks/decode_cost.py                 # GPT-2's shape, 124M parameters
    python benchmarks/decode_cost.py --shape=tiny    # 4 layers, width 256, vocabulary 8192

Weights are random. The first token is timed in a process of its own, once with an empty compilation cache and once
with the cache that this has left; the same processes say how much memory they held at most, over what they held
before there were weights (Linux only). Everything else alternates in one process, after one call each; a step is the
difference of two lengths over the steps between them, the median of the rounds.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

# `decode.py` beside this file has the name of the package, and would be imported in its place.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

import decode  # noqa: E402
import model  # noqa: E402
from model import cache, presets  # noqa: E402
from tests import held, tiny  # noqa: E402

SHAPES = {
    "tiny": presets.config("gpt2-124m", vocab_size=8192, layers=4, width=256, heads=8),
    "gpt2": presets.config("gpt2-124m"),
    "head": presets.config("gpt2-124m", layers=1, width=16, heads=1),
}
# Random weights make logits so flat that top-p keeps most of the vocabulary; at this temperature it keeps hundreds, as
# it does of a trained model.
SHARP = 0.01
SAMPLERS: dict[str, dict[str, float]] = {
    "greedy": dict(temperature=0.0),
    "all tokens": {},
    "top-k 50": dict(top_k=50),
    "top-p 0.9": dict(top_p=0.9),
    "both": dict(top_k=50, top_p=0.9),
    "top-p 0.9, sharp": dict(top_p=0.9, temperature=SHARP),
    "all tokens, sharp": dict(temperature=SHARP),
}
PROMPT = 32
FLAGS = flags.FLAGS
flags.DEFINE_enum("shape", "gpt2", ["tiny", "gpt2"], "of the model")
flags.DEFINE_integer("rounds", 7, "timed calls of each")
flags.DEFINE_bool("first", False, "only times the first token in this process, as JSON")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    if FLAGS.first:
        print(json.dumps(first_token(SHAPES[FLAGS.shape])))
        return
    print(f"$ python {' '.join(sys.argv)}\n")
    cores = os.cpu_count() or 1
    if (load := os.getloadavg()[0]) > cores / 4:
        print(f"load average {load:.1f}: other programs run; do not quote these figures\n")
    report_first()
    lm = make(SHAPES[FLAGS.shape])
    print("a step's milliseconds, tokens 8 to 28 of a stream behind 32:")
    limits = {f"at most {new} new tokens": (lambda new=new: streamed(lm, new)) for new in (64, 900)}
    table(limits, "")
    print("a step's milliseconds for one request:")
    rows = {
        f"of {rows} row{'s' * (rows > 1)}": (lambda rows=rows: step(lm, 1, rows, {}))
        for rows in (1, 8)
    }
    table(rows, "")
    print(
        "a step of a model of 1 layer, width 16 and vocabulary 50,257, all but its sampler a few hundredths of a ms:"
    )
    head = make(SHAPES["head"])
    for name, settings in SAMPLERS.items():
        if "top_p" in settings:
            print(
                f"  {name} keeps {kept(head, settings):,.0f} tokens, the median of {PROMPT} draws"
            )
    for batch in (1, 8):
        calls = {
            name: (lambda settings=settings, batch=batch: step(head, batch, batch, settings))
            for name, settings in SAMPLERS.items()
        }
        table(calls, f"batch {batch}, ")


def make(config: model.ModelConfig) -> model.LM:
    """A model with random weights."""
    net = model.build(config)
    params = jax.jit(lambda key: model.init(net, key=key))(jax.random.key(0))
    return model.LM(config, jax.block_until_ready(params), tiny.Silent(), net)  # type: ignore[arg-type]


def prompts(lm: model.LM, count: int) -> list[list[int]]:
    return np.random.default_rng(count).integers(0, lm.config.vocab_size, (count, PROMPT)).tolist()


def kept(lm: model.LM, settings: dict[str, float]) -> float:
    """How many tokens a sampler leaves to draw from."""
    asked = decode.Settings(max_new_tokens=PROMPT, likelihood=True, **settings)
    (done,) = decode.generate(lm, prompts(lm, 1), asked, seed=0, batch_size=1)
    return statistics.median(done.kept_counts)


def step(
    lm: model.LM, requests: int, rows: int, settings: dict, short: int = 8, long: int = 28
) -> float:
    """Seconds of one step: the difference of two lengths over the steps between them."""
    seconds = []
    for new in (short, long):
        asked = decode.Settings(max_new_tokens=new, **settings)
        start = time.perf_counter()
        decode.generate(lm, prompts(lm, requests), asked, seed=0, batch_size=rows)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / (long - short)


def streamed(lm: model.LM, new: int, short: int = 8, long: int = 28) -> float:
    """Seconds of one step of a stream that may become `new` tokens long, and is left at `long`."""
    times: list[float] = []

    def tell(*token: object) -> None:
        times.append(time.perf_counter())
        if len(times) == long:
            raise StopIteration

    try:
        decode.generate(
            lm,
            prompts(lm, 1),
            decode.Settings(max_new_tokens=new, temperature=0.0),
            seed=0,
            batch_size=1,
            on_token=tell,
        )
    except StopIteration:
        pass
    return (times[-1] - times[short - 1]) / (long - short)


def table(calls: dict[str, Callable[[], float]], prefix: str) -> None:
    """Prints each call's median and best of the rounds, the calls alternating."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round in range(1 + FLAGS.rounds):
        for name, call in calls.items():
            value = call()
            if round:
                seconds[name].append(value)
    for name, values in seconds.items():
        median, best = 1e3 * statistics.median(values), 1e3 * min(values)
        print(f"  {prefix + name:24} median {median:8.3f}   best {best:8.3f}")
    print(flush=True)


def report_first() -> None:
    """The first token in processes of their own, without and with a compilation cache."""
    with tempfile.TemporaryDirectory() as kept:
        for name in ("cold", "with the cache"):
            run = subprocess.run(
                [sys.executable, __file__, "--first", f"--shape={FLAGS.shape}"],
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": kept},
                capture_output=True,
                text=True,
                check=True,
            )
            told = json.loads(run.stdout.splitlines()[-1])
            arrays, peak = told["held"] / 1e6, told["peak"] / 1e6
            print(
                f"first token, {name}: {told['seconds']:.1f} s; weights and cache {arrays:.0f} MB, "
                f"memory at most {peak:.0f} MB, {peak / arrays - 1:+.0%}; {told['settled'] / 1e6:.0f} MB "
                "while 64 tokens were written again"
            )
    print()


def first_token(config: model.ModelConfig) -> dict[str, float]:
    """Seconds to the first token of 64, and bytes: of weights and cache, and at most over what was held before."""
    jax.config.update("jax_platforms", "cpu")
    # Whatever takes no time to compile is kept too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    before = held.now()
    rng = np.random.default_rng(0)
    net = model.build(config)
    shapes = jax.eval_shape(lambda key: model.init(net, key=key), jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jax.device_put(rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)),
        shapes,
    )
    lm = model.LM(config, jax.block_until_ready(params), tiny.Silent(), net)  # type: ignore[arg-type]
    held.forget()
    times: list[float] = []
    start = time.perf_counter()
    settings = decode.Settings(max_new_tokens=64, temperature=0.0)
    ask = dict(seed=0, batch_size=1, on_token=lambda *token: times.append(time.perf_counter()))
    decode.generate(lm, prompts(lm, 1), settings, **ask)
    peak = held.most() - before
    held.forget()
    decode.generate(lm, prompts(lm, 1), settings, **ask)
    blank = jax.eval_shape(lambda: cache.init(config, 1, 128))
    arrays = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, blank)))
    return {
        "seconds": times[0] - start,
        "held": arrays,
        "peak": peak,
        "settled": held.most() - before,
    }


if __name__ == "__main__":
    app.run(main)
