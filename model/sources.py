"""What lies in a directory that somebody calls a model: a run of ours, a bundle of ours, or Hugging Face's files?"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from model import errors, files, hf, tokenizer, tokenizer_files, weights
from model.config import ModelConfig
from model.hf import Match
from model.tokenizer import Tokenizer
from model.weights import Weights

FORMAT = "ganymede-bundle-1"
ADAPTER = "adapter_config.json"  # of PEFT
WANTED = "give a run, a bundle or a Hugging Face directory"
# Files that say something about a tokenizer and are none.
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A bundle or a Hugging Face directory, of which no number has been read yet.

    Attributes:
        config: describes the weights.
        leaves: our parameters by path, as views of the mapped files.
        names: how the directory calls each of them.
        weights: all of its tensors.
        source: the config.json that came with the weights, in Hugging Face's words; of a bundle what it recorded.
        match: of a Hugging Face directory, which of its tensors is what.
    """

    config: ModelConfig
    leaves: dict[str, Any]
    names: dict[str, str]
    weights: Weights
    source: dict[str, Any]
    match: Match | None = None

    @property
    def architecture(self) -> str:
        """The `model_type`."""
        return self.source["model_type"] if self.match else self.source["config"]["model_type"]


def read(directory: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """Which kind a directory is (`run`, `bundle`, `theirs` or `adapter`), and its config.json.

    Raises:
        BadInput: when it is none of them.
    """
    path = directory / "config.json"
    if not directory.is_dir():
        raise errors.BadInput(f"there is no directory {directory}; {WANTED}")
    if not path.is_file() and (directory / ADAPTER).is_file():
        return "adapter", _adapter(directory / ADAPTER)
    if not path.is_file():
        raise errors.BadInput(f"{directory} holds no model: config.json is missing; {WANTED}")
    groups = files.read_json(path, WANTED)
    if "format" in groups:
        if groups["format"] != FORMAT:
            raise errors.BadInput(
                f"{path} has format {groups['format']!r}, which this version does not read; it reads {FORMAT!r}"
            )
        return "bundle", groups
    if "model_type" in groups:
        return "theirs", groups
    if isinstance(groups.get("model"), Mapping):
        return "run", groups
    raise errors.BadInput(
        f"{path} has neither a model_type, as Hugging Face's has, nor a model group, as a run's has; {WANTED}"
    )


def _adapter(path: pathlib.Path) -> dict[str, Any]:
    """What PEFT says of an adapter, whose base must lie here."""
    groups = files.read_json(path, WANTED)
    base = groups.get("base_model_name_or_path")
    if not base or not pathlib.Path(base).is_dir():
        raise errors.BadInput(
            f"{path} has base_model_name_or_path {base!r}, which is no directory here; set it to the base model's"
        )
    return groups


def config_of(directory: pathlib.Path) -> ModelConfig:
    """The config of the model in any such directory; no weight is read."""
    kind, groups = read(directory)
    if kind == "adapter":
        return config_of(pathlib.Path(groups["base_model_name_or_path"]))
    if kind == "run":
        return errors.build(ModelConfig, groups["model"], f"{directory / 'config.json'}: model")
    return (open_bundle if kind == "bundle" else open_theirs)(directory, groups).config


def open_theirs(directory: pathlib.Path, said: Mapping[str, Any]) -> Opened:
    """A Hugging Face directory, its config.json read."""
    hf.model_config(said)  # refuses a config before the files are opened
    held = weights.Weights(directory)
    config = hf.model_config(said, held)
    architecture = said["model_type"]
    match = hf.resolve(architecture, config, held)
    hf.check_copies(match, held)
    held.release()
    leaves = hf.views(architecture, config, held, match)
    names = {
        path: " to ".join(
            sorted({str(match.found[name]) for name in (each.names[0], each.names[-1])})
        )
        for each in hf.entries(architecture, config)
        for path in each.ours
    }
    return Opened(config, leaves, names, held, dict(said), match)


def open_bundle(directory: pathlib.Path, groups: Mapping[str, Any]) -> Opened:
    """A bundle, its config.json read; whether its tensors are those of the config, `check_shapes` says."""
    where = directory / "config.json"
    config = errors.build(ModelConfig, groups.get("model", {}), f"{where}: model")
    source = groups.get("source")
    if not isinstance(source, dict) or "model_type" not in source.get("config", {}):
        raise errors.BadInput(
            f"{where} does not say where its weights came from; import them again"
        )
    held = weights.Weights(directory)
    return Opened(config, dict(held), {path: path for path in held}, held, source)


def check_shapes(opened: Opened, abstract: Any) -> None:
    """Refuses a bundle whose parameters are not those of its config, `model.abstract` of it."""
    expected = hf.flatten(nn.meta.unbox(abstract))
    missing = [path for path in expected if path not in opened.leaves]
    unknown = [path for path in opened.leaves if path not in expected]
    if missing or unknown:
        raise errors.BadInput(hf.complaint(opened.architecture, missing, unknown))
    for path, leaf in opened.leaves.items():
        if leaf.shape != expected[path].shape:
            raise errors.BadInput(
                f"tensor {path!r} has shape {leaf.shape}; the config asks for {expected[path].shape}"
            )


def words(directory: pathlib.Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer beside the weights, or None when there is none.

    Raises:
        BadInput: when it has more tokens than the embedding has rows; fewer are usual, where tables were padded.
    """
    if not any(
        (directory / name).is_file() for name in tokenizer_files.KNOWN if name not in SETTINGS
    ):
        return None
    found = tokenizer.load(directory)
    if found.vocab_size > config.vocab_size:
        raise errors.BadInput(
            f"the tokenizer in {directory} has {found.vocab_size} tokens, and the embedding {config.vocab_size} rows; "
            "give the tokenizer that belongs to these weights"
        )
    return found
