"""How do several processes train one model? They find each other, agree on what only one can know, and end together.

JAX's coordination service carries all of it: it connects them, and its key-value store holds the few messages below.
Process 0 runs that service, prepares the data and writes the files.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed as service  # the key-value store has no public name yet

from model import errors

PERIOD = 0.5  # seconds between two looks at the others
POLL = 0.05  # seconds between two looks at a value that is waited for
FOREVER = 7 * 24 * 3600  # seconds, where only a person or the death of a process ends a wait
REASON = 300  # characters of another process's last words that are repeated
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Peers:
    """The processes of a run. Alone, nothing here costs or waits for anything.

    Attributes:
        index: this process's number, from 0.
        count: of processes.
    """

    def __init__(self, index: int = 0, count: int = 1, silence: float = 60.0) -> None:
        """`silence` is after how many seconds without a sign of life a process counts as dead."""
        self.index, self.count, self._silence = index, count, silence
        self._store: Any = service.global_state.client if count > 1 else None
        self._lock = threading.Lock()
        self._number, self._last = 0, -1
        self._signum: int | None = None
        self._told, self._agreed = False, 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if count > 1:
            self._watcher.start()

    @property
    def first(self) -> bool:
        """Whether this process is the one that prepares and writes what there must be one of."""
        return self.index == 0

    def agree(self, produce: Callable[[], str | None]) -> str:
        """What process 0 produces, in all processes; the others wait for it, however long it takes.

        All call it equally often: the n-th call of one is the n-th of all.
        """
        if self.count == 1:
            return produce() or ""
        self._agreed += 1
        key = f"agreed/{self._agreed}"
        if self.first:
            self._store.key_value_set(key, produce() or "")
        while (text := self._look(key)) is None:
            time.sleep(POLL)
        return text

    def stopping(self, number: int, signum: int | None) -> int | None:
        """The signal by which all processes stop after step `number`, or None; each asks after each step.

        Processes may be a step apart. When one is told to stop, each says where it is and goes no further until the
        last has said so; the stop is after the step that follows the latest of them. Without a signal this costs a
        lock that nobody holds.
        """
        if self.count == 1:
            return signum
        if signum is not None and not self._told:
            self._told = True
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was told as well
                self._store.key_value_set("news/stop", str(signum))
        with self._lock:
            self._number = number
            return self._signum if number == self._last else None

    def steady(self, metrics: Any) -> None:
        """Waits for a step where running ahead could hang: on CPU, several processes share threads with Gloo."""
        if self.count > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(metrics)

    def close(self) -> None:
        """Leaves the others when all have come to the same end."""
        if self.count > 1:
            self.agree(str)
            self._done.set()
            self._watcher.join()
            jax.distributed.shutdown()

    def fail(self, error: BaseException) -> NoReturn:
        """Tells the others why this process ends, and ends it."""
        if isinstance(error, SystemExit) and self._signum is not None:  # all were told to stop
            self.close()
            raise error
        if isinstance(error, jax.errors.JaxRuntimeError):  # most often the death of another process
            time.sleep(self._silence + 4 * PERIOD)  # the watcher names it and ends this process
        reason = " ".join(str(error).split())[:REASON] or type(error).__name__
        if isinstance(error, SystemExit):
            reason = "told to stop before training began"
        self._done.set()
        self._watcher.join()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(f"news/lost/{self.index}", f"stopped ({reason})", True)
            if self.first:
                time.sleep(4 * PERIOD)  # the store ends with this process: the others read it first
        if isinstance(error, errors.BadInput):
            _end(str(error))
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        sys.stdout.flush()
        # At exit JAX would wait for the others, or crash because they are gone.
        code = error.code if isinstance(error, SystemExit) else 1
        os._exit(code if isinstance(code, int) else 1)

    def _look(self, key: str) -> str | None:
        try:
            return self._store.key_value_try_get(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return None

    def _watch(self) -> None:
        """Shows that this process lives, and acts on what is heard of the others."""
        beat, asked = 0, False
        seen: dict[str, tuple[str, float]] = {}
        while not self._done.wait(PERIOD):
            try:
                self._store.key_value_set(f"beat/{self.index}", str(beat := beat + 1), True)
                if self.first:  # one reads all signs of life; the others read only what came of it
                    self._count_beats(seen)
                news = dict(self._store.key_value_dir_get("news/"))
            except jax.errors.JaxRuntimeError:
                continue  # the service is gone, and JAX is about to end this process: see `_aborted`
            for key, text in news.items():
                if "news/lost/" in key and not self._done.is_set():
                    lost = key.rsplit("/", 1)[1]
                    if self.first:
                        time.sleep(4 * PERIOD)  # the others read it before the store ends
                    _end(f"process {lost} {text}; {KEPT}")
                if key.endswith("news/stop") and not asked:
                    asked = True
                    threading.Thread(target=self._settle, args=(int(text),), daemon=True).start()

    def _count_beats(self, seen: dict[str, tuple[str, float]]) -> None:
        """Tells all of the processes whose beat has not changed for too long."""
        now = time.monotonic()
        for key, beat in self._store.key_value_dir_get("beat/"):
            before, since = seen.get(key, (None, now))
            if beat != before:
                seen[key] = beat, now
            elif now - since > self._silence:
                lost = key.rsplit("/", 1)[1]
                text = f"has not answered for {self._silence:g} s and counts as dead"
                self._store.key_value_set(f"news/lost/{lost}", text, True)

    def _settle(self, signum: int) -> None:
        """Finds the step after which all stop; no step of this process is reported meanwhile."""
        with self._lock:
            self._store.key_value_set(f"at/{self.index}", str(self._number))
            where = [
                int(self._store.blocking_key_value_get(f"at/{index}", FOREVER * 1000))
                for index in range(self.count)
            ]
            self._last, self._signum = max(where) + 1, signum


ALONE = Peers()
KEPT = "the last checkpoint is kept; start all processes again"


@contextlib.contextmanager
def join(
    coordinator: str | None,
    index: int | None,
    count: int | None,
    timeout: float = 300.0,
    silence: float = 60.0,
) -> Iterator[Peers]:
    """The processes of this run, connected; without `coordinator`, this process alone.

    Args:
        coordinator: `host:port` of process 0, or `auto` for what Slurm, Kubernetes, Open MPI or a TPU pod say.
        index: this process, from 0.
        count: of processes.
        timeout: seconds that they wait for each other.
        silence: seconds without a sign of life after which a process counts as dead.

    Raises:
        BadInput: for flags that do not go together, or a cluster that cannot be found.
    """
    _check(coordinator, index, count, timeout, silence)
    if coordinator is None:
        yield ALONE
        return
    automatic = coordinator == "auto"
    address = None if automatic else coordinator
    phase: dict[str, Any] = {
        "where": coordinator,
        "text": f"coordinator {coordinator} and all processes were not together within {timeout:g} s; check that "
        "process 0 runs there, that its port is open, and that all processes were started",
    }
    handler = _on_abort(phase)
    usual = signal.signal(signal.SIGINT, signal.SIG_DFL)  # no Python runs while C++ waits
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=round(timeout),
            cluster_detection_method=None if automatic else "deactivate",
            heartbeat_timeout_seconds=round(2 * silence + 10),  # JAX's own, if ours should fail
        )
    except (ValueError, TypeError) as error:  # a detection that found nothing, or only a part
        raise errors.BadInput(
            "--coordinator=auto found no Slurm, Kubernetes, Open MPI or TPU pod here; give --coordinator=HOST:PORT, "
            "--process_id and --num_processes"
        ) from error
    except (RuntimeError, OSError) as error:
        raise errors.BadInput(
            f"--coordinator={coordinator}: {' '.join(str(error).split())[:REASON]}; check the address and the port"
        ) from error
    finally:
        signal.signal(signal.SIGINT, usual)
    phase["where"] = service.global_state.coordinator_address
    phase["text"] = f"process 0, which coordinates, no longer answers; {KEPT}"
    peers = Peers(jax.process_index(), jax.process_count(), silence)
    try:
        yield peers
    except BaseException as error:
        peers.fail(error)
    else:
        peers.close()
    finally:
        del handler


def _check(
    coordinator: str | None, index: int | None, count: int | None, timeout: float, silence: float
) -> None:
    """Refuses flags that do not go together."""
    if coordinator is None:
        if index is not None or count is not None:
            raise errors.BadInput(
                f"--process_id={index} and --num_processes={count} need --coordinator=HOST:PORT, process 0's address"
            )
        return
    for name, seconds in (("coordinator_timeout", timeout), ("heartbeat_timeout", silence)):
        if seconds < 1:
            raise errors.BadInput(f"--{name} is {seconds:g} seconds; it must be at least 1")
    if coordinator == "auto":
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise errors.BadInput(
            f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0, or auto"
        )
    if index is None or count is None or not 0 <= index < count:
        raise errors.BadInput(
            f"--process_id is {index} of --num_processes={count}; give both, the id from 0 to one less than the number"
        )


def _on_abort(phase: dict[str, Any]) -> Any:
    """Ends the process with one line where JAX would abort it, which it does when its coordinator is lost.

    JAX offers no other way: its callback for lost heartbeats dies of a failed cast (jax 0.10 to 0.12). The handler is
    C's, because Python's would run only after the abort. Returned so that it lives as long as it is installed.
    """

    def answer(signum: int) -> None:
        text = phase["text"]
        if "no longer" in text and _listens(phase["where"]):
            text = "JAX aborted this process; set TF_CPP_MIN_LOG_LEVEL=0 to see why"
        _end(text)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    return handler


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        return True
    except OSError:
        return False


def _end(message: str) -> NoReturn:
    """One line and exit code 2, from any thread, whatever the others are stuck in."""
    sys.stdout.flush()
    cursor = SHOW_CURSOR + b"\n" if os.isatty(2) else b""
    os.write(2, cursor + f"ganymede: {message}\n".encode())
    os._exit(2)
