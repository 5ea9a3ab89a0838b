"""Theirs: which `ModelConfig` does a Hugging Face config.json describe, and which config.json describes ours?

What a form demands and a file says otherwise we would compute differently, so it is refused by name.
"""

import dataclasses
from typing import Any

from model import decoder_forms, encoder_forms, errors, forms
from model.config import Head, ModelConfig
from model.forms import Form, Theirs

FORMS: dict[str, Form] = {**decoder_forms.FORMS, **encoder_forms.FORMS}
COMMON: dict[str, tuple] = {  # of every config.json: what it may say, when it says anything
    "quantization_config": (None,),
    "is_decoder": (False,),
    "add_cross_attention": (False, None),
    "pruned_heads": (None, {}),
}


def model_config(theirs: Theirs, names: Any = None) -> ModelConfig:
    """What a parsed config.json describes.

    `names`, the tensors' where they are known, tell whether T5's head is its own: transformers 5 writes the same config
    for both.

    Raises:
        BadInput: naming a `model_type`, class or setting that we do not compute.
    """
    kind = _kind(theirs)
    form = FORMS[kind]
    said = {form.synonyms.get(key, key): value for key, value in theirs.items()}
    values = {**form.defaults, **said}
    forms.check_kinds(values)
    for key, allowed in {**COMMON, **form.demands}.items():
        if key in values and values[key] not in allowed:
            raise forms.refused(key, values[key], allowed)
    missing = [key for key in form.keys if key not in values]
    if missing:
        raise errors.BadInput(f"config.json lacks {', '.join(missing)}, which a {kind} model has")
    ours = {field: values[key] for key, field in form.keys.items() if values[key] is not None}
    ours |= form.fixed | form.read(values)
    if kind == "t5" and names is not None:
        ours["tied"] = ours["tied"] and "lm_head.weight" not in names
    head = _head(form, kind, values)
    if head != Head():
        ours["head"] = head
    return errors.build(ModelConfig, ours, "config.json, read as ours: model")


def their_config(architecture: str, config: ModelConfig) -> dict[str, Any]:
    """The config.json that describes a model of ours, without the ids of special tokens and without its dtype."""
    form = FORMS[architecture]
    cls = next(
        name
        for name, kind in form.classes.items()
        if kind == config.head.kind and (name == form.pairs) == config.head.next_sentence
    )
    written: dict[str, Any] = {"architectures": [cls], "model_type": architecture}
    written |= {key: getattr(config, field) for key, field in form.keys.items()}
    only = {key: allowed[0] for key, allowed in form.demands.items() if allowed[0] is not None}
    written |= only | form.write(config)
    if config.head.labels:
        written["id2label"] = {str(i): label for i, label in enumerate(config.head.labels)}
        written["label2id"] = {label: i for i, label in enumerate(config.head.labels)}
    return written


def holding(config: ModelConfig) -> str | None:
    """The first architecture whose config.json can say all that ours does; None when none can."""
    return next((name for name in FORMS if _holds(name, config)), None)


def _holds(architecture: str, config: ModelConfig) -> bool:
    try:
        return _plain(model_config(their_config(architecture, config))) == _plain(config)
    except (errors.BadInput, StopIteration, KeyError):  # no such class, activation or scaling
        return False


def _plain(config: ModelConfig) -> ModelConfig:
    """The same with the usual scale left to follow from the heads."""
    usual = config.scores.scale == config.head_size**-0.5
    scores = dataclasses.replace(config.scores, scale=0.0 if usual else config.scores.scale)
    return dataclasses.replace(config, scores=scores)


def _kind(theirs: Theirs) -> str:
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in FORMS:
        hint = errors.nearest(str(kind), FORMS)
        raise errors.BadInput(
            f"config.json has model_type {kind!r}{hint}; known: {', '.join(FORMS)}"
        )
    return kind


def _head(form: Form, kind: str, theirs: Theirs) -> Head:
    named = theirs.get("architectures") or list(form.classes)[:1]
    if named[0] not in form.classes:
        raise forms.refused("architectures", named, tuple(form.classes))
    head = form.classes[named[0]]
    if head in ("lm", "none"):
        return Head(head, next_sentence=named[0] == form.pairs)
    labels = theirs.get("id2label") or {
        i: f"LABEL_{i}" for i in range(theirs.get("num_labels") or 2)
    }
    if not all(str(key).isdecimal() for key in labels):
        raise errors.BadInput(
            f"config.json: id2label is {labels!r}; its keys must be whole numbers"
        )
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    relu = kind == "distilbert" and head == "sequence"
    return Head(head, names, "relu" if relu else "tanh")
