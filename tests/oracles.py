"""What do the models of torch and transformers say of the rows that they are asked, and what are their gradients?

A row stands alone, with neither padding nor mask. torch and transformers are imported only where they are asked.
"""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from tests import references, torch_models
from tests.references import Reference, Row


def shapes(reference: Reference) -> dict[str, tuple[int, ...]]:
    """Of the tensors that its files hold, by name."""
    if "family" in reference.config:
        theirs = torch_models.build(reference.config)
        return {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "config.json").write_text(references.config_text(reference))
        config = transformers.AutoConfig.from_pretrained(folder)
        found = _saved(getattr(transformers, reference.builds)(config), folder)
    return {name: array.shape for name, array in found.items()} | reference.more


def build(reference: Reference, tensors: Mapping[str, np.ndarray]) -> Any:
    """Their model with these tensors, as it comes out of a directory."""
    if "family" in reference.config:
        return torch_models.build(reference.config, tensors)
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "config.json").write_text(references.config_text(reference))
        safetensors.save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        theirs, report = getattr(transformers, reference.builds).from_pretrained(
            folder,
            output_loading_info=True,
            attn_implementation="eager",
            experts_implementation="eager",  # the default wants strides of 16 bytes
        )
    assert not any(report.values()), report
    return theirs.eval()


def _saved(theirs: Any, folder: pathlib.Path) -> dict[str, np.ndarray]:
    theirs.save_pretrained(folder)
    return safetensors.load_file(folder / "model.safetensors")


def logits(theirs: Any, row: Row) -> Any:
    """What it says of one row that stands alone: a torch tensor [T, V], or [C] of a whole text."""
    import torch

    names = {"tokens": "input_ids", "source": "input_ids", "types": "token_type_ids"}
    names["target"] = "decoder_input_ids"
    arguments = {names[name]: torch.tensor(array[None]).long() for name, array in row.items()}
    said = theirs(**arguments)
    return getattr(said, "logits", said)[0]


def losses(said: list[Any], labels: list[np.ndarray]) -> Any:
    """The mean cross-entropy over every label of every row."""
    import torch

    flat = torch.cat([row.reshape(-1, row.shape[-1]) for row in said])
    return torch.nn.functional.cross_entropy(flat, torch.tensor(np.concatenate(labels)).long())


def gradients(theirs: Any) -> dict[str, np.ndarray]:
    """After `backward`: the gradient of each of its parameters, under the names of its files."""
    import torch

    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.grad is not None:  # Marian's sinusoids have none
                parameter.copy_(parameter.grad)
    if not hasattr(theirs, "save_pretrained"):
        return {name: array.detach().numpy() for name, array in theirs.named_parameters()}
    with tempfile.TemporaryDirectory() as name:
        found = _saved(theirs, pathlib.Path(name))
    buffers = {name for name, _ in theirs.named_buffers()}
    return {name: array for name, array in found.items() if name not in buffers}
