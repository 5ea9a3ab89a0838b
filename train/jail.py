"""Does a generated program pass its tests, without harm to whoever asks?

The program runs in a process of its own (train/jailed.py), in an empty directory that is deleted afterwards, with
nothing in its environment: limits on CPU time, memory, file size and processes; a deadline, at which its whole group
is killed; an audit hook (PEP 578) that refuses and reports processes, sockets, ctypes and writing elsewhere; and on
Linux the kernel's own refusal of these (seccomp on x86-64 and aarch64, Landlock from 5.13).

What it does not guard against: reading whatever the user can read; a program made to deceive it, which can find the
nonce in the frames above its own and claim to have passed; on other systems than Linux, code that circumvents the
audit hook, and memory where the system has no limit of it; mistakes of the kernel. It is for the programs of a
model, which are wrong and not malicious. For programs of people that you do not trust, take a virtual machine.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import IO, Any

from model import errors

INNER = pathlib.Path(__file__).with_name("jailed.py")
OUTCOMES = ("passed", "failed", "error", "timeout", "memory", "forbidden")
REPORTS = 1 << 16  # bytes that are read of what the inner side reports
FILES = 64  # that a program can hold open
PATIENCE = 0.2  # seconds between two looks at whether it still runs


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use: `wall` and `cpu` seconds, bytes of `memory`, of one `file`, and of `output` kept."""

    wall: float = 5.0
    cpu: int = 4
    memory: int = 512 << 20
    file: int = 1 << 20
    output: int = 1 << 14

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise errors.BadInput(f"the jail's limit {field.name} is {value}; give more than 0")


@dataclasses.dataclass(frozen=True)
class Result:
    """How it went: one of OUTCOMES; `detail` names the exception or what was forbidden; `output` is what it printed.

    passed: program and tests came to their ends. failed: an assertion of the tests. error: any other exception, or an
    end before the end. memory: MemoryError. forbidden: it tried what the jail refuses, whatever became of it.
    """

    outcome: str
    detail: str
    output: str
    seconds: float


def run(program: str, tests: str = "", limits: Limits = Limits()) -> Result:
    """Runs a program and then its tests, in the same names. It ends, at the latest at the deadline."""
    if os.name != "posix":
        raise errors.BadInput(
            f"generated code runs on Linux and macOS only, not on {sys.platform}; there it would not be jailed"
        )
    nonce = secrets.token_hex(16)
    rules = {
        "RLIMIT_CPU": limits.cpu,
        "RLIMIT_AS": limits.memory,
        "RLIMIT_FSIZE": limits.file,
        "RLIMIT_NOFILE": FILES,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    order = json.dumps({"program": program, "tests": tests, "nonce": nonce, "limits": rules})
    reports, report_to = os.pipe()
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="jail-", ignore_cleanup_errors=True) as room,
        tempfile.TemporaryFile() as stdin,
        open(reports, "rb") as reader,
    ):
        # A file, because a pipe that nobody reads would block us.
        stdin.write(order.encode(errors="surrogatepass"))
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(INNER), str(report_to)],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(report_to,),
                cwd=room,
                env={},
                start_new_session=True,
            )
        finally:
            os.close(report_to)
        with process:
            late, output, said = _watch(process, reader, start + limits.wall, limits.output)
    seconds = time.monotonic() - start
    outcome, detail = _judge(process.returncode, late, _reports(said, nonce), limits)
    return Result(outcome, detail, output.decode(errors="replace"), seconds)


def run_all(
    programs: Iterable[tuple[str, str]], limits: Limits = Limits(), workers: int | None = None
) -> list[Result]:
    """Runs (program, tests) pairs, `workers` at a time (by default one per core), and keeps their order."""
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(lambda pair: run(pair[0], pair[1], limits), programs))


def humaneval(problem: Mapping[str, Any], completion: str) -> tuple[str, str]:
    """Program and tests of a HumanEval problem: the completion goes on where the prompt ends (Chen et al. 2021)."""
    prompt, test, name = (_field(problem, key) for key in ("prompt", "test", "entry_point"))
    return prompt + completion, f"{test}\ncheck({name})\n"


def mbpp(problem: Mapping[str, Any], completion: str) -> tuple[str, str]:
    """Program and tests of an MBPP problem: a whole program, then its asserts (Austin et al. 2021)."""
    return completion, "\n".join(
        [_field(problem, "test_setup_code"), *_field(problem, "test_list")]
    )


def _field(problem: Mapping[str, Any], key: str) -> Any:
    if key not in problem:
        raise errors.BadInput(
            f"the problem has no field {key!r}; its fields are {', '.join(problem)}"
        )
    return problem[key]


def _watch(
    process: subprocess.Popen, reader: IO[bytes], deadline: float, most: int
) -> tuple[bool, bytes, bytes]:
    """Reads what it prints and reports until it ends or is late, and kills its group.

    Returns whether it was late, and the beginnings of both; what is beyond them is read and dropped.
    """
    assert process.stdout is not None
    kept = {process.stdout: b"", reader: b""}
    size = {process.stdout: most, reader: REPORTS}
    late = False
    with selectors.DefaultSelector() as selector:
        for file in kept:
            os.set_blocking(file.fileno(), False)
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map():
            if process.poll() is not None:
                _kill(process)  # a child of it may hold the pipes
            left = deadline - time.monotonic()
            if left <= 0:
                late = process.poll() is None
                break
            for key, _ in selector.select(min(left, PATIENCE)):
                source: Any = key.fileobj
                chunk = os.read(source.fileno(), 1 << 16)
                kept[source] += chunk[: size[source] - len(kept[source])]
                if not chunk:
                    selector.unregister(source)
    late = late or _still_runs(process, deadline)
    _kill(process)
    process.wait()
    return late, kept[process.stdout], kept[reader]


def _still_runs(process: subprocess.Popen, deadline: float) -> bool:
    """Whether a process that has closed its pipes is there at the deadline."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return True
    return False


def _kill(process: subprocess.Popen) -> None:
    """The whole group, also what remains of it when its leader has ended."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # none of it is left


def _reports(said: bytes, nonce: str) -> list[dict[str, str]]:
    """The reports with the nonce; whatever else was written there is the program's."""
    lines = said.decode(errors="replace").split("\n")[:-1]
    return [json.loads(line[len(nonce) :]) for line in lines if line.startswith(f"{nonce} ")]


def _judge(
    status: int, late: bool, reports: list[dict[str, str]], limits: Limits
) -> tuple[str, str]:
    """Outcome and detail. What was forbidden counts first: whatever came later is no honest end."""
    for report in reports:
        if report["outcome"] == "forbidden":
            return report["outcome"], report["detail"]
    if late:
        return "timeout", f"{limits.wall:g} s of wall time"
    if reports:
        return reports[-1]["outcome"], reports[-1]["detail"]
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "timeout", f"{limits.cpu} s of CPU time"
    if status < 0:
        return "error", f"ended by {signal.Signals(-status).name}"
    return "error", f"ended with status {status} before its tests did"
