"""T5's objective on British novels and on dialogues: what the summaries of configs/dialogsum_pretrained.py start from.

Command: python launch.py train --config=configs/spans.py:DATA --workdir=runs/spans
where DATA is the directory that holds british-fiction and dialogsum.
Figure: what is cut out has 4.66 nats per piece after 17 minutes of one core.
"""

from ml_collections import ConfigDict

from configs import dialogsum


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""
    novels = f"{data}/british-fiction"
    dialogues = {"path": f"{data}/dialogsum/dialogsum.train.jsonl.gz", "field": "dialogue"}
    return ConfigDict(
        {
            "model": dialogsum.get_config().model,
            "task": {"kind": "spans"},
            "tokenizer": {"kind": "unigram", "vocab_size": 6000},
            "data": {
                "train": [
                    {"path": f"{novels}/train", "weight": 0.5},
                    {**dialogues, "weight": 0.5},
                ],
                "valid": f"{novels}/valid",
                "deduplicate": False,
                "source_length": 512,
                "length": 128,
            },
            "train": {"steps": 1200, "batch_size": 8, "eval_every": 400, "save_every": 200},
            "optimizer": {
                "name": "muon",
                "learning_rate": 3e-3,
                "warmup_steps": 60,
                "end_fraction": 0.05,
            },
            "decode": {
                "prompts": ("She opened the <extra_id_0> and looked out .",),
                "settings": {"greedy": {"max_new_tokens": 8, "temperature": 0.0}},
            },
        }
    )
