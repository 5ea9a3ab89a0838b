"""A sentence becomes a Python function: the problems of MBPP, with the docstrings of the standard library beside them.

Command: python launch.py train --config=configs/mbpp.py:DATA --workdir=runs/mbpp
where DATA is the directory that holds mbpp.
Figure: no test program right, BLEU 9.0, after 6 minutes of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/mbpp/mbpp.{name}.jsonl.gz"}

    return ConfigDict(
        {
            "model": {"context_length": 1024, "layers": 4, "width": 192, "heads": 3, "tied": True},
            "task": {
                "kind": "seq2seq",
                "source": '"""{{ text }}"""\n',
                "target": "{{ code }}",
                "too_long": "drop",
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 3000},
            "data": {
                "train": [
                    {**split("train"), "weight": 0.3},
                    {"path": "python-docstrings", "weight": 0.7},
                ],
                "valid": split("validation"),
                "test": split("test"),
                "deduplicate": False,
                "length": 1024,
            },
            "train": {"steps": 400, "batch_size": 2, "eval_every": 200, "save_every": 100},
            "optimizer": {
                "name": "muon",
                "learning_rate": 3e-3,
                "warmup_steps": 50,
                "end_fraction": 0.05,
            },
            "runtime": {"dropout": 0.1, "unroll": 4},
            "evaluate": {
                "metrics": ("pass@1", "bleu"),
                "tests": "mbpp",
                "settings": {"max_new_tokens": 200},
            },
            "decode": {
                "prompts": ("Write a function to add two numbers.",),
                "settings": {"greedy": {"max_new_tokens": 100, "temperature": 0.0}},
            },
        }
    )
