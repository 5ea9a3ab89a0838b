"""Theirs: what does the config.json of encoders and encoder–decoders say of their weights? One form per type."""

from typing import Any

from model import forms
from model.config import GATED, ModelConfig, Scores
from model.forms import SIZES, Form, Theirs


def _read_t5(theirs: Theirs) -> dict[str, Any]:
    tied = theirs.get("tie_word_embeddings", True)
    act = theirs["feed_forward_proj"].removeprefix("gated-")
    gated = act != theirs["feed_forward_proj"]
    if gated and act == "gelu":  # "for backwards compatibility", in their words
        act = "gelu_new"
    return dict(
        layers=theirs.get("num_decoder_layers") or theirs["num_layers"],
        activation=forms.activation("feed_forward_proj", act, gated),
        tied=tied,
        embedding="head_scaled" if theirs.get("scale_decoder_outputs", tied) else "plain",
    )


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    act = GATED.get(config.activation, config.activation)
    names = {"gelu_tanh": "gelu" if config.gated else "gelu_new"}
    scaled = config.embedding == "head_scaled"
    written = dict(
        num_decoder_layers=config.layers,
        feed_forward_proj="gated-" * config.gated + names.get(act, act),
        tie_word_embeddings=config.tied,
    )
    return written if scaled == config.tied else written | {"scale_decoder_outputs": scaled}


def _read_bert(theirs: Theirs) -> dict[str, Any]:
    if not theirs["type_vocab_size"]:
        raise forms.refused("type_vocab_size", theirs["type_vocab_size"], ("1", "more"))
    return dict(activation=forms.activation("hidden_act", theirs["hidden_act"]))


def _write_bert(config: ModelConfig) -> dict[str, Any]:
    return dict(hidden_act=forms.their_activation(config))


def _read_roberta(theirs: Theirs) -> dict[str, Any]:
    if theirs.get("pad_token_id", 1) != 1:  # their positions count from one behind it
        raise forms.refused("pad_token_id", theirs["pad_token_id"], (1,))
    return _read_bert(theirs) | dict(context_length=theirs["max_position_embeddings"] - 2)


def _write_roberta(config: ModelConfig) -> dict[str, Any]:
    padded = dict(max_position_embeddings=config.context_length + 2, pad_token_id=1)
    return _write_bert(config) | padded


def _check_same(theirs: Theirs, *pairs: tuple[str, str]) -> None:
    for one, two in pairs:
        if theirs.get(one) is not None and theirs.get(two) != theirs.get(one):
            raise forms.refused(one, theirs[one], (f"the same as {two}",))


def _read_bart(theirs: Theirs) -> dict[str, Any]:
    _check_same(
        theirs,
        ("encoder_ffn_dim", "decoder_ffn_dim"),
        ("encoder_attention_heads", "decoder_attention_heads"),
    )
    return dict(
        activation=forms.activation("activation_function", theirs["activation_function"]),
        embedding="scaled_normed" if theirs["scale_embedding"] else "normed",
    )


def _write_bart(config: ModelConfig) -> dict[str, Any]:
    return dict(
        activation_function=forms.their_activation(config),
        scale_embedding=config.embedding.startswith("scaled"),
        encoder_ffn_dim=config.hidden,
        encoder_attention_heads=config.heads,
    )


def _read_marian(theirs: Theirs) -> dict[str, Any]:
    _check_same(theirs, ("decoder_vocab_size", "vocab_size"))
    embedding = "scaled" if theirs["scale_embedding"] else "plain"
    return _read_bart(theirs) | {"embedding": embedding}


