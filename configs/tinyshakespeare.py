"""A character model of Shakespeare's plays: the first nine tenths train, the last tenth measures.

Command: python launch.py train --config=configs/tinyshakespeare.py:DATA --workdir=runs/tinyshakespeare
where DATA is the directory that holds tinyshakespeare/input.txt.
Figure: 1.460 nats per character after 33 minutes of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""
    plays = {"path": f"{data}/tinyshakespeare/input.txt", "split": "file"}
    return ConfigDict(
        {
            "model": {"context_length": 256, "layers": 4, "width": 192, "heads": 3, "tied": True},
            "tokenizer": {"kind": "char"},
            "data": {
                "train": {**plays, "part": "0:0.9"},
                "valid": {**plays, "part": "0.9:1"},
                "deduplicate": False,
                "length": 256,
                "overlap": 128,
            },
            "train": {"steps": 3200, "batch_size": 8, "eval_every": 800, "save_every": 400},
            "optimizer": {
                "name": "muon",
                "learning_rate": 4e-3,
                "warmup_steps": 100,
                "end_fraction": 0.03,
                "weight_decay": 0.1,
            },
            "runtime": {"dropout": 0.1, "unroll": 4},
            "decode": {
                "prompts": ("ROMEO:", "What light"),
                "settings": {"temperature": {"max_new_tokens": 200, "temperature": 0.8}},
            },
        }
    )
