"""What does more context buy a transformer, and what a recurrent network? Loss by how many tokens each may see.

    python launch.py train --config=configs/context.py:transformer --workdir=runs/context-transformer
    python launch.py train --config=configs/context.py:lstm --workdir=runs/context-lstm
    python launch.py train --config=configs/context.py:gru --workdir=runs/context-gru
    python benchmarks/context.py --run=transformer:runs/context-transformer --run=lstm:runs/context-lstm \\
        --run=gru:runs/context-gru --workdir=runs/context

Runs of the same text and tokenizer. The same held-out targets for every run and every length, each predicted from
exactly the last so many tokens of its document. Prints a line per run: parameters, tokens of training, nats per token
by length; and draws them, with their intervals in the numbers beside the picture.
"""

import pathlib
import sys

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import jax  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from model import errors  # noqa: E402
from train import context_curve, evaluate  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("run", [], "NAME:DIRECTORY of a run; repeatable")
flags.DEFINE_list("contexts", [], "numbers of tokens; by default 1, 2, 4, ... up to the window")
flags.DEFINE_integer("targets", 2048, "that are predicted, at most", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of the choice of targets")
flags.DEFINE_string("workdir", "runs/context", "figures/context.png and its numbers go there")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)
    try:
        numbers = measured()
        header, rows = context_curve.table(numbers)
        print(
            f"nats per token of {numbers['targets']:,} targets of {numbers['documents']:,} held-out documents, "
            f"by tokens of context; jax {jax.__version__} on {jax.default_backend()}\n"
        )
        print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
        for row in rows:
            print(f"| {' | '.join(row)} |")
        print(f"\npicture: {context_curve.draw(numbers, pathlib.Path(FLAGS.workdir))}")
    except errors.BadInput as error:
        print(f"context: {error}", file=sys.stderr)
        sys.exit(2)


def measured() -> dict:
    """What the flags ask for."""
    named = [text.partition(":") for text in FLAGS.run]
    names = [name for name, _, _ in named]
    for name, colon, directory in named:
        if not (name and colon and directory) or names.count(name) > 1:
            raise errors.BadInput(
                f"--run={name}{colon}{directory}: give each run as NAME:DIRECTORY, with a name of its own"
            )
    if not named:
        raise errors.BadInput("no run is given; add --run=NAME:DIRECTORY, once for each")
    for text in FLAGS.contexts:
        if not text.isdecimal():
            raise errors.BadInput(f"--contexts has {text!r}; it takes whole numbers such as 1,2,4")
    runs = {name: evaluate.opened(directory) for name, _, directory in named}
    sizes = [int(text) for text in FLAGS.contexts]
    return context_curve.measure(runs, sizes, FLAGS.targets, FLAGS.seed)


if __name__ == "__main__":
    app.run(main)