BERT_LIKE: dict[str, Any] = dict(
    fixed=dict(
        family="encoder_only",
        position="learned",
        norm="layer",
        block="post",
        bias="all",
        embedding="normed",
    ),
    defaults={
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "activation": "gelu",
        "tie_word_embeddings": True,
        "type_vocab_size": 2,
        "sinusoidal_pos_embds": False,
    },
    demands={"position_embedding_type": ("absolute", None)},
)
BERT_KEYS = {
    **SIZES,
    "layer_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tied",
    "type_vocab_size": "token_types",
}
BART_LIKE: dict[str, Any] = dict(
    fixed=dict(
        family="encoder_decoder",
        norm="layer",
        block="post",
        bias="all",
        tied=True,
    ),
    keys={
        "vocab_size": "vocab_size",
        "d_model": "width",
        "decoder_layers": "layers",
        "encoder_layers": "encoder_layers",
        "decoder_attention_heads": "heads",
        "decoder_ffn_dim": "hidden",
        "max_position_embeddings": "context_length",
    },
    defaults={"activation_function": "gelu", "scale_embedding": False},
    demands={
        "tie_word_embeddings": (True,),
        "normalize_before": (False,),
        "add_final_layer_norm": (False,),
        "add_bias_logits": (False,),
        "extra_pos_embeddings": (2,),
    },
)

FORMS = {
    "bert": Form(
        classes={
            "BertForMaskedLM": "lm",
            "BertForPreTraining": "lm",
            "BertForSequenceClassification": "sequence",
            "BertForTokenClassification": "token",
            "BertModel": "none",
        },
        pairs="BertForPreTraining",
        keys=BERT_KEYS,
        read=_read_bert,
        write=_write_bert,
        **BERT_LIKE,
    ),
    "roberta": Form(
        classes={
            "RobertaForMaskedLM": "lm",
            "RobertaForSequenceClassification": "sequence",
            "RobertaForTokenClassification": "token",
            "RobertaModel": "none",
        },
        keys=BERT_KEYS,
        read=_read_roberta,
        write=_write_roberta,
        **(BERT_LIKE | dict(fixed=BERT_LIKE["fixed"] | dict(position="learned_from_2"))),
    ),
    "distilbert": Form(
        classes={
            "DistilBertForMaskedLM": "lm",
            "DistilBertForSequenceClassification": "sequence",
            "DistilBertForTokenClassification": "token",
            "DistilBertModel": "none",
        },
        keys={
            "vocab_size": "vocab_size",
            "dim": "width",
            "n_layers": "layers",
            "n_heads": "heads",
            "hidden_dim": "hidden",
            "max_position_embeddings": "context_length",
            "tie_word_embeddings": "tied",
        },
        **(BERT_LIKE | dict(fixed=BERT_LIKE["fixed"] | dict(norm_epsilon=1e-12))),
        **forms.activations("activation"),
    ),
    "t5": Form(
        classes={"T5ForConditionalGeneration": "lm", "T5Model": "lm"},
        keys={
            "vocab_size": "vocab_size",
            "n_positions": "context_length",
            "d_model": "width",
            "num_layers": "encoder_layers",
            "num_heads": "heads",
            "d_kv": "head_size",
            "d_ff": "hidden",
            "layer_norm_epsilon": "norm_epsilon",
        },
        fixed=dict(family="encoder_decoder", position="relative", scores=Scores(scale=1.0)),
        read=_read_t5,
        write=_write_t5,
        defaults={
            "n_positions": 512,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "relu",
        },
        demands={
            "relative_attention_num_buckets": (32,),
            "relative_attention_max_distance": (128,),
        },
    ),
    "bart": Form(
        classes={"BartForConditionalGeneration": "lm", "BartModel": "lm"},
        read=_read_bart,
        write=_write_bart,
        **(BART_LIKE | dict(fixed=BART_LIKE["fixed"] | dict(position="learned_from_2"))),
    ),
    "marian": Form(
        classes={"MarianMTModel": "lm", "MarianModel": "lm"},
        read=_read_marian,
        write=_write_bart,
        **(
            BART_LIKE
            | dict(
                fixed=BART_LIKE["fixed"] | dict(position="sinusoidal_halves", bias="output"),
                demands=BART_LIKE["demands"] | {"share_encoder_decoder_embeddings": (True,)},
            )
        ),
    ),
}
