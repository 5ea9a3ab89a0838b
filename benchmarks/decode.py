"""How fast do we decode beside Hugging Face `generate` and CTranslate2?

    python benchmarks/decode.py                  # 4 layers, width 256, vocabulary 8192
    python benchmarks/decode.py --shape=gpt2     # 124M parameters

All have the same weights and continue the same prompts greedily by the same number of tokens, float32,
all cores. Whole calls alternate in one process after warm-up. The tokens are compared: equal work
means equal tokens, but where two logits are closer than rounding. A step's time in steady state is the
difference of whole calls of two lengths, over the steps between them. The bound is the time it takes to
read what every step must read, at the rate of reading as many bytes again and again in the same run.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

# This file has the name of the package that it measures, and would be imported in its place.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import ctranslate2  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from absl import app, flags  # noqa: E402
from ctranslate2.converters import transformers as converters  # noqa: E402

import decode  # noqa: E402
import model  # noqa: E402
from model import hf, presets  # noqa: E402
from tests import tiny  # noqa: E402

SHAPES = {
    "tiny": presets.config("gpt2-124m", vocab_size=8192, layers=4, width=256, heads=8),
    "gpt2": presets.config("gpt2-124m"),
}
FLAGS = flags.FLAGS
flags.DEFINE_enum("shape", "tiny", list(SHAPES), "of the model")
flags.DEFINE_multi_integer("batch", [], "prompts at once, several times; else 1, 8 and of tiny 16")
flags.DEFINE_integer("prompt", 32, "tokens of a prompt")
flags.DEFINE_integer("new", 64, "tokens of a completion")
flags.DEFINE_integer(
    "short", 16, "tokens of the shorter completion that steady state is the difference to"
)
flags.DEFINE_integer("rounds", 5, "timed calls of each")
flags.DEFINE_integer("warmup", 1, "calls of each before timing, the first with compilation")

Generate = Callable[[np.ndarray, int], np.ndarray]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    config = SHAPES[FLAGS.shape]
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    jax.config.update("jax_platforms", "cpu")  # where the peer runs
    print(f"$ python {' '.join(sys.argv)}\n")
    if (load := os.getloadavg()[0]) > cores / 4:
        print(
            f"load average {load:.1f}: other programs run, which slows torch's spinning threads most;\n"
            "do not quote these figures (OMP_WAIT_POLICY=passive brings them nearer to a quiet machine's)\n"
        )
    peer = make_peer(config)
    names = {name: tensor.detach().numpy() for name, tensor in peer.state_dict().items()}
    params = jax.tree.map(jnp.asarray, hf.from_theirs("gpt2", config, names))
    net = model.build(config)
    lm = model.LM(config, params, tiny.Silent(), net)  # type: ignore[arg-type]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"{config.layers} layers, width {config.width}, {config.heads} heads, vocabulary "
        f"{config.vocab_size}: {count / 1e6:.1f}M parameters, float32, {torch.get_num_threads()} "
        f"threads\n{FLAGS.prompt} tokens of prompt, {FLAGS.new} new ones, greedy; "
        f"{FLAGS.rounds} calls of each, alternating\n"
    )
    calls = {"ours": make_ours(lm), "torch": make_torch(peer), "ctranslate2": make_c(peer, config)}
    for batch in FLAGS.batch or ([1, 8, 16] if FLAGS.shape == "tiny" else [1, 8]):
        measure(config, params, calls, batch, peer)


def measure(
    config: model.ModelConfig,
    params: dict,
    calls: dict[str, Generate],
    batch: int,
    peer: transformers.GPT2LMHeadModel,
) -> None:
    """Times all on one batch size, and prints the table, the bound and whether the tokens agree."""
    rng = np.random.default_rng(batch)
    prompts_BT = rng.integers(0, config.vocab_size, (batch, FLAGS.prompt))
    size = step_bytes(config, params, batch)
    lengths, rates = (FLAGS.new, FLAGS.short), [read_rate(size)]
    seconds: dict[tuple, list[float]] = {(name, new): [] for name in calls for new in lengths}
    tokens = {}
    for _ in range(FLAGS.warmup + FLAGS.rounds):
        for name, generate in calls.items():
            for new in lengths:
                start = time.perf_counter()
                tokens[name, new] = generate(prompts_BT, new)
                seconds[name, new].append(time.perf_counter() - start)
    rate = statistics.mean([*rates, read_rate(size)])
    bound = size / rate
    median = {key: statistics.median(times[FLAGS.warmup :]) for key, times in seconds.items()}
    print(
        f"batch {batch:<8}{'median ms':>10}{'best ms':>10}{'tokens/s':>10}{'ours is':>9}"
        f"{'step ms':>10}{'of bandwidth':>14}{'ours is':>9}{'first call s':>14}"
    )
    steps = {
        name: (median[name, FLAGS.new] - median[name, FLAGS.short]) / (FLAGS.new - FLAGS.short)
        for name in calls
    }
    for name, step in steps.items():
        whole, first = median[name, FLAGS.new], seconds[name, FLAGS.new][0]
        best = min(seconds[name, FLAGS.new][FLAGS.warmup :])
        print(
            f"{name:14}{1e3 * whole:10.1f}{1e3 * best:10.1f}{batch * FLAGS.new / whole:10.1f}"
            f"{whole / median['ours', FLAGS.new]:8.2f}x{1e3 * step:10.3f}{bound / step:14.0%}"
            f"{step / steps['ours']:8.2f}x{first:14.1f}"
        )
    print(
        f"bound: {size / 1e6:.1f} MB a step (weights once, and the cache) at {rate / 1e9:.1f} GB/s = "
        f"{1e3 * bound:.3f} ms"
    )
    for name in list(calls)[1:]:
        told = compare(tokens["ours", FLAGS.new], tokens[name, FLAGS.new], prompts_BT, peer)
        print(f"tokens beside {name}: {told}")
    print()


def make_peer(config: model.ModelConfig) -> transformers.GPT2LMHeadModel:
    """A Hugging Face GPT-2 of the same shape, freshly initialised."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.hidden,
            layer_norm_epsilon=config.norm_epsilon,
            activation_function="gelu_new",
            initializer_range=0.1,  # at 0.02 it repeats one token, and equal tokens prove little
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()


