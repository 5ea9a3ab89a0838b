"""What can a named chip do at best? Published figures, for the ceiling of a plan.

TPU: the system-architecture pages of Google Cloud's documentation, per chip; the interconnect is half of what they give
as bidirectional. GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM; operations are half of what they
print "with sparsity", and the interconnect is half of NVLink's total, which holds within a node: a mesh over more nodes
has less.
"""

import dataclasses

from model import errors


@dataclasses.dataclass(frozen=True)
class Chip:
    """Attributes:
    flops: dense bfloat16 operations per second.
    memory: bytes of HBM.
    bandwidth: bytes per second to and from it.
    links: bytes per second that the chip sends, all its links together; it receives as many at the same time.
    reach: how many chips such links connect; 0 is all of a mesh.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    reach: int = 0


CHIPS = {
    "v4": Chip(275e12, 32e9, 1228e9, 300e9),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
    "v6e": Chip(918e12, 32e9, 1600e9, 400e9),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, reach=8),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, reach=8),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, reach=8),
}


def named(name: str) -> Chip:
    """The chip of that name."""
    if name not in CHIPS:
        raise errors.BadInput(
            f"--chip is {name!r}{errors.nearest(name, CHIPS)}; known: {', '.join(CHIPS)}"
        )
    return CHIPS[name]
