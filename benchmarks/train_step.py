"""How fast is our training step beside a Hugging Face model of the same shape in torch?

    python benchmarks/train_step.py                                  # GPT-2's shape, 8 rows of 256 tokens
    python benchmarks/train_step.py --length=1024 --batch=2
    python benchmarks/train_step.py --dropout=0.1
    python benchmarks/train_step.py --model=llama

Both start from the same weights and take the same batches: loss over every token, gradient clipped to
norm 1, AdamW, float32, all cores. Steps alternate in one process after warm-up; the losses of both are
printed, because equal work means equal losses (but for dropout, whose masks differ). The bound is each library's own
best matrix product, measured before and after. Then each takes steps alone in a process of its own, which says how much
memory that held at most over what it held before there was a model (Linux only).
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from absl import app, flags  # noqa: E402

import model  # noqa: E402
from model import blocks, hf, presets, sharding  # noqa: E402
from tests import held  # noqa: E402
from train import flops, optimizer, step  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_enum("model", "gpt2", ["gpt2", "llama"], "whose shape and parts")
flags.DEFINE_float("dropout", 0.0, "of the embedding and the residual branches, GPT-2's")
flags.DEFINE_enum(
    "memory", "", ["", "ours", "torch"], "only takes its steps, and says what memory it held"
)
flags.DEFINE_integer("layers", 4, "blocks")
flags.DEFINE_integer("width", 256, "of the residual stream")
flags.DEFINE_integer("heads", 8, "of attention")
flags.DEFINE_integer("hidden", 1024, "width of the feed-forward")
flags.DEFINE_integer("vocab", 8192, "size of the vocabulary")
flags.DEFINE_integer("length", 256, "tokens in a row")
flags.DEFINE_integer("batch", 8, "rows")
flags.DEFINE_integer("steps", 15, "timed steps of each")
flags.DEFINE_integer("warmup", 2, "steps of each before timing")
flags.DEFINE_integer("unroll", 0, "layers in each turn of our compiled loop; 0: all, so no loop")

PRESETS = {"gpt2": "gpt2-124m", "llama": "llama-7b"}
LEARNING_RATE, DECAY, BETAS = 1e-3, 0.1, (0.9, 0.95)

Step = Callable[[dict[str, np.ndarray]], float]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    config = presets.config(
        PRESETS[FLAGS.model],
        vocab_size=FLAGS.vocab,
        context_length=FLAGS.length,
        layers=FLAGS.layers,
        width=FLAGS.width,
        heads=FLAGS.heads,
        kv_heads=FLAGS.heads,
        hidden=FLAGS.hidden,
    )
    torch.set_num_threads(os.cpu_count() or 1)
    if FLAGS.memory:
        print(json.dumps(memory(config)))
        return
    peer = make_peer(config)
    names = {name: tensor.detach().numpy() for name, tensor in peer.state_dict().items()}
    take_ours, report = make_ours(
        config, blocks.stack_layers(hf.from_theirs(FLAGS.model, config, names))
    )
    steps = {"ours": take_ours, "torch": make_torch(peer)}
    peaks = {"ours": flops.measure(), "torch": torch_peak()}
    load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(FLAGS.warmup + FLAGS.steps):
        batch = make_batch(i)
        for name, take in steps.items():
            start = time.perf_counter()
            losses[name].append(take(batch))
            seconds[name].append(time.perf_counter() - start)
    peaks = {
        "ours": max(peaks["ours"], flops.measure()),
        "torch": max(peaks["torch"], torch_peak()),
    }
    print_table(config, {name: times[FLAGS.warmup :] for name, times in seconds.items()}, peaks)
    print(
        f"\nloss   first step {losses['ours'][0]:.5f} ours, {losses['torch'][0]:.5f} torch;"
        f" last {losses['ours'][-1]:.5f}, {losses['torch'][-1]:.5f}"
    )
    print(f"ours   first call {seconds['ours'][0]:.1f} s with compilation; {report()}")
    print(
        f"load   {load:.1f} on {os.cpu_count()} cores at the start; well above 1: do not quote this"
    )
    most = {name: alone(name) / 2**20 for name in steps}
    print(
        f"memory {most['ours']:.0f} MiB at most ours, {most['torch']:.0f} torch: {most['ours'] / most['torch']:.2f}x"
    )


def alone(name: str) -> int:
    """The bytes that the steps of one side hold at most, in a process of their own."""
    asked = [word for word in sys.argv[1:] if not word.startswith("--memory")]
    told = subprocess.run(
        [sys.executable, __file__, *asked, f"--memory={name}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(told.stdout.splitlines()[-1])


def memory(config: model.ModelConfig) -> int:
    """What the steps of `--memory` hold at most over what this process held before."""
    before = held.now()
    if FLAGS.memory == "ours":
        net = model.build(config)
        take, _ = make_ours(
            config,
            blocks.stack_layers(
                jax.device_get(jax.jit(lambda: model.init(net, key=jax.random.key(0)))())
            ),
        )
    else:
        take = make_torch(make_peer(config))
    for i in range(FLAGS.warmup):
        take(make_batch(i))
    # What compiling took is not what a step takes.
    held.forget()
    for i in range(FLAGS.steps):
        take(make_batch(i))
    return held.most() - before


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Random tokens in one segment; every one of them is a target."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, FLAGS.vocab, (FLAGS.batch, FLAGS.length + 1), dtype=np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": np.ones((FLAGS.batch, FLAGS.length), np.int32),
        "weights": np.ones((FLAGS.batch, FLAGS.length), np.float32),
    }


def make_ours(config: model.ModelConfig, params: dict) -> tuple[Step, Callable[[], str]]:
    """Our step from these stacked parameters, and what to say about its compilation afterwards."""
    runtime = model.Runtime(scan=True, unroll=FLAGS.unroll or FLAGS.layers, dropout=FLAGS.dropout)
    net = model.build(config, runtime)
    transform = optimizer.build(
        optimizer.OptimizerConfig(
            learning_rate=LEARNING_RATE,
            schedule="constant",
            weight_decay=DECAY,
            b1=BETAS[0],
            b2=BETAS[1],
            clip_norm=1.0,
        ),
        steps=FLAGS.warmup + FLAGS.steps,
    )
    mesh = sharding.make_mesh()
    where = step.shardings(step.abstract_state(net, transform, mesh))
    train_step = step.make_train_step(net, transform, mesh, where)
    state = step.init_state(net, transform, mesh, key=jax.random.key(0))
    state = state.replace(params=jax.device_put(params, where.params))
    key = jax.random.key(0)

    def take(batch: dict[str, np.ndarray]) -> float:
        nonlocal state
        state, metrics = train_step(state, step.put_batch(batch, mesh), key)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    def report() -> str:
        lower = sharding.on_mesh(train_step.__wrapped__.lower, mesh)
        memory = lower(state, step.put_batch(make_batch(0), mesh), key).compile().memory_analysis()
        return (
            f"compiled {train_step.__wrapped__._cache_size()} time(s); state and batch "
            f"{memory.argument_size_in_bytes / 2**20:.0f} MiB, activations "
            f"{memory.temp_size_in_bytes / 2**20:.0f} MiB"
        )

    return take, report


def make_peer(config: model.ModelConfig) -> torch.nn.Module:
    """A Hugging Face model of the same shape."""
    torch.manual_seed(0)
    if FLAGS.model == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                max_position_embeddings=config.context_length,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                intermediate_size=config.hidden,
                rms_norm_eps=config.norm_epsilon,
                tie_word_embeddings=False,
                bos_token_id=0,
                eos_token_id=0,
                use_cache=False,
            )
        ).train()
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
            resid_pdrop=FLAGS.dropout,
            embd_pdrop=FLAGS.dropout,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    ).train()


def make_torch(net: torch.nn.Module) -> Step:
    """The peer's step, with torch's fused AdamW."""
    # Vectors are norms and biases.
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    update = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=1e-8, fused=True)

    def take(batch: dict[str, np.ndarray]) -> float:
        targets = torch.from_numpy(batch["targets"].astype(np.int64)).flatten()
        logits = net(torch.from_numpy(batch["tokens"])).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        update.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        update.step()
        return loss.item()

    return take


def torch_peak(size: int = 1024, seconds: float = 0.3) -> float:
    """What `flops.measure` measures, by torch."""
    ones = torch.ones(size, size)
    result = torch.empty(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.matmul(ones, ones, out=result)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def print_table(
    config: model.ModelConfig, seconds: dict[str, list[float]], peaks: dict[str, float]
) -> None:
    """Medians, their ratio, and the fraction of each library's bound that they reach."""
    tokens = FLAGS.batch * FLAGS.length
    work = tokens * flops.training(config, FLAGS.length)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{config.layers} layers, width {config.width}, {config.heads} heads, hidden "
        f"{config.hidden}, vocabulary {config.vocab_size}, {FLAGS.batch} rows of {FLAGS.length}, "
        f"float32, {torch.get_num_threads()} threads\n"
        f"{work / 1e9:.1f} model GFLOP a step (6 per matrix parameter and token, causal attention "
        f"halved); {FLAGS.steps} steps of each, alternating\n"
    )
    print(
        f"{'':8}{'median ms':>11}{'best ms':>10}{'tokens/s':>11}{'peak GFLOP/s':>14}{'of peak':>9}"
    )
    for name, median in medians.items():
        print(
            f"{name:8}{1e3 * median:11.1f}{1e3 * min(seconds[name]):10.1f}{tokens / median:11.0f}"
            f"{peaks[name] / 1e9:14.1f}{work / peaks[name] / median:9.0%}"
        )
    print(
        f"\nours runs at {medians['torch'] / medians['ours']:.2f}x of torch (above 1: ours is faster);"
        " 'of peak' is the time the step's matrix products would take at the library's own best"
        " rate, divided by the time it took"
    )


if __name__ == "__main__":
    app.run(main)
