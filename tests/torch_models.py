"""What torch itself has to compare with: recurrent language models, and the Transformer of 2017.

The tensors of the recurrent ones have the names that `model.hf` knows. Of `torch.nn.Transformer` nobody publishes
files: where its tensors lie in our tree is said here.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

NORMS = {
    "encoder": {"norm1": "attention_norm", "norm2": "feed_forward_norm"},
    "decoder": {"norm1": "attention_norm", "norm2": "cross_norm", "norm3": "feed_forward_norm"},
}
ATTENTIONS = {
    "encoder": {"self_attn": "attention"},
    "decoder": {"self_attn": "attention", "multihead_attn": "cross"},
}


def build(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Any:
    """The model that our config describes, without dropout, with these tensors if any are given."""
    import torch

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[config["family"]]
            self.embedding = torch.nn.Embedding(config["vocab_size"], config["width"])
            self.rnn = kind(config["width"], config["width"], config["layers"], batch_first=True)
            self.output = torch.nn.Linear(config["width"], config["vocab_size"], bias=False)

        def forward(self, input_ids):
            return self.output(self.rnn(self.embedding(input_ids))[0])

    class Transformer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(config["vocab_size"], config["width"])
            self.transformer = torch.nn.Transformer(
                config["width"],
                config["heads"],
                config["encoder_layers"],
                config["layers"],
                config["hidden"],
                dropout=0.0,
                batch_first=True,
            )
            # The paper ends each stack with its last sum and norm; torch adds one more.
            self.transformer.encoder.norm = self.transformer.decoder.norm = None

        def embed(self, ids):
            positions = torch.tensor(sinusoids(ids.shape[1], config["width"]))
            scaled = self.embedding(ids) * math.sqrt(config["width"])
            return scaled + positions.to(scaled.dtype)

        def forward(self, input_ids, decoder_input_ids):
            length = decoder_input_ids.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool).triu(1)
            hidden = self.transformer(
                self.embed(input_ids), self.embed(decoder_input_ids), tgt_mask=causal
            )
            return hidden @ self.embedding.weight.T

    net = Transformer() if config["family"] == "encoder_decoder" else Recurrent()
    if tensors is not None:
        net.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return net.eval()


def sinusoids(length: int, width: int) -> np.ndarray:
    """PE(p, 2i) = sin(p / 10000^(2i/width)), PE(p, 2i + 1) = cos of the same (Vaswani et al. 2017, section 3.5)."""
    table = np.zeros((length, width))
    for position in range(length):
        for pair in range(width // 2):
            angle = position / 10000 ** (2 * pair / width)
            table[position, 2 * pair : 2 * pair + 2] = math.sin(angle), math.cos(angle)
    return table.astype(np.float32)


def transformer_from_theirs(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The tensors of `build`'s Transformer as our parameter tree."""
    width, heads = config["width"], config["heads"]

    def attention(theirs):
        weights_QDNH = tensors[f"{theirs}.in_proj_weight"].reshape(3, heads, -1, width)
        weights_QDNH = weights_QDNH.transpose(0, 3, 1, 2)
        biases_QNH = tensors[f"{theirs}.in_proj_bias"].reshape(3, heads, -1)
        ours = {
            name: {"weight": weights_QDNH[i], "bias": biases_QNH[i]}
            for i, name in enumerate(("query", "key", "value"))
        }
        out_NHD = tensors[f"{theirs}.out_proj.weight"].T.reshape(heads, -1, width)
        return ours | {"out": {"weight": out_NHD, "bias": tensors[f"{theirs}.out_proj.bias"]}}

    def linear(theirs):
        return {"weight": tensors[f"{theirs}.weight"].T, "bias": tensors[f"{theirs}.bias"]}

    def norm(theirs):
        return {"scale": tensors[f"{theirs}.weight"], "bias": tensors[f"{theirs}.bias"]}

    def layer(side, i):
        theirs = f"transformer.{side}.layers.{i}"
        ours = {name: norm(f"{theirs}.{n}") for n, name in NORMS[side].items()}
        ours |= {name: attention(f"{theirs}.{n}") for n, name in ATTENTIONS[side].items()}
        up, down = linear(f"{theirs}.linear1"), linear(f"{theirs}.linear2")
        return ours | {"feed_forward": {"up": up, "down": down}}

    layers = {"encoder": config["encoder_layers"], "decoder": config["layers"]}
    stacks = {
        side: {f"layers_{i}": layer(side, i) for i in range(many)} for side, many in layers.items()
    }
    return {"embedding": {"weight": tensors["embedding.weight"]}, **stacks}
