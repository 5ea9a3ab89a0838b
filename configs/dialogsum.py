"""What was a dialogue about? DialogSum's summaries, by an encoder-decoder from scratch.

Command: python launch.py train --config=configs/dialogsum.py:DATA --workdir=runs/dialogsum
where DATA is the directory that holds dialogsum.
Figure: ROUGE-1 28.7 on the test dialogues after 23 minutes of one core.
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The recipe; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/dialogsum/dialogsum.{name}.jsonl.gz"}

    return ConfigDict(
        {
            "model": {
                "preset": "transformer-base",
                "block": "pre",
                "context_length": 768,
                "layers": 3,
                "width": 128,
                "heads": 2,
                "hidden": 512,
            },
            "task": {
                "kind": "seq2seq",
                "source": "{{ dialogue }}",
                "target": "{{ summary }}",
                "too_long": "truncate",
            },
            "tokenizer": {"kind": "unigram", "vocab_size": 6000},
            "data": {
                "train": split("train"),
                "valid": split("dev"),
                "test": split("test"),
                "deduplicate": False,
                "source_length": 768,
                "length": 160,
            },
            "train": {"steps": 900, "batch_size": 8, "eval_every": 300, "save_every": 150},
            "optimizer": {
                "name": "muon",
                "learning_rate": 3e-3,
                "warmup_steps": 60,
                "end_fraction": 0.03,
            },
            "loss": {"label_smoothing": 0.1},
            "runtime": {"dropout": 0.1},
            "evaluate": {
                "metrics": ("rouge1", "rouge2", "rougeL"),
                "references": ("{{ summary1 }}", "{{ summary2 }}", "{{ summary3 }}"),
                "settings": {"num_beams": 4, "max_new_tokens": 80, "no_repeat_ngram_size": 3},
                "baseline": "{{ dialogue.split('\n')[:3] | join(' ') }}",
            },
            "decode": {
                "prompts": (
                    "#Person1#: Shall we see a film tonight?\n#Person2#: I must work. What about Saturday?\n"
                    "#Person1#: Saturday at eight, then.",
                ),
                "settings": {"beam": {"num_beams": 4, "max_new_tokens": 60}},
            },
        }
    )
