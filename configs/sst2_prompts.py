"""Is a sentence of a film review positive? Asked of a model by prompts, with no shots and with some.

Command: python launch.py eval --config=configs/sst2_prompts.py:DATA --from=MODEL --shots=0,1,2,4, where DATA is the
directory that holds sst2/stsa.binary.train and .test.
Figure: 53.2, 53.5, 55.5 and 52.2 % of 400 sentences, of configs/fiction.py; 52.0 % are "1".
"""

from ml_collections import ConfigDict


def get_config(data: str = "data") -> ConfigDict:
    """The prompts; `data` stands behind the colon of --config."""

    def split(name: str) -> dict:
        return {"path": f"{data}/sst2/{name}", "format": "labelled"}

    return ConfigDict(
        {
            "prompt": {
                "question": "Review: {{ text }}\nSentiment:",
                "labels": {"0": " negative", "1": " positive"},
                "calibration": "content_free",
                "too_long": "drop_shots",
            },
            "data": {"train": split("stsa.binary.train"), "test": split("stsa.binary.test")},
        }
    )
