"""The inner side of train/jail.py: locks its own process in, runs a program and its tests, and reports how it went.

Runs as a script under `python -I -S`, so it stands on the standard library alone. What to do comes as JSON on the
standard input; each line it reports, to the file descriptor it was given, begins with the nonce that came with it.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

# Events of https://docs.python.org/3/library/audit_events.html, by their beginnings. `open` has a rule of its own.
REFUSED = (
    "ctypes.",
    "gc.get_",
    "os.chflags",
    "os.chmod",
    "os.chown",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.removexattr",
    "os.spawn",
    "os.symlink",
    "os.system",
    "os.truncate",
    "os.utime",
    "pty.",
    "resource.",
    "signal.pthread_kill",
    "socket.",
    "sqlite3.",
    "subprocess.",
    "sys._current_",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Calls of Linux that make processes, reach others, or reach a network, by machine: clone, fork, vfork, execve,
# execveat, kill, tkill, tgkill, ptrace, process_vm_writev, setsid, setpgid, unshare, mount, socket, socketpair,
# connect, and chmod and chown in their forms, which Landlock lacks; of all machines pidfd_send_signal,
# io_uring_setup, clone3, fchmodat2.
EVERYWHERE = (424, 425, 435, 452)
CALLS = {
    "x86_64": (0xC000003E, (56, 57, 58, 59, 322, 62, 200, 234, 101, 311, 112, 109, 272, 165, 41, 53, 42,
                            90, 91, 92, 93, 94, 260, 268)),
    "aarch64": (0xC00000B7, (220, 221, 281, 129, 130, 131, 117, 271, 157, 154, 97, 40, 198, 199, 203,
                             52, 53, 54, 55)),
}  # fmt: skip
DEATH_SIGNAL, SECCOMP, NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl(2)
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14  # of landlock(7)
CHANGES = sum(
    1 << bit for bit in range(4, 13)
)  # removing and making files and directories, of any kind


def main(report_to: int) -> None:
    """Reads the order, closes the door, runs the program and then its tests, and reports the outcome."""
    order = json.load(sys.stdin)
    report = _reporter(report_to, order["nonce"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    room = os.getcwd()
    _close(order["limits"], room)
    _watch(report, os.path.realpath(room))
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.argv = ["program.py"]
    namespace = module.__dict__
    outcome = _run(order["program"], order["tests"], namespace)
    report(outcome)
    try:
        sys.stdout.flush()
    finally:
        os._exit(0)


def _run(program: str, tests: str, namespace: dict[str, Any]) -> dict[str, str]:
    """Passed only where both come to their ends: `exit()` on the way is an exception like any other."""
    within = "program"
    try:
        exec(compile(program, "program.py", "exec"), namespace)
        within = "tests"
        exec(compile(tests, "tests.py", "exec"), namespace)
        return {"outcome": "passed", "detail": ""}
    except MemoryError:
        namespace.clear()  # room for the report
        return {"outcome": "memory", "detail": "MemoryError"}
    except BaseException as error:
        failed = within == "tests" and isinstance(error, AssertionError)
        try:
            text = f"{type(error).__name__}: {error}"
        except BaseException:  # it can have a __str__ of its own
            text = type(error).__name__
        return {"outcome": "failed" if failed else "error", "detail": text[:500]}


def _reporter(descriptor: int, nonce: str) -> Callable[[dict[str, str]], None]:
    write = os.write  # the program may put another in its place

    def report(what: dict[str, str]) -> None:
        write(descriptor, f"{nonce} {json.dumps(what)}\n".encode())

    return report


def _close(limits: dict[str, int], room: str) -> None:
    """Limits of the process, and on Linux rules of its kernel; what the kernel lacks is left to the audit hook."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            # A second after SIGXCPU, which a program can ignore, comes SIGKILL.
            resource.setrlimit(kind, (value, value + (name == "RLIMIT_CPU")))
        except (OSError, ValueError):
            continue  # macOS refuses some, such as the address space
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _landlock(libc, room)
        _seccomp(libc)
    # Imported again, by the program, it raises events that are refused.
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    del globals()["ctypes"]


def _landlock(libc: Any, room: str) -> None:
    """No file can be written, made or removed but in the room (Linux 5.13; cutting files short from 6.2)."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return
    rights = WRITE_FILE | CHANGES | (TRUNCATE if version >= 3 else 0)
    asked = ctypes.create_string_buffer(struct.pack("=Q", rights), 8)
    rules = libc.syscall(LANDLOCK_CREATE, asked, 8, 0)
    inside = os.open(room, os.O_PATH | os.O_DIRECTORY)
    # struct landlock_path_beneath_attr is packed: 8 bytes of rights, 4 of descriptor.
    beneath = ctypes.create_string_buffer(struct.pack("=Qi", rights, inside), 12)
    libc.syscall(LANDLOCK_ADD, rules, 1, beneath, 0)
    libc.syscall(LANDLOCK_RESTRICT, rules, 0)
    os.close(inside)
    os.close(rules)


def _seccomp(libc: Any) -> None:
    """A filter that answers EPERM to the calls above: for root too, whom RLIMIT_NPROC does not hold."""
    if platform.machine() not in CALLS:
        return
    machine, calls = CALLS[platform.machine()]
    refused = (*calls, *EVERYWHERE)
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    # Loads the machine; of another (32 bits) everything is refused. Then the call; x32 calls begin at 1 << 30.
    code = [(load, 0, 0, 4), (equal, 0, len(refused) + 3, machine), (load, 0, 0, 0)]
    code.append((at_least, len(refused) + 1, 0, 1 << 30))
    code += [(equal, len(refused) - i, 0, call) for i, call in enumerate(refused)]
    code += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EPERM)]
    body = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(body)))
    libc.prctl(SECCOMP, 2, program, 0, 0)


def _watch(report: Callable[[dict[str, str]], None], room: str) -> None:
    """Refuses what Python tells of, and reports it at once: so a program that catches the refusal is found out too."""
    realpath, fspath, refused, writing = os.path.realpath, os.fspath, REFUSED, WRITING

    def refuse(event: str, arguments: tuple) -> None:
        text = f"{event} {', '.join(repr(each) for each in arguments)}"[:200]
        report({"outcome": "forbidden", "detail": text})
        raise PermissionError(f"the jail forbids {text}")

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & writing)
            if writes and not isinstance(path, int):
                path = fspath(path)
                path = path if isinstance(path, str) else path.decode(errors="replace")
                if not realpath(path).startswith(room + "/"):
                    refuse(event, (path, mode))
        elif event.startswith(refused):
            refuse(event, arguments)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(int(sys.argv[1]))
