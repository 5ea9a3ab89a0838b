"""What do the models of transformers say? Writes gpt2.npz and llama.npz beside this file.

`python -m tests.goldens.make_hf`, with torch and transformers, whose versions the files name. A file holds random
weights under their names, and their float32 logits for a full window with left padding and for a single token.
"""

import pathlib

import numpy as np

from model.config import ModelConfig

HERE = pathlib.Path(__file__).resolve().parent
SIZES = dict(vocab_size=67, context_length=31, layers=3, width=18, hidden=43)
CONFIGS = {
    "gpt2": ModelConfig(
        heads=3,
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        bias=True,
        tied=True,
        **SIZES,
    ),
    "llama": ModelConfig(heads=6, kv_heads=2, head_size=14, rope_theta=5000.0, **SIZES),
}


def reference(architecture):
    """A model of transformers in the shape of our config, with no weight where it was initialised."""
    import torch
    import transformers

    config = CONFIGS[architecture]
    if architecture == "gpt2":
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.context_length,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                n_inner=config.hidden,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    else:
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                intermediate_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                head_dim=config.head_size,
                max_position_embeddings=config.context_length,
                rms_norm_eps=config.norm_epsilon,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            )
        )
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            mean = float(parameter.ndim == 1 and name.endswith("weight"))  # the scale of a norm
            parameter.copy_(torch.tensor(rng.normal(mean, 0.3, parameter.shape)))
    return theirs.eval()


def weights(theirs):
    """Their tensors under their names."""
    return {name: parameter.detach().numpy() for name, parameter in theirs.named_parameters()}


def batch(length):
    """Tokens and mask of three rows, two of them padded on the left where there is room."""
    tokens_BT = np.random.default_rng(length).integers(0, SIZES["vocab_size"], (3, length))
    padding_B = np.array([length // 3, 0, length - 1])
    return tokens_BT.astype(np.int32), np.arange(length) >= padding_B[:, None]


def logits(theirs, tokens_BT, mask_BT):
    """Their float32 logits, zero at padding; the positions are given as their `generate` gives them."""
    import torch

    with torch.no_grad():
        out = theirs(
            torch.tensor(tokens_BT, dtype=torch.long),
            attention_mask=torch.tensor(mask_BT),
            position_ids=torch.tensor(np.maximum(mask_BT.cumsum(1) - 1, 0)),
        )
    return np.where(mask_BT[..., None], out.logits.numpy(), np.float32(0))


def main():
    """Writes both files."""
    import torch
    import transformers

    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for architecture in CONFIGS:
        theirs = reference(architecture)
        arrays = {"versions": np.array(versions)}
        for length in (1, SIZES["context_length"]):
            tokens_BT, mask_BT = batch(length)
            arrays[f"tokens.{length}"], arrays[f"mask.{length}"] = tokens_BT, mask_BT
            arrays[f"logits.{length}"] = logits(theirs, tokens_BT, mask_BT)
        for name, array in weights(theirs).items():
            arrays[f"weights.{name}"] = array
        np.savez(HERE / f"{architecture}.npz", **arrays)


if __name__ == "__main__":
    main()
