"""Are draws samples of the distribution that settings define? The goodness-of-fit report.

    python benchmarks/goodness.py
    python benchmarks/goodness.py --tails=0

For every sampler and composition: 200,000 draws against exact enumeration in float64 by chi-square, refused at odds of
1e-6; what change of the likeliest token's probability such a test refuses with 99 % power; and as control the same
draws held against a temperature that is 6 % off, which must be refused. Then the tail, in a vocabulary of 130,000:
draws of tokens 18 to 20 nats below the top, beside `jax.random.categorical` in its default precision. Ends with 1 where
a fit is refused, or a control is not.
"""

import pathlib
import sys

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import jax  # noqa: E402
from absl import app, flags  # noqa: E402

from tests import goodness  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_integer("draws", 200_000, "of each sampler")
flags.DEFINE_integer("tails", 3, "how many of the tail cases, each of some minutes; 0 is none")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    bad = 0
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {FLAGS.draws} draws each\n")
    print(
        "| sampler | kept | odds of the fit | refuses changes above | control: temperature 6 % off |"
    )
    print("|---|---|---|---|---|")
    for name, settings in goodness.cases().items():
        exact = goodness.exact(settings)
        odds = goodness.fit(goodness.observed(settings, FLAGS.draws), exact)
        control = goodness.fit(goodness.observed(goodness.wrong(settings), FLAGS.draws), exact)
        bad += (odds < goodness.ALPHA) + (control >= goodness.ALPHA)
        resolution = goodness.resolution(exact, FLAGS.draws)
        print(
            f"| {name} | {(exact > 0).sum()} | {odds:.2g} | {resolution:.1%} | {control:.1g} |",
            flush=True,
        )
    print(
        "\n| tail, nats below the top | draws | expected | drawn | odds | `categorical`, default | its odds |"
    )
    print("|---|---|---|---|---|---|---|")
    for tail in goodness.TAILS[: FLAGS.tails]:
        hits, theirs = tail.hits(), tail.hits(jax.random.categorical)
        bad += (tail.odds(hits) < goodness.ALPHA) + (tail.odds(theirs) >= goodness.ALPHA)
        print(
            f"| {tail.gap:g} | {tail.draws} | {tail.expected:.1f} | {hits} | {tail.odds(hits):.2g} "
            f"| {theirs} | {tail.odds(theirs):.1g} |",
            flush=True,
        )
    print(
        f"\n{f'{bad} rows are not as they should be' if bad else 'every fit held, every control was refused'}"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    app.run(main)
