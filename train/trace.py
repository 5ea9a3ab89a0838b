"""Where does the time of a step go? A window of steps for jax's profiler, which TensorBoard and Perfetto show."""

import pathlib
import re
from typing import Any

import jax

from model import errors


class Window:
    """The steps that `--profile=START:COUNT` asks for, traced under the run's `profile/`.

    The trace ends when the last of them is computed and not when it is handed to the devices: this one step is waited
    for.
    """

    def __init__(self, asked: str | None, steps: int, directory: pathlib.Path) -> None:
        """Refuses a window that is none, or none of a run of `steps` steps."""
        self._first, self._last, self._directory, self._running = (
            0,
            -1,
            directory / "profile",
            False,
        )
        if asked is None:
            return
        found = re.fullmatch(r"(\d+):(\d+)", asked)
        if not found or int(found[1]) < 1 or int(found[2]) < 1:
            raise errors.BadInput(
                f"--profile={asked} is not START:COUNT; write --profile=20:3 for steps 20 to 22"
            )
        self._first, self._last = int(found[1]), int(found[1]) + int(found[2]) - 1
        if self._last > steps:
            raise errors.BadInput(
                f"--profile={asked} ends with step {self._last}, and the run with step {steps}; start it earlier"
            )

    def before(self, number: int) -> None:
        """Called before a step is handed to the devices."""
        if number == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, number: int, metrics: Any) -> None:
        """Called with what the step gives, which may still be computed."""
        if self._running and number >= self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends a trace that a run which was stopped has left open."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
