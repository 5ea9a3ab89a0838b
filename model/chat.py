"""How does a conversation become the text a chat model was trained on?

By the template that came with the tokenizer, rendered as transformers renders it: in jinja2's sandbox.
"""

import datetime
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from model import errors

# The conversations of a tokenizer of our own: `<|user|>Where is Ganymede?<|end|><|assistant|>`. What ends at a special
# token is encoded alike whatever follows, so the ids of a conversation begin with those of its first turns.
END = "<|end|>"
SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", END)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
OWN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' ~ message.role ~ ' is none of system, user, assistant') }}{% endif %}"
    "{{ '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says; the text is the same without the marks."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def templates(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name: those in files of their own, else those in tokenizer_config.json."""
    loose = {
        "default" if name == "chat_template.jinja" else pathlib.PurePath(name).stem: raw.decode(
            "utf-8", "replace"
        )
        for name, raw in files.items()
        if name.endswith(".jinja")
    }
    inside = settings.get("chat_template") or {}
    if isinstance(inside, str):
        inside = {"default": inside}
    if isinstance(inside, list):
        inside = {
            entry["name"]: entry["template"]
            for entry in inside
            if isinstance(entry, dict) and {"name", "template"} <= set(entry)
        }
    return {**inside, **loose}


def render(
    template: str,
    messages: Iterable[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    tokens: Mapping[str, str],
) -> str:
    """The text of `messages`; `tokens` are the special tokens a template may name, such as `bos_token`."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **tokens,
        )
    except Exception as error:  # a template is somebody's program: anything may go wrong in it
        raise errors.BadInput(
            f"the chat template fails: {' '.join(str(error).split())} ({type(error).__name__}); "
            "change the messages, or give the prompt as text"
        ) from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
