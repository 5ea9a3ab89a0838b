"""What may change around a request without changing its completion? The invariance matrix, measured on this device.

    python benchmarks/invariance.py
    python benchmarks/invariance.py --family=llama

One line per axis: what is promised, what was measured for each family (three requests: greedy, drawn with top-p, drawn
with penalties), and what a control that breaks the promise on purpose gives, which must be less. "bitwise" is every
token, log-probability and margin to the bit; "same tokens" leaves the last bits of numbers open. Ends with 1 where a
promise is broken or a control passes.
"""

import os
import pathlib
import sys

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax  # noqa: E402
from absl import app, flags  # noqa: E402

from tests import invariance  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("family", [], list(invariance.FAMILIES), "families; all by default")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    families = FLAGS.family or list(invariance.FAMILIES)
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__} on {device.device_kind}, float32, batch_size 8 where not said otherwise\n"
    )
    print(f"| changed | promised | {' | '.join(families)} | control | {' | '.join(families)} |")
    print("|---|---|" + "---|" * (2 * len(families) + 1))
    broken = 0
    for cell in invariance.CELLS:
        measured, controls = [], []
        for family in families:
            lm = invariance.lm(family)
            base = invariance.plain(lm)
            measured.append(invariance.compare(base, cell.change(lm)))
            controls.append(invariance.compare(base, cell.control(lm)))
        broken += sum(not invariance.holds(cell, found) for found in measured)
        broken += sum(invariance.holds(cell, found) for found in controls)
        cells = [cell.axis, cell.promise, *measured, cell.breaks, *controls]
        print(f"| {' | '.join(cells)} |", flush=True)
    said = (
        f"{broken} cells are not as promised"
        if broken
        else "every promise held, every control failed"
    )
    print(f"\n{said}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    app.run(main)
