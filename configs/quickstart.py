"""A LLaMA-like decoder on the English and Python that every CPython carries: the main job in five minutes.

Command: make quickstart, or python launch.py train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    layers = 4
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "context_length": 256,
                "layers": layers,
                "width": 192,
                "heads": 6,
                "tied": True,
            },
            "tokenizer": {"kind": "unigram", "vocab_size": 2048},
            "data": {"train": "python", "held_out": 0.06, "length": 256},
            "train": {
                "steps": 700,
                "batch_size": 4,
                "log_every": 20,
                "eval_every": 350,
                "sample_every": 350,
                "save_every": 100,
            },
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 50, "end_fraction": 0.05},
            "runtime": {"unroll": layers},
            "decode": {
                "prompts": ("The with statement", "    def __init__(self", "Return True if"),
                "settings": {
                    "greedy": {"max_new_tokens": 48, "temperature": 0.0},
                    "temperature": {"max_new_tokens": 48, "temperature": 0.6},
                    "top-k": {"max_new_tokens": 48, "top_k": 5},
                    "top-p": {"max_new_tokens": 48, "top_p": 0.6},
                },
            },
        }
    )
