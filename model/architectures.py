"""Under which names, and in which order of axes, do the tensors of each published architecture lie on disk?

One table per architecture, read both ways by `hf`; `rows` says how a row is read.
"""

from model import rows
from model.rows import Architecture, Row

LAYER = "stack/layers_{i}/"
ATTENTION = LAYER + "attention/"
FEED_FORWARD = LAYER + "feed_forward/"

GPT2 = Architecture(
    prefix="transformer.",
    base=(
        rows.row("wte.weight", "embedding/weight", "VD"),
        rows.row("wpe.weight", "stack/position/weight", "PD"),
        *rows.norm("h.{i}.ln_1", LAYER + "attention_norm"),
        *rows.fused("h.{i}.attn.c_attn", LAYER + "attention", "D(QNH)", "(QNH)"),
        rows.row("h.{i}.attn.c_proj.weight", ATTENTION + "out/weight", "(NH)D", "NHD"),
        rows.row("h.{i}.attn.c_proj.bias", ATTENTION + "out/bias", "D"),
        *rows.norm("h.{i}.ln_2", LAYER + "feed_forward_norm"),
        rows.row("h.{i}.mlp.c_fc.weight", FEED_FORWARD + "up/weight", "DF"),
        rows.row("h.{i}.mlp.c_fc.bias", FEED_FORWARD + "up/bias", "F"),
        rows.row("h.{i}.mlp.c_proj.weight", FEED_FORWARD + "down/weight", "FD"),
        rows.row("h.{i}.mlp.c_proj.bias", FEED_FORWARD + "down/bias", "D"),
        *rows.norm("ln_f", "stack/norm"),
    ),
    top=(rows.untied(),),
    copies=(("lm_head.weight", "wte.weight"),),
    aside=(r"\.attn\.(bias|masked_bias)$",),
)

LLAMA_ATTENTION = (
    rows.row("embed_tokens.weight", "embedding/weight", "VD"),
    *rows.norm("layers.{i}.input_layernorm", LAYER + "attention_norm"),
    *rows.maps("layers.{i}.self_attn.", ATTENTION, query="q_proj", key="k_proj", value="v_proj"),
    *rows.maps("layers.{i}.self_attn.", ATTENTION, out="o_proj"),
    rows.row("layers.{i}.self_attn.q_norm.weight", ATTENTION + "query_norm/scale", "H"),
    rows.row("layers.{i}.self_attn.k_norm.weight", ATTENTION + "key_norm/scale", "H"),
    *rows.norm("norm", "stack/norm"),
)
LLAMA_FEED_FORWARD = rows.maps(
    "layers.{i}.mlp.", FEED_FORWARD, gate="gate_proj", up="up_proj", down="down_proj"
)
LLAMA_REST = dict(
    prefix="model.",
    top=(rows.untied(),),
    copies=(("lm_head.weight", "embed_tokens.weight"),),
    aside=(r"rotary_emb\.inv_freq$",),
)
LLAMA = Architecture(
    base=(
        *LLAMA_ATTENTION,
        *rows.norm("layers.{i}.post_attention_layernorm", LAYER + "feed_forward_norm"),
        *LLAMA_FEED_FORWARD,
    ),
    **LLAMA_REST,  # type: ignore[arg-type]
)
EXPERT = "layers.{i}.block_sparse_moe.experts.{j}."
MIXTRAL = Architecture(
    base=(
        *LLAMA_ATTENTION,
        *rows.norm("layers.{i}.post_attention_layernorm", LAYER + "feed_forward_norm"),
        rows.row(
            "layers.{i}.block_sparse_moe.gate.weight", FEED_FORWARD + "router/weight", "ED", "DE"
        ),
        rows.row(EXPERT + "w1.weight", FEED_FORWARD + "gate/weight", "FD", "EDF"),
        rows.row(EXPERT + "w3.weight", FEED_FORWARD + "up/weight", "FD", "EDF"),
        rows.row(EXPERT + "w2.weight", FEED_FORWARD + "down/weight", "DF", "EFD"),
    ),
    **LLAMA_REST,  # type: ignore[arg-type]
)
GEMMA2 = Architecture(
    base=(
        *LLAMA_ATTENTION,
        *rows.norm("layers.{i}.post_attention_layernorm", LAYER + "attention_out_norm"),
        *rows.norm("layers.{i}.pre_feedforward_layernorm", LAYER + "feed_forward_norm"),
        *rows.norm("layers.{i}.post_feedforward_layernorm", LAYER + "feed_forward_out_norm"),
        *LLAMA_FEED_FORWARD,
    ),
    **LLAMA_REST,  # type: ignore[arg-type]
)

