"""What does more context buy? A transformer, an LSTM and a GRU of as many parameters, on the same tokens.

Command: python launch.py train --config=configs/context.py:KIND --workdir=runs/context-KIND
where KIND is transformer, lstm or gru; then, of all three, python benchmarks/context.py with
--run=KIND:runs/context-KIND for each.
Figure: 3.25, 3.76 and 3.32 nats per token after 13, 5 and 4 minutes of one core.
"""

from ml_collections import ConfigDict

# Of about 1.05 million parameters each, 262 to 465 thousand of them the embedding.
SHAPES = {
    "transformer": {"family": "decoder_only", "layers": 4, "width": 128, "heads": 4},
    "lstm": {"family": "lstm", "layers": 2, "width": 200},
    "gru": {"family": "gru", "layers": 2, "width": 222},
}


def get_config(kind: str = "transformer") -> ConfigDict:
    """The recipe; `kind` stands behind the colon of --config."""
    if kind not in SHAPES:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(SHAPES)}")
    shape = SHAPES[kind]
    return ConfigDict(
        {
            "seed": 0,
            "model": {"context_length": 256, "tied": True, **shape},
            "tokenizer": {"kind": "unigram", "vocab_size": 2048},
            "data": {"train": "python", "held_out": 0.06, "length": 256},
            "train": {"steps": 800, "batch_size": 16, "eval_every": 400, "save_every": 200},
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 50, "end_fraction": 0.05},
            "runtime": {"unroll": shape["layers"]},
        }
    )
