"""An encoder fills in the words that are hidden in British novels: what fine-tuning starts from.

Command: python launch.py train --config=configs/masked.py:DATA --workdir=runs/masked
where DATA is the directory that holds british-fiction.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""
    novels = f"{data}/british-fiction"
    return ConfigDict(
        {
            "model": {
                "family": "encoder_only",
                "context_length": 256,
                "layers": 4,
                "width": 192,
                "heads": 6,
            },
            "task": {"kind": "masked", "whole_words": True},
            "tokenizer": {"kind": "unigram", "vocab_size": 8000},
            "data": {
                "train": f"{novels}/train",
                "valid": f"{novels}/valid",
                "deduplicate": False,
                "length": 256,
            },
            "train": {"steps": 4000, "batch_size": 16, "eval_every": 500, "save_every": 250},
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 200, "end_fraction": 0.05},
            "runtime": {"unroll": 4},
            "decode": {"prompts": ("She opened the <mask> and looked out .",)},
        }
    )