BLOOM = Architecture(
    prefix="transformer.",
    base=(
        rows.row("word_embeddings.weight", "embedding/weight", "VD"),
        *rows.norm("word_embeddings_layernorm", "stack/embedding_norm"),
        *rows.norm("h.{i}.input_layernorm", LAYER + "attention_norm"),
        *rows.fused("h.{i}.self_attention.query_key_value", LAYER + "attention", "(NQH)D", "(NQH)"),
        *rows.maps("h.{i}.self_attention.", ATTENTION, out="dense"),
        *rows.norm("h.{i}.post_attention_layernorm", LAYER + "feed_forward_norm"),
        *rows.maps("h.{i}.mlp.", FEED_FORWARD, up="dense_h_to_4h", down="dense_4h_to_h"),
        *rows.norm("ln_f", "stack/norm"),
    ),
    top=(rows.untied(),),
    copies=(("lm_head.weight", "word_embeddings.weight"),),
)

GPT_NEOX = Architecture(
    prefix="gpt_neox.",
    base=(
        rows.row("embed_in.weight", "embedding/weight", "VD"),
        *rows.norm("layers.{i}.input_layernorm", LAYER + "attention_norm"),
        *rows.fused("layers.{i}.attention.query_key_value", LAYER + "attention", "(NQH)D", "(NQH)"),
        *rows.maps("layers.{i}.attention.", ATTENTION, out="dense"),
        *rows.norm("layers.{i}.post_attention_layernorm", LAYER + "feed_forward_norm"),
        *rows.maps("layers.{i}.mlp.", FEED_FORWARD, up="dense_h_to_4h", down="dense_4h_to_h"),
        *rows.norm("final_layer_norm", "stack/norm"),
    ),
    top=(rows.untied("embed_out.weight"),),
    copies=(("embed_out.weight", "embed_in.weight"),),
    aside=(r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
)

BERT_EMBEDDINGS = (
    rows.row("embeddings.word_embeddings.weight", "embedding/weight", "VD"),
    rows.row("embeddings.token_type_embeddings.weight", "types/weight", "YD"),
    rows.row("embeddings.position_embeddings.weight", "stack/position/weight", "PD"),
    *rows.norm("embeddings.LayerNorm", "stack/embedding_norm"),
)
IN_LAYER = "encoder.layer.{i}."
BERT_BASE = (
    *BERT_EMBEDDINGS,
    *rows.maps(IN_LAYER + "attention.self.", ATTENTION, query="query", key="key", value="value"),
    *rows.maps(IN_LAYER + "attention.output.", ATTENTION, out="dense"),
    *rows.norm(IN_LAYER + "attention.output.LayerNorm", LAYER + "attention_norm"),
    *rows.maps(IN_LAYER, FEED_FORWARD, up="intermediate.dense", down="output.dense"),
    *rows.norm(IN_LAYER + "output.LayerNorm", LAYER + "feed_forward_norm"),
)
OLD_NORMS = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
BERT = Architecture(
    prefix="bert.",
    base=(
        *BERT_BASE,
        *rows.dense("pooler.dense", "head/dense", "dD", "Dd", "sequence"),
        *rows.dense("pooler.dense", "pair/dense", "dD", "Dd"),
    ),
    top=(
        *rows.dense("cls.predictions.transform.dense", "head/dense", "dD", "Dd", "lm"),
        *rows.norm("cls.predictions.transform.LayerNorm", "head/norm", "lm"),
        rows.row("cls.predictions.bias", "output/bias", "V", "", "tied"),
        rows.row("cls.predictions.decoder.weight", "output/weight", "VD"),
        rows.row("cls.predictions.decoder.bias", "output/bias", "V", "", "untied"),
        *rows.dense("cls.seq_relationship", "pair/out", "CD", "DC"),
        *rows.dense("classifier", "head/out", "CD", "DC"),
    ),
    aliases=OLD_NORMS,
    copies=(
        ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    aside=(
        r"embeddings\.position_ids$",
        r"pooler\.dense\.",
        r"cls\.seq_relationship\.",
        r"cls\.predictions\.",
    ),
)
ROBERTA = Architecture(
    prefix="roberta.",
    base=BERT_BASE,
    top=(
        *rows.dense("lm_head.dense", "head/dense", "dD", "Dd", "lm"),
        *rows.norm("lm_head.layer_norm", "head/norm", "lm"),
        rows.row("lm_head.bias", "output/bias", "V", "", "tied"),
        rows.row("lm_head.decoder.weight", "output/weight", "VD"),
        rows.row("lm_head.decoder.bias", "output/bias", "V", "", "untied"),
        *rows.dense("classifier.dense", "head/dense", "dD", "Dd", "sequence"),
        *rows.dense("classifier.out_proj", "head/out", "CD", "DC", "sequence"),
        *rows.dense("classifier", "head/out", "CD", "DC", "token"),
    ),
    aliases=OLD_NORMS,
    copies=(
        ("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    aside=(r"embeddings\.position_ids$", r"pooler\.dense\.", r"^lm_head\."),
)
IN_LAYER = "transformer.layer.{i}."
DISTILBERT = Architecture(
    prefix="distilbert.",
    base=(
        *BERT_EMBEDDINGS,
        *rows.maps(IN_LAYER + "attention.", ATTENTION, query="q_lin", key="k_lin", value="v_lin"),
        *rows.maps(IN_LAYER + "attention.", ATTENTION, out="out_lin"),
        *rows.norm(IN_LAYER + "sa_layer_norm", LAYER + "attention_norm"),
        *rows.maps(IN_LAYER + "ffn.", FEED_FORWARD, up="lin1", down="lin2"),
        *rows.norm(IN_LAYER + "output_layer_norm", LAYER + "feed_forward_norm"),
    ),
    top=(
        *rows.dense("vocab_transform", "head/dense", "dD", "Dd", "lm"),
        *rows.norm("vocab_layer_norm", "head/norm", "lm"),
        rows.row("vocab_projector.bias", "output/bias", "V", "", "lm"),
        rows.row("vocab_projector.weight", "output/weight", "VD"),
        *rows.dense("pre_classifier", "head/dense", "dD", "Dd", "sequence"),
        *rows.dense("classifier", "head/out", "CD", "DC"),
    ),
    copies=(("vocab_projector.weight", "embeddings.word_embeddings.weight"),),
    aside=(
        r"embeddings\.position_ids$",
        r"^vocab_(transform|layer_norm|projector)\.",
    ),
)


def _t5_stack(theirs: str, ours: str) -> tuple[Row, ...]:
    layer, block = f"{ours}/layers_{{i}}/", f"{theirs}.block.{{i}}.layer."
    last = "2" if ours == "decoder" else "1"
    dense = f"{block}{last}.DenseReluDense."
    qkvo = dict(query="q", key="k", value="v", out="o")
    own = (
        rows.row(
            f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"{ours}/relative/weight",
            "UN",
        ),
        *rows.norm(f"{block}0.layer_norm", layer + "attention_norm"),
        *rows.maps(f"{block}0.SelfAttention.", layer + "attention/", **qkvo),
        *rows.norm(f"{block}{last}.layer_norm", layer + "feed_forward_norm"),
        *rows.maps(dense, layer + "feed_forward/", "plain", up="wi"),
        *rows.maps(dense, layer + "feed_forward/", "gated", gate="wi_0", up="wi_1"),
        *rows.maps(dense, layer + "feed_forward/", down="wo"),
        *rows.norm(f"{theirs}.final_layer_norm", f"{ours}/norm"),
    )
    cross = (
        *rows.norm(f"{block}1.layer_norm", layer + "cross_norm"),
        *rows.maps(f"{block}1.EncDecAttention.", layer + "cross/", **qkvo),
    )
    return (*own, *cross) if ours == "decoder" else own


T5 = Architecture(
    base=(
        rows.row("shared.weight", "embedding/weight", "VD"),
        *_t5_stack("encoder", "encoder"),
        *_t5_stack("decoder", "decoder"),
    ),
    top=(rows.untied(),),
    copies=(
        ("lm_head.weight", "shared.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
    ),
    aside=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
)


def _bart_stack(name: str) -> tuple[Row, ...]:
    layer, block = f"{name}/layers_{{i}}/", f"{name}.layers.{{i}}."
    qkvo = dict(query="q_proj", key="k_proj", value="v_proj", out="out_proj")
    own = (
        rows.row(f"{name}.embed_positions.weight", f"{name}/position/weight", "PD"),
        *rows.norm(f"{name}.layernorm_embedding", f"{name}/embedding_norm"),
        *rows.maps(f"{block}self_attn.", layer + "attention/", **qkvo),
        *rows.norm(f"{block}self_attn_layer_norm", layer + "attention_norm"),
        *rows.maps(block, layer + "feed_forward/", up="fc1", down="fc2"),
        *rows.norm(f"{block}final_layer_norm", layer + "feed_forward_norm"),
    )
    cross = (
        *rows.maps(f"{block}encoder_attn.", layer + "cross/", **qkvo),
        *rows.norm(f"{block}encoder_attn_layer_norm", layer + "cross_norm"),
    )
    return (*own, *cross) if name == "decoder" else own


BART_BASE = (
    rows.row("shared.weight", "embedding/weight", "VD"),
    *_bart_stack("encoder"),
    *_bart_stack("decoder"),
)
BART_COPIES = (
    ("lm_head.weight", "shared.weight"),
    ("encoder.embed_tokens.weight", "shared.weight"),
    ("decoder.embed_tokens.weight", "shared.weight"),
)
BART = Architecture(
    prefix="model.",
    base=BART_BASE,
    top=(Row("final_logits_bias", (), "1V", ""),),
    copies=BART_COPIES,
)
MARIAN = Architecture(
    prefix="model.",
    base=BART_BASE,
    top=(rows.row("final_logits_bias", "output/bias", "1V", "V"),),
    copies=BART_COPIES,
    aside=(r"coder\.embed_positions\.weight$",),
)

RECURRENT = Architecture(
    base=(
        rows.row("embedding.weight", "embedding/weight", "VD"),
        rows.row("rnn.weight_ih_l{i}", LAYER + "input/weight", "(QH)D", "DQH"),
        rows.row("rnn.bias_ih_l{i}", LAYER + "input/bias", "(QH)", "QH"),
        rows.row("rnn.weight_hh_l{i}", LAYER + "recurrent/weight", "(QH)D", "DQH"),
        rows.row("rnn.bias_hh_l{i}", LAYER + "recurrent/bias", "(QH)", "QH"),
    ),
    top=(
        rows.row("output.weight", "output/weight", "VD"),
        rows.row("output.bias", "output/bias", "V"),
    ),
    copies=(("output.weight", "embedding.weight"),),
)

TABLES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": MIXTRAL,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA2,
    "bloom": BLOOM,
    "gpt_neox": GPT_NEOX,
    "bert": BERT,
    "roberta": ROBERTA,
    "distilbert": DISTILBERT,
    "t5": T5,
    "bart": BART,
    "marian": MARIAN,
    "lstm": RECURRENT,
    "gru": RECURRENT,
}
