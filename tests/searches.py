"""What do we find where `goldens/searches.json` says what Hugging Face finds, on the weights of the parity goldens?"""

import functools
import json
import pathlib
from typing import Any

import model
from decode import batch
from decode.requests import Completion, Request
from decode.settings import Settings
from tests import agreement, references
from tests.goldens import make_parity, make_searches

CASES: list[dict[str, Any]] = [
    case
    for part in json.loads(pathlib.Path(make_searches.PATH).read_text()).values()
    for case in part["cases"]
]


class Numbers:
    """A tokenizer whose text is the ids; 0 is padding, and begins a target unless another token does."""

    bos_id = None
    eos_ids = prefix_ids = suffix_ids = ()
    digest = "1" * 64

    def __init__(self, start_id: int):
        self.start_id = start_id

    def decode(self, ids):
        return " ".join(map(str, ids))


@functools.cache
def lm(name: str) -> model.LM:
    """Our model with the weights of a parity golden."""
    reference = references.REFERENCES[name]
    tensors = references.weights(reference, make_parity.read(name)[0]["shapes"])
    config, params = agreement.load(reference, tensors)
    return model.LM(config, params, Numbers(make_searches.START.get(name, 0)), model.build(config))


def cases(name: str, key: str) -> list[dict[str, Any]]:
    """The cases of one model that have a setting."""
    return [case for case in CASES if case["model"] == name and key in case["given"]]


def ours(name: str, asked: list[dict[str, Any]]) -> list[list[Completion]]:
    """Our completions of each case, all of them asked for in one call."""
    made = [
        Request(prompt, _settings(name, case["given"]), f"{i} {place}")
        for i, case in enumerate(asked)
        for place, prompt in enumerate(case["prompts"])
    ]
    found = batch.generate(lm(name), made, seed=0, batch_size=12)
    return [[c for c in found if str(c.id).split()[0] == str(i)] for i in range(len(asked))]


def _settings(name: str, given: dict[str, Any]) -> Settings:
    given = dict(given)
    ends = given.pop("ends", make_searches.ENDS[name])
    count = given.pop("num_return_sequences", 1)
    last = 2 if name == "bart" else None  # the default of its config.json
    return Settings(
        max_new_tokens=9, n=count, stop_token_ids=ends, forced_eos_token_id=last, **given
    )
