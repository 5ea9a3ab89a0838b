"""What does `generate` of transformers find with beams and by contrastive search? Writes `searches.json` here.

`python -m tests.goldens.make_searches`, with torch and transformers; diverse beams and contrastive search left
transformers with version 5, so `... moved` asks for them with 4.44.2. The models are those of make_parity.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np

from tests import references
from tests.goldens import make_parity

PATH = pathlib.Path(__file__).resolve().parent / "searches.json"
PROMPTS = [[7, 31, 12, 44, 9], [51], [23, 8, 60]]
START = {"t5": 0, "bart": 2}
ENDS = {"gpt2": [3, 48, 42, 46], "t5": [11, 15, 36, 40], "bart": [2, 13, 44]}
BEAMS: dict[str, tuple[int, list[dict[str, Any]]]] = {
    "gpt2": (
        5,
        [
            dict(early_stopping=True, length_penalty=0.0),
            dict(early_stopping=False, length_penalty=1.3),
            dict(early_stopping="never", length_penalty=2.0),
            dict(early_stopping=False, length_penalty=-0.7),
            dict(early_stopping="never", length_penalty=-1.0, ends=[46]),
            dict(early_stopping="never", length_penalty=0.6, ends=[]),
            dict(no_repeat_ngram_size=2, ends=[]),
            dict(min_new_tokens=5),
            dict(repetition_penalty=1.7),
        ],
    ),
    "t5": (
        2,
        [
            dict(early_stopping=True),
            dict(early_stopping=False, length_penalty=2.0),
            dict(early_stopping="never", length_penalty=1.0, ends=[11]),
            dict(repetition_penalty=1.4, no_repeat_ngram_size=2),
        ],
    ),
    "bart": (
        3,
        [
            dict(early_stopping=False, length_penalty=0.5),
            dict(early_stopping="never", length_penalty=1.5),
            dict(early_stopping=True, length_penalty=-0.5, ends=[44]),
        ],
    ),
}
# Its scorer writes the first end token in place of any other, so each has one.
DIVERSE = [
    dict(early_stopping=True, diversity_penalty=0.7, ends=[42]),
    dict(early_stopping="never", diversity_penalty=2.5, length_penalty=1.4, ends=[48]),
    dict(
        early_stopping=True,
        diversity_penalty=1.1,
        repetition_penalty=1.5,
        length_penalty=0.0,
        ends=[3],
    ),
]
CONTRASTIVE = [(0.6, 5), (0.25, 8), (1.0, 6)]


def build(name: str) -> Any:
    """Their model with the weights of the parity golden."""
    import transformers

    reference = references.REFERENCES[name]
    about, _, _ = make_parity.read(name)
    config = getattr(transformers, reference.builds).config_class(**reference.config)
    theirs = getattr(transformers, reference.builds)(config)
    import torch

    tensors = references.weights(reference, about["shapes"])
    loaded = theirs.load_state_dict(
        {key: torch.tensor(array) for key, array in tensors.items()}, strict=False
    )
    assert not loaded.unexpected_keys, loaded
    theirs.tie_weights()
    return theirs.eval()


def ask(theirs: Any, name: str, prompts: list[list[int]], given: dict[str, Any]) -> list[dict]:
    """Its sequences and scores for some prompts, read together: targets padded on the left, sources on the right."""
    import torch
    import transformers

    two_sided, longest = name in START, max(map(len, prompts))
    turn = -1 if two_sided else 1
    short = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([([0] * n + p[::turn])[::turn] for n, p in zip(short, prompts, strict=True)])
    mask = torch.tensor([([0] * n + [1] * (longest - n))[::turn] for n in short])
    ends = given.pop("ends", ENDS[name])
    with torch.no_grad():
        said = theirs.generate(
            ids,
            generation_config=transformers.GenerationConfig(
                max_new_tokens=9,
                eos_token_id=ends or None,
                pad_token_id=0,
                decoder_start_token_id=START.get(name),
                return_dict_in_generate=True,
                output_scores=True,
                do_sample=False,
                # Version 5 counts the encoder's layers when it makes this decoder's cache.
                use_cache=name != "t5" or "penalty_alpha" in given,
                **given,
            ),
            attention_mask=mask,
        )
    start = 1 if two_sided else longest
    count = len(said.sequences) // len(prompts)
    scores = getattr(said, "sequences_scores", None)
    found = []
    for row, tokens in enumerate(said.sequences.tolist()):
        tokens = tokens[start:]
        stop = next((i + 1 for i, t in enumerate(tokens) if t in ends), len(tokens))
        score = None if scores is None else float(np.float32(scores[row]))
        found.append({"prompt": row // count, "tokens": tokens[:stop], "score": score})
    return found


def case(name: str, theirs: Any, prompts: list[list[int]], given: dict[str, Any]) -> dict[str, Any]:
    """One line of the file."""
    found = ask(theirs, name, prompts, dict(given))
    return {"model": name, "prompts": prompts, "given": given, "found": found}


def main(moved: bool) -> None:
    """Writes the cases that this version of transformers has, and keeps the others."""
    import torch
    import transformers

    torch.set_num_threads(1)
    held = json.loads(PATH.read_text()) if PATH.exists() else {}
    cases = []
    if moved:
        theirs = {name: build(name) for name in ("gpt2", "t5")}
        groups = dict(num_beams=4, num_beam_groups=2, num_return_sequences=4)
        cases += [case("gpt2", theirs["gpt2"], PROMPTS, groups | given) for given in DIVERSE]
        cases += [
            case(name, theirs[name], [prompt], dict(penalty_alpha=alpha, top_k=k))
            for name in theirs
            for alpha, k in CONTRASTIVE
            for prompt in PROMPTS[:: 2 if name == "t5" else 1]
        ]
    else:
        for name, (width, all_given) in BEAMS.items():
            theirs = build(name)
            for given in all_given:
                given = dict(num_beams=width, num_return_sequences=2) | given
                cases.append(case(name, theirs, PROMPTS, given))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    held["moved" if moved else "beams"] = {"versions": versions, "cases": cases}
    lines = [
        f'{json.dumps(kind)}: {{"versions": {json.dumps(part["versions"])}, "cases": [\n'
        + ",\n".join(json.dumps(one) for one in part["cases"])
        + "\n]}"
        for kind, part in sorted(held.items())
    ]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main("moved" in sys.argv[1:])