def make_ours(lm: model.LM) -> Generate:
    """`decode.generate` on arrays, with as many rows as there are prompts."""

    def generate(prompts_BT: np.ndarray, new: int) -> np.ndarray:
        settings = decode.Settings(max_new_tokens=new, temperature=0.0)
        completions = decode.generate(
            lm, prompts_BT.tolist(), settings, seed=0, batch_size=len(prompts_BT)
        )
        return np.array([completion.tokens for completion in completions])

    return generate


def make_torch(peer: transformers.GPT2LMHeadModel) -> Generate:
    """Hugging Face `generate` on arrays, with its default cache."""

    def generate(prompts_BT: np.ndarray, new: int) -> np.ndarray:
        inputs = torch.from_numpy(prompts_BT)
        outputs = peer.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new,
            do_sample=False,
        )
        return outputs[:, prompts_BT.shape[1] :].numpy()

    return generate


def make_c(peer: transformers.GPT2LMHeadModel, config: model.ModelConfig) -> Generate:
    """CTranslate2's generator of the same weights, float32; token i is named `i`."""
    spec = converters._MODEL_LOADERS["GPT2Config"].get_model_spec(peer)
    spec.register_vocabulary([str(i) for i in range(config.vocab_size)])
    for name in ("bos_token", "eos_token", "unk_token"):
        setattr(spec.config, name, "0")
    spec.validate()
    spec.optimize(quantization=None)
    with tempfile.TemporaryDirectory() as directory:
        spec.save(directory)
        generator = ctranslate2.Generator(
            directory, compute_type="float32", inter_threads=1, intra_threads=os.cpu_count() or 1
        )

    def generate(prompts_BT: np.ndarray, new: int) -> np.ndarray:
        prompts = [[str(token) for token in prompt] for prompt in prompts_BT]
        results = generator.generate_batch(
            prompts,
            max_length=new,
            min_length=new,  # no end
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return np.array([result.sequences_ids[0] for result in results])

    return generate


def step_bytes(config: model.ModelConfig, params: dict, batch: int) -> float:
    """What a step cannot but read: every weight but the position table, and the keys and values so far."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    weights -= params["stack"]["position"]["weight"].nbytes
    held = FLAGS.prompt + FLAGS.new / 2
    return weights + batch * held * 2 * config.layers * config.kv_heads * config.head_size * 4


def read_rate(size: float, seconds: float = 1.0) -> float:
    """Bytes per second when this many are summed again and again, by the quicker of torch and jax.

    A small model's weights stay in the processor's cache between steps, and so does this array.
    """
    array = np.ones(int(size) // 4, np.float32)
    tensor, ours = torch.from_numpy(array), jnp.asarray(array)
    total = jax.jit(jnp.sum)
    best = float("inf")
    for read in (tensor.sum, lambda: total(ours).block_until_ready()):
        read()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - start)
    return array.nbytes / best


def compare(
    ours_BT: np.ndarray,
    theirs_BT: np.ndarray,
    prompts_BT: np.ndarray,
    peer: transformers.GPT2LMHeadModel,
) -> str:
    """Whether all tokens are the same; if not, how close the peer's two logits were at the first that is not."""
    differs_BT = ours_BT != theirs_BT
    rows = np.flatnonzero(differs_BT.any(axis=1))
    if not len(rows):
        return f"all {ours_BT.size} are the same; {len(np.unique(ours_BT))} different ones occur"
    gaps = []
    for row in rows:
        place = int(differs_BT[row].argmax())
        seen = np.concatenate([prompts_BT[row], theirs_BT[row, :place]])
        with torch.inference_mode():
            logits = peer(torch.from_numpy(seen)[None]).logits[0, -1]
        gap = logits[theirs_BT[row, place]] - logits[ours_BT[row, place]]
        gaps.append(f"row {row} from token {place}, where the two logits differ by {gap:.1e}")
    return f"{len(rows)} of {len(ours_BT)} rows diverge: " + "; ".join(gaps)


if __name__ == "__main__":
    app.run(main)
