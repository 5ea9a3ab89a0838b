"""How does a model become text? `decode.generate(lm, prompts, settings, seed=0)`, and `decode.stream`.

And an encoder labels: `decode.classify(lm, texts)`, `decode.tag`, `decode.fill`.
"""

from decode import batch, labels
from decode import requests as asked
from decode.requests import Completion, Request
from decode.settings import Settings

generate = batch.generate
stream = batch.stream
requests = asked.requests
classify = labels.classify
tag = labels.tag
fill = labels.fill
entities = labels.entities

__all__ = [
    "Completion",
    "Request",
    "Settings",
    "classify",
    "entities",
    "fill",
    "generate",
    "requests",
    "stream",
    "tag",
]
