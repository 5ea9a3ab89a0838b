"""A model of novels learns to follow instructions: loss on the answer alone.

Command: python launch.py train --config=configs/instruct.py:DATA --workdir=runs/instruct
where DATA is the directory that holds instruct.
It starts from runs/fiction: train configs/fiction.py first.
Figure: chrF 24.3 on held-out answers after 3 minutes of one core, and 13 of configs/fiction.py.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/instruct/instruction-data.{name}.json"}

    return ConfigDict(
        {
            "start": {"path": "runs/fiction"},
            "task": {
                "kind": "seq2seq",
                "source": "Task: {{ instruction }}\n{% if input %}Input: {{ input }}\n{% endif %}Answer: ",
                "target": "{{ output }}",
            },
            "data": {
                "train": split("train"),
                "valid": split("val"),
                "deduplicate": False,
                "length": 512,
            },
            "train": {"steps": 150, "batch_size": 8, "eval_every": 25, "save_every": 50},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20, "end_fraction": 0.05},
            "runtime": {"dropout": 0.1, "unroll": 4},
            "decode": {"prompts": ("Name three kinds of fruit.",)},
            "evaluate": {"metrics": ("exact_match", "chrf"), "settings": {"max_new_tokens": 80}},
        }
    )
