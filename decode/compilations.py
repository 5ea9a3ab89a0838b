"""How many programs did jax compile? Counted by its own events, one per program that goes through the compiler.

A jitted function's cache is no count: it has an entry for each form of its arguments, such as numpy's and jax's
arrays, and two entries may share one program.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jax import monitoring

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted() -> Iterator[collections.Counter[str]]:
    """Counts the programs that are compiled within, by the name of the jitted function.

    A program that comes from the persistent cache counts as one that is compiled.

    >>> with counted() as programs:
    ...     _ = jax.jit(lambda x: x + 1)(np.ones(3))
    >>> programs["<lambda>"]
    1
    """
    programs: collections.Counter[str] = collections.Counter()

    def listen(event: str, duration_secs: float, **more: str | int) -> None:
        if event == EVENT:
            name = str(more.get("fun_name", ""))
            programs[name.removeprefix("jit(").removesuffix(")")] += 1

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        monitoring.unregister_event_duration_listener(listen)


def name(jitted: Callable[..., Any]) -> str:
    """What `counted` calls a jitted function."""
    return getattr(jitted, "__name__", repr(jitted))
