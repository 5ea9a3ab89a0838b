"""What does Weights & Biases see of a run, when its recipe asks for that? The lines of metrics.jsonl, as they come."""

import importlib
import json
import pathlib
import secrets
from collections.abc import Mapping
from types import ModuleType

from model import checkpoint, errors

ID = "wandb_id"  # the file in a run's directory by which the same run goes on there


def load(project: str) -> ModuleType:
    """The package; refuses to go on without it, which `train` asks before it does any work."""
    try:  # only here: to import it takes a second, also of runs that do not ask for it
        return importlib.import_module("wandb")
    except ImportError as error:
        raise errors.BadInput(
            f"config.log.wandb is {project!r}, and wandb cannot be imported ({error}); pip install wandb, or leave it "
            "out"
        ) from error


class Tracker:
    """A run there, which goes on when ours does; WANDB_MODE=offline keeps it in `wandb/` until `wandb sync`.

    A step is a value like the others, and the axis of all: after a kill, steps that were already seen come again,
    with the same values, where the service's own counter would refuse them.
    """

    def __init__(self, project: str, directory: pathlib.Path) -> None:
        """Raises BadInput when the service refuses us."""
        path, recipe = directory / ID, directory / "config.json"
        if not path.exists():
            checkpoint.write_file(path, secrets.token_hex(8))
        try:
            self._run = load(project).init(
                project=project,
                name=directory.resolve().name,
                id=path.read_text("utf-8"),
                dir=str(directory),
                resume="allow",
                config=json.loads(recipe.read_text("utf-8")) if recipe.exists() else {},
            )
        except errors.BadInput:
            raise
        except Exception as error:  # whatever a client of a service may raise
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise errors.BadInput(
                f"config.log.wandb is {project!r}, and wandb says: {told}; log in, set WANDB_MODE=offline, or leave it "
                "out"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, scalars: Mapping[str, float]) -> None:
        """Sends numbers of a step."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """Returns when all is sent."""
        self._run.finish()
