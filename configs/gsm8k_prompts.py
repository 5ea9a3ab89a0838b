"""What is the answer to a word problem of grade-school arithmetic? Written behind prompts, and read behind `####`.

Command: python launch.py eval --config=configs/gsm8k_prompts.py:DATA --from=MODEL --shots=0,1,2,4 --limit=100, where
DATA is the directory that holds gsm8k/train.jsonl.gz and test.jsonl.gz; the window must hold about 300 tokens a shot.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The prompts; `data` stands behind the colon of --config."""
    return ConfigDict(
        {
            "prompt": {
                "question": "Question: {{ question }}\nAnswer:",
                "answer": " {{ answer }}",
                "score": "generation",
                "pattern": r"#### (-?[0-9.,]+)",
                "ignore": ",",
                "max_new_tokens": 256,
                "too_long": "drop_shots",
            },
            "data": {
                "train": f"{data}/gsm8k/train.jsonl.gz",
                "test": f"{data}/gsm8k/test.jsonl.gz",
            },
        }
    )
