"""French captions into English by the Transformer of 2017, in the tiny size of Wu et al. (2021).

Command: python launch.py train --config=configs/multi30k.py:DATA --workdir=runs/multi30k
where DATA is the directory that holds multi30k/tok.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        files = {side: f"{data}/multi30k/tok/{name}.lc.norm.tok.{side}.gz" for side in ("fr", "en")}
        return {"path": files}

    return ConfigDict(
        {
            "model": {
                "preset": "transformer-base",
                "context_length": 256,
                "layers": 4,
                "width": 128,
                "heads": 4,
                "hidden": 256,
            },
            "task": {"kind": "seq2seq", "source": "{{ fr }}", "target": "{{ en }}"},
            "tokenizer": {"kind": "bpe", "vocab_size": 8000},
            "data": {
                "train": split("train"),
                "valid": split("val"),
                "test": split("test_2016_flickr"),
                "deduplicate": False,
                "length": 256,
            },
            "train": {"steps": 3000, "batch_size": 16, "eval_every": 250, "save_every": 250},
            "optimizer": {
                "learning_rate": 3e-3,
                "schedule": "inverse_sqrt",
                "warmup_steps": 400,
                "b2": 0.98,
                "ema_decay": 0.99,
            },
            "loss": {"label_smoothing": 0.1},
            "runtime": {"dropout": 0.2},
            "evaluate": {
                "metrics": ("bleu", "chrf"),
                "options": {"bleu": {"tokenize": "none"}},
                "settings": {"num_beams": 5, "max_new_tokens": 80},
            },
            "decode": {
                "prompts": ("un homme en chemise bleue joue de la guitare .",),
                "settings": {"beam": {"num_beams": 5, "max_new_tokens": 60}},
            },
        }
    )
