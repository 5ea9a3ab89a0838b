"""An encoder fills in the words that are hidden in British novels and film reviews: what fine-tuning starts from.

Command: python launch.py train --config=configs/masked.py:DATA --workdir=runs/masked
where DATA is the directory that holds british-fiction and sst2.
Figure: 30.1 % of what is hidden is the likeliest piece after 9 minutes of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""
    novels = f"{data}/british-fiction"
    reviews = {
        "path": f"{data}/sst2/stsa.binary.train",
        "format": "labelled",
        "field": "text",
    }
    return ConfigDict(
        {
            "model": {
                "family": "encoder_only",
                "context_length": 256,
                "layers": 2,
                "width": 128,
                "heads": 2,
            },
            "task": {"kind": "masked", "whole_words": True},
            "tokenizer": {"kind": "unigram", "vocab_size": 8000},
            "data": {
                "train": [
                    {"path": f"{novels}/train", "weight": 0.75},
                    {**reviews, "weight": 0.25},
                ],
                "valid": f"{novels}/valid",
                "deduplicate": False,
                "length": 128,
            },
            "train": {"steps": 3000, "batch_size": 16, "eval_every": 1000, "save_every": 500},
            "optimizer": {
                "name": "muon",
                "learning_rate": 3e-3,
                "warmup_steps": 100,
                "end_fraction": 0.05,
            },
            "runtime": {"unroll": 2},
            "decode": {"prompts": ("She opened the <mask> and looked out .",)},
        }
    )
