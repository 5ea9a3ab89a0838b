"""Word problems worked out step by step, in the format of GSM8K: a decoder learns the answers behind their questions.

Command: python launch.py train --config=configs/gsm8k.py:DATA --workdir=runs/gsm8k
where DATA is the directory that holds gsm8k.
Figure: 2.1 % of the test problems after 5 minutes of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/gsm8k/{name}.jsonl.gz"}

    return ConfigDict(
        {
            "model": {"context_length": 640, "layers": 4, "width": 192, "heads": 3, "tied": True},
            "task": {
                "kind": "seq2seq",
                "source": "{{ question }}\n",
                "target": "{{ answer }}",
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 3000},
            "data": {
                "train": split("train"),
                "test": split("test"),
                "deduplicate": False,
                "length": 640,
            },
            "train": {"steps": 400, "batch_size": 4, "eval_every": 200, "save_every": 100},
            "optimizer": {
                "name": "muon",
                "learning_rate": 3e-3,
                "warmup_steps": 50,
                "end_fraction": 0.05,
            },
            "runtime": {"dropout": 0.1, "unroll": 4},
            "evaluate": {
                "metrics": ("number_match",),
                "settings": {"max_new_tokens": 250},
            },
            "decode": {
                "prompts": ("Tom has 3 apples and buys 4 more. How many apples does he have?",),
                "settings": {"greedy": {"max_new_tokens": 120, "temperature": 0.0}},
            },
        }
    )
