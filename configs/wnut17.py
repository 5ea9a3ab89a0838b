"""Which words name people, places and products? The six kinds of WNUT-17, by an encoder from scratch.

Command: python launch.py train --config=configs/wnut17.py:DATA --workdir=runs/wnut17
where DATA is the directory that holds wnut17.
Figure: entity F1 9.6 on the test part after 2.5 minutes of two cores.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/wnut17/{name}", "format": "conll"}

    kinds = ("person", "location", "group", "creative-work", "corporation", "product")
    return ConfigDict(
        {
            "model": {
                "family": "encoder_only",
                "context_length": 256,
                "layers": 2,
                "width": 128,
                "heads": 4,
            },
            "task": {
                "kind": "tag",
                "source": "tokens",
                "labels": ("O", *(f"{place}-{kind}" for kind in kinds for place in "BI")),
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 4000},
            "data": {
                "train": split("wnut17train.conll"),
                "valid": split("emerging.dev.conll"),
                "test": split("emerging.test.annotated"),
                "deduplicate": False,
                "length": 256,
            },
            "train": {"steps": 1200, "batch_size": 8, "eval_every": 100, "save_every": 200},
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 100,
                "end_fraction": 0.05,
                "weight_decay": 0.3,
                "ema_decay": 0.99,
            },
            "runtime": {"dropout": 0.3, "unroll": 2},
            "decode": {"prompts": ("Emma flew from Lima to Paris with Air France",)},
        }
    )
