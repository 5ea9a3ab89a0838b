"""What do the models of torch and transformers say? Writes one file for each reference beside this one.

`python -m tests.goldens.make_parity`, with torch and transformers, whose versions the files name. A file holds the
config.json, names and shapes of the tensors (`references.weights` draws their values), three rows of tokens, and the
float32 logits at some of their positions, always the first and the last among them.
"""

import json
import pathlib
from typing import Any

import numpy as np

from tests import oracles, references
from tests.references import Reference, Row

HERE = pathlib.Path(__file__).resolve().parent
POSITIONS = 11  # of a row, at most: so that all files together stay below 350 KB


def kept(said_TV: np.ndarray) -> np.ndarray:
    """The logits of a row that a golden has room for; those of a whole text [C] are one."""
    if said_TV.ndim == 1:
        return said_TV[None]
    length = len(said_TV)
    return said_TV[np.unique(np.linspace(0, length - 1, POSITIONS).round().astype(int))]


def write(name: str, reference: Reference, versions: str) -> None:
    """Asks a reference and writes what it says."""
    shapes = oracles.shapes(reference)
    theirs = oracles.build(reference, references.weights(reference, shapes))
    rows = references.rows(reference)
    said = [oracles.logits(theirs, row).detach().numpy() for row in rows]
    about = {
        "versions": versions,
        "config": references.config_text(reference),
        "shapes": shapes,
        "rows": [{side: array.tolist() for side, array in row.items()} for row in rows],
    }
    logits = np.concatenate([kept(one) for one in said])
    np.savez_compressed(HERE / f"{name}.npz", about=json.dumps(about).encode(), logits=logits)


def read(name: str) -> tuple[dict[str, Any], list[Row], np.ndarray]:
    """What is known about a reference, the rows it was asked, and its logits [positions kept, V]."""
    with np.load(HERE / f"{name}.npz") as golden:
        about, logits = json.loads(bytes(golden["about"])), golden["logits"]
    rows = [{k: np.array(v, np.int32) for k, v in row.items()} for row in about["rows"]]
    return about, rows, logits


def main() -> None:
    """Writes every file."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for name, reference in references.REFERENCES.items():
        write(name, reference, versions)


if __name__ == "__main__":
    main()
