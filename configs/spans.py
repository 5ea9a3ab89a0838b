"""T5's objective on British novels, for the model of configs/dialogsum.py: what its summarising starts from.

Command: python launch.py train --config=configs/spans.py:DATA --workdir=runs/spans
where DATA is the directory that holds british-fiction.
"""

from ml_collections import ConfigDict

from configs import dialogsum


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""
    novels = f"{data}/british-fiction"
    return ConfigDict(
        {
            "model": dialogsum.get_config().model,
            "task": {"kind": "spans"},
            "tokenizer": {"kind": "unigram", "vocab_size": 6000},
            "data": {
                "train": f"{novels}/train",
                "valid": f"{novels}/valid",
                "deduplicate": False,
                "source_length": 512,
                "length": 128,
            },
            "train": {"steps": 4000, "batch_size": 8, "eval_every": 500, "save_every": 250},
            "optimizer": {"learning_rate": 2e-3, "warmup_steps": 200, "end_fraction": 0.05},
            "decode": {"prompts": ("She opened the <extra_id_0> and looked out .",)},
        }
    )
