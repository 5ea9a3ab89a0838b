"""Is a plan what XLA makes of it? Predicted memory and collectives beside those of the compiled training step.

    python benchmarks/plan.py
    python benchmarks/plan.py --cells=llama

Eight simulated devices, small models of two families, meshes, policies of remat, accumulation. Arguments are the state
and the batch of one device; temporaries everything else that XLA sets aside; both are its `memory_analysis`. Collective
bytes are those of the arrays, each turn of a loop counted, scalars left out, and behind them the number of arrays; the
CPU has no reduce-scatter and reduces everywhere instead, so both are one column. It computes bfloat16 in float32, which
the last rows show. Ends with 1 if a float32 row is off by more than 15 %.
"""

import os
import pathlib
import sys

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
from absl import app, flags  # noqa: E402

import model  # noqa: E402
from model import presets  # noqa: E402
from tests import compiled  # noqa: E402
from train import per_device, recipe  # noqa: E402
from train.losses import LossConfig  # noqa: E402
from train.optimizer import OptimizerConfig  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("cells", "", "only rows that begin so, such as llama")

SIZES = dict(vocab_size=2048, context_length=256, layers=4, width=256, heads=8)
MODELS = {
    "gpt2": presets.config("gpt2-124m", **SIZES, hidden=1024),
    "bloom": presets.config("bloom-560m", **SIZES, hidden=768),
    "llama": model.ModelConfig(**SIZES, kv_heads=4, hidden=704),
}
DATA, FSDP = {"data": 8}, {"fsdp": 8}
THREE = {"data": 2, "fsdp": 2, "tensor": 2}
TWO = {"fsdp": 4, "tensor": 2}
LONG = {"data": 2, "sequence": 2, "tensor": 2}
CELLS = [
    ("gpt2", DATA, "none", "float32", 1),
    ("gpt2", DATA, "dots", "float32", 1),
    ("gpt2", DATA, "full", "float32", 1),
    ("gpt2", FSDP, "none", "float32", 1),
    ("gpt2", THREE, "none", "float32", 1),
    ("gpt2", THREE, "full", "float32", 1),
    ("llama", DATA, "none", "float32", 2),
    ("llama", FSDP, "dots", "float32", 1),
    ("llama", FSDP, "full", "float32", 2),
    ("llama", THREE, "none", "float32", 1),
    ("llama", THREE, "full", "float32", 1),
    ("llama", LONG, "none", "float32", 1),
    ("bloom", TWO, "none", "float32", 1),
    ("bloom", TWO, "dots", "float32", 2),
    ("bloom", {"data": 4, "fsdp": 2}, "full", "float32", 1),
    ("llama", FSDP, "full", "bfloat16", 1),
    ("llama", THREE, "none", "bfloat16", 1),
]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    print(f"jax {jax.__version__}, 8 simulated CPU devices; MB of one device, planned / compiled\n")
    print("| step | arguments | temporaries | both, ratio | gathered | reduced | exchanged |")
    print("|---|---|---|---|---|---|---|")
    off = 0
    for name, sizes, remat, dtype, parts in CELLS:
        mesh = ",".join(f"{axis}:{size}" for axis, size in sizes.items())
        label = f"{name} {mesh} remat {remat} {dtype}{f' in {parts} parts' * (parts > 1)}"
        if not label.startswith(FLAGS.cells):
            continue
        asked = per_device.Asked(
            MODELS[name],
            256,
            recipe.Train(steps=10, batch_size=16, accumulate=parts),
            OptimizerConfig(),
            LossConfig(),
            model.Runtime(dtype=dtype, remat=remat),
        )
        cells, ratio = row(asked, sizes)
        off += dtype == "float32" and abs(ratio - 1) > 0.15
        print(f"| {label} | {' | '.join(cells)} |", flush=True)
    print(f"\n{off or 'no'} float32 rows are off by more than 15 % of their memory")
    sys.exit(bool(off))


def row(asked: per_device.Asked, sizes: dict[str, int]) -> tuple[list[str], float]:
    """The cells of a step, and planned over compiled memory."""
    planned, made = per_device.budget(asked, sizes), compiled.compile_step(asked, sizes)
    memory, theirs = made.memory_analysis(), compiled.collectives(made.as_text())
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    ratio = planned.peak / (arguments + temporaries)
    cells = [
        f"{planned.arguments / 1e6:.2f} / {arguments / 1e6:.2f}",
        f"{planned.cost.peak / 1e6:.1f} / {temporaries / 1e6:.1f} = {planned.cost.peak / temporaries:.2f}",
        f"{ratio:.2f}",
    ]
    for kinds in (("all-gather",), ("all-reduce", "reduce-scatter"), ("all-to-all",)):
        ours = sum(each.bytes for each in planned.sent if each.kind in kinds)
        count = sum(each.count for each in planned.sent if each.kind in kinds)
        found, there = map(sum, zip(*(theirs.get(kind, (0, 0)) for kind in kinds), strict=True))
        text = f"{ours / 1e6:.1f} / {there / 1e6:.1f} in {count} / {found}"
        cells.append(text if max(ours, there) > 1e4 else "")
    return cells, ratio


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    app.run(main)
