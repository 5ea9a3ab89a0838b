"""Can anybody tell from its numbers that a run was killed? At least fifty kills of real processes, and what differs.

    python benchmarks/kills.py
    python benchmarks/kills.py --cell=LSTM --kills=11 --seed=3

One line per config: in which phases SIGKILL fell, at which steps the run was resumed, and what differs from the same
run left in peace: parameters, optimiser state, sums, metrics, samples, ledger, and the next ten batches. "bitwise" is
every one of them to the bit. A run that changes its mesh, or its number of processes, on the way adds its sums in
another order there: of it batches and counts are equal, and losses within a thousandth ("close"). The controls must be
seen to differ: another seed, and a resume that draws other dropout masks. Ends with 1 where a run differs, a control
does not, or fewer than fifty kills fell.
"""

import collections
import dataclasses
import pathlib
import random
import sys
import tempfile
import time
from typing import Any

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from absl import app, flags  # noqa: E402

from tests import cells, kills  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("cell", [], "words that a cell's name must have one of; all by default")
flags.DEFINE_integer("kills", 5, "of each cell", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of the moments")
flags.DEFINE_boolean("controls", True, "also train what must be seen to differ")
LEAST = 50  # kills of the whole matrix


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    kills.environment()
    began, fell, resumes, differ = time.monotonic(), 0, 0, 0
    chosen = [c for c in cells.CELLS if not FLAGS.cell or any(w in c.name for w in FLAGS.cell)]
    print(f"SIGKILL at moments drawn from seed {FLAGS.seed}\n")
    print("| config | kills in | resumed at | promised | differences |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        source = kills.materials(pathlib.Path(home) / "texts", chosen)
        for number, cell in enumerate(chosen):
            draw = random.Random(f"{FLAGS.seed} {cell.name}")
            places = [pathlib.Path(home) / f"{number}-{name}" for name in ("peace", "killed")]
            whole = kills.in_peace(cell, source, places[0])
            outcome = kills.torment(cell, source, places[1], draw, FLAGS.kills, whole)
            tell(cell, outcome, whole)
            fell, resumes = fell + len(outcome.kills), resumes + len(outcome.resumed)
            differ += bool(outcome.differences)
        missed = 0
        if FLAGS.controls:
            missed = controls(cells.CELLS[0], source, pathlib.Path(home), random.Random(FLAGS.seed))
    minutes = (time.monotonic() - began) / 60
    print(f"\n{fell} kills, {resumes} resumes, differences: {differ}; {minutes:.0f} minutes")
    few = not FLAGS.cell and fell < LEAST
    if few:
        print(f"fewer than {LEAST} kills fell before the runs were done")
    sys.exit(bool(differ or missed or few))


def tell(cell: kills.Cell, outcome: kills.Outcome, whole: dict[str, Any]) -> None:
    """A line of the table."""
    phases = collections.Counter(outcome.kills)
    words = ", ".join(f"{phases[name]} {name}" for name in kills.PHASES if phases[name])
    skipped = len(whole["sums"]["skipped"])
    name = f"{cell.name} ({skipped})" if skipped else cell.name
    steps = " ".join(map(str, outcome.resumed))
    said = ", ".join(sorted(outcome.differences)) or "none"
    print(f"| {name} | {words} | {steps} | {cell.promise} | {said} |", flush=True)


def controls(
    cell: kills.Cell, source: pathlib.Path, home: pathlib.Path, draw: random.Random
) -> int:
    """How many of the runs that must differ do not."""
    whole = kills.in_peace(cell, source, home / "control")
    other = dataclasses.replace(cell, changes={**cell.changes, "seed": 6})
    kills.killed(cell, source, home / "redrawn", draw, 3)
    _, redrawn = kills.finish(cell, source, home / "redrawn", 3, "loop.TRAINING = 7")
    found = {
        "another seed": kills.in_peace(other, source, home / "seed"),
        "a resume with other dropout masks": redrawn,
    }
    missed = 0
    for name, run in found.items():
        seen = [kills.differences(whole, run, promise) for promise in (kills.BITWISE, kills.CLOSE)]
        missed += not all(seen)
        words = [", ".join(sorted(names)) or "none" for names in seen]
        print(f"| control: {name} | | | to differ | {words[0]}; closely: {words[1]} |", flush=True)
    return missed


if __name__ == "__main__":
    app.run(main)
