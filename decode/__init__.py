"""How does a model become text? `decode.generate(lm, prompts, settings, seed=0)`, and `decode.stream`."""

from decode import batch
from decode import requests as asked
from decode.requests import Completion, Request
from decode.settings import Settings

generate = batch.generate
stream = batch.stream
requests = asked.requests

__all__ = ["Completion", "Request", "Settings", "generate", "requests", "stream"]
