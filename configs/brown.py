"""A word model of the Brown corpus, split as in Bengio et al. (2003); sentences follow each other.

Command: python launch.py train --config=configs/brown.py:DATA --workdir=runs/brown
where DATA is the directory that holds brown/train.txt.gz, valid.txt.gz and vocab.txt.
Figure: perplexity 196.3 after 27 minutes of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""
    brown = f"{data}/brown"
    return ConfigDict(
        {
            "model": {"context_length": 128, "layers": 3, "width": 192, "heads": 3, "tied": True},
            "tokenizer": {"kind": "word", "path": f"{brown}/vocab.txt"},
            "data": {
                "train": {"path": f"{brown}/train.txt.gz", "split": "file"},
                "valid": {"path": f"{brown}/valid.txt.gz", "split": "file"},
                "deduplicate": False,
                "length": 128,
                "overlap": 64,
            },
            "train": {"steps": 1600, "batch_size": 16, "eval_every": 400, "save_every": 200},
            "optimizer": {
                "name": "muon",
                "learning_rate": 2e-3,
                "warmup_steps": 100,
                "end_fraction": 0.02,
                "weight_decay": 0.3,
            },
            "runtime": {"dropout": 0.3, "unroll": 3},
            "decode": {
                "prompts": ("The President said",),
                "settings": {"temperature": {"max_new_tokens": 60, "temperature": 0.8}},
            },
        }
    )
