"""How does a model become text? `decode.generate(lm, prompts, settings, seed=0)`, and `decode.stream`."""

from decode import batch, settings
from decode.settings import Completion, Request, Settings

generate = batch.generate
stream = batch.stream
requests = settings.requests

__all__ = ["Completion", "Request", "Settings", "generate", "requests", "stream"]
