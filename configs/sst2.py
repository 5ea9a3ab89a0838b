"""Is a sentence of a film review positive? The sentences of SST-2, by an encoder from scratch.

Command: python launch.py train --config=configs/sst2.py:DATA --workdir=runs/sst2
where DATA is the directory that holds sst2/stsa.binary.train, .dev and .test.
Figure: 81.3 % of the test sentences after 40 seconds of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/sst2/{name}", "format": "labelled"}

    return ConfigDict(
        {
            "model": {
                "family": "encoder_only",
                "context_length": 256,
                "layers": 1,
                "head": {"pooling": "mean"},
                "width": 128,
                "heads": 4,
            },
            "task": {"kind": "classify", "labels": ("0", "1")},
            "tokenizer": {"kind": "word", "vocab_size": 8000},
            "data": {
                "train": split("stsa.binary.train"),
                "valid": split("stsa.binary.dev"),
                "test": split("stsa.binary.test"),
                "deduplicate": False,
                "length": 256,
            },
            "train": {"steps": 300, "batch_size": 8, "eval_every": 100, "save_every": 150},
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 60,
                "end_fraction": 0.05,
                "weight_decay": 0.3,
                "ema_decay": 0.99,
            },
            "loss": {"label_smoothing": 0.1},
            "runtime": {"dropout": 0.5, "unroll": 1},
            "decode": {"prompts": ("a moving and clever film", "dull from start to end")},
        }
    )
