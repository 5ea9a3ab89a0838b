"""A published model by its name, as it stands: what a size costs, before anything is trained.

Command: python launch.py plan --config=configs/preset.py:bloom-176b, in a second.
"""

from ml_collections import ConfigDict


def get_config(name: str = "gpt2-124m") -> ConfigDict:
    """Only the model: the name behind the file's colon is one of `model/presets.py`."""
    return ConfigDict({"model": {"preset": name}})
