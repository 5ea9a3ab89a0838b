"""Does a mesh change what a model computes? Loss, gradient and training on eight simulated devices against one.

    python benchmarks/sharding.py
    python benchmarks/sharding.py --only=llama --only=t5

Prints one line for each family and mesh: the relative difference of the loss; of the gradient, in units of each
tensor's largest entry, the worst tensor's; and of the losses of five steps of training with dropout and accumulation,
for the families that train. Ends with 1 where a bound of tests/meshes.py is broken.
"""

import pathlib
import sys

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

from model.config import RECURRENT  # noqa: E402
from tests import meshes, variants  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("only", [], list(variants.CONFIGS), "models; all by default")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    print(f"jax {jax.__version__}, 8 simulated CPU devices, float32\n")
    print("| model | family | mesh | loss | gradient | training |\n|---|---|---|---|---|---|")
    broken = 0
    for name in FLAGS.only or variants.CONFIGS:
        config = meshes.divisible(variants.CONFIGS[name])
        trains = config.family in ("decoder_only", *RECURRENT)
        alone = meshes.training(config, dict(data=1), devices=1) if trains else None
        for label, sizes in meshes.MESHES.items():
            if "expert" in sizes and not config.experts.count:
                continue
            loss, gradient = meshes.differences(config, sizes)
            steps = 0.0
            if alone:
                steps = float(np.abs(np.divide(meshes.training(config, sizes), alone) - 1).max())
            cells = f"{loss:.0e} | {gradient:.0e} | {f'{steps:.0e}' if alone else ''}"
            print(f"| {name} | {config.family} | {label} | {cells} |", flush=True)
            broken += max(loss, steps) > meshes.LOSS_BOUND or gradient > meshes.GRADIENT_BOUND
    if broken:
        print(f"\nBeyond its bound: {broken}")
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
