"""How much memory does this process hold? As Linux reports it."""

import pathlib


def now() -> int:
    """Bytes at this moment."""
    return _status("VmRSS")


def most() -> int:
    """The most bytes since the process began, or since `forget`."""
    return _status("VmHWM")


def forget() -> None:
    """Lets the most so far be what is held now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
