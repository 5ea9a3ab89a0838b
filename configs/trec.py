"""What kind of answer does a question ask for? The six classes of TREC, by an encoder from scratch.

Command: python launch.py train --config=configs/trec.py:DATA --workdir=runs/trec
where DATA is the directory that holds trec/TREC.train.all and TREC.test.all.
Figure: 87.2 % of the test questions after 68 seconds of two cores.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/trec/{name}", "format": "labelled"}

    return ConfigDict(
        {
            "model": {
                "family": "encoder_only",
                "context_length": 256,
                "layers": 2,
                "width": 128,
                "heads": 4,
            },
            "task": {"kind": "classify", "labels": tuple("012345")},
            "tokenizer": {"kind": "word", "vocab_size": 8000},
            "data": {
                "train": split("TREC.train.all"),
                "held_out": 0.1,
                "test": split("TREC.test.all"),
                "deduplicate": False,
                "length": 256,
            },
            "train": {"steps": 600, "batch_size": 8, "eval_every": 100, "save_every": 200},
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 60,
                "end_fraction": 0.05,
                "weight_decay": 0.3,
                "ema_decay": 0.99,
            },
            "loss": {"label_smoothing": 0.1},
            "runtime": {"dropout": 0.3, "unroll": 2},
            "decode": {"prompts": ("What is the capital of Peru ?", "Who wrote Emma ?")},
        }
    )
