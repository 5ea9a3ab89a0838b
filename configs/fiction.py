"""A model of British novels: what instructions are taught to, and what sees more context.

Command: python launch.py train --config=configs/fiction.py:DATA --workdir=runs/fiction
where DATA is the directory that holds british-fiction.
Figure: 1.742 bits per byte of two other novels after 13 minutes of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""
    novels = f"{data}/british-fiction"
    return ConfigDict(
        {
            "model": {"context_length": 512, "layers": 4, "width": 192, "heads": 3, "tied": True},
            "tokenizer": {"kind": "unigram", "vocab_size": 6000},
            "data": {
                "train": f"{novels}/train",
                "valid": f"{novels}/valid",
                "deduplicate": False,
                "length": 256,
                "overlap": 128,
            },
            "train": {"steps": 1000, "batch_size": 8, "eval_every": 500, "save_every": 250},
            "optimizer": {
                "name": "muon",
                "learning_rate": 3e-3,
                "warmup_steps": 60,
                "end_fraction": 0.05,
            },
            "runtime": {"unroll": 4},
            "decode": {
                "prompts": ("It was a dark", "My dear Elizabeth,"),
                "settings": {"top-p": {"max_new_tokens": 100, "top_p": 0.9}},
            },
        }
    )
