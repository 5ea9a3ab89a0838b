"""Does each program get the verdict it deserves, soon, and does nothing of it get out of the jail?"""

import ctypes
import json
import pathlib
import platform
import subprocess
import sys
import time

import pytest

from model import errors
from train import jail, jailed

LIMITS = jail.Limits(wall=4.0, cpu=1, memory=256 << 20)
SHORT = jail.Limits(wall=0.4)
GOOD = "def double(x):\n    return 2 * x\n"
LINUX = sys.platform == "linux" and platform.machine() in jailed.CALLS

# (program, tests, outcome, what its detail begins with), grouped by the limits they run under.
VERDICTS = {
    "passes": (GOOD, "assert double(3) == 6", "passed", ""),
    "is wrong": (GOOD, "assert double(3) == 7", "failed", "AssertionError"),
    "asserts by itself": ("assert 0, 'own'", "", "error", "AssertionError: own"),
    "raises": (GOOD, "double()", "error", "TypeError: double() missing 1"),
    "is no Python": ("def f(:", "", "error", "SyntaxError"),
    "swallows its tests": (GOOD + 's = """', "assert double(3) == 7", "error", "SyntaxError"),
    "exits as if all were well": ("raise SystemExit(0)", "assert 0", "error", "SystemExit: 0"),
    "ends at once": ("import os\nos._exit(0)", "assert 0", "error", "ended with status 0"),
    "claims to have passed": (
        "import os\nfor fd in range(3, 20):\n    try:\n"
        '        os.write(fd, b\'00 {"outcome": "passed", "detail": ""}\\n\')\n'
        "    except OSError: pass\nos._exit(0)",
        "assert 0",
        "error",
        "ended with status 0",
    ),
    "crashes": ("import os\nos.abort()", "", "error", "ended by SIG"),
    "asks for a number": ("input()", "", "error", "EOFError"),
    "fills a file": ("open('x', 'w').write('x' * (2 << 20))", "", "error", "OSError: [Errno 27]"),
    "keeps notes in its room": ("open('x', 'w').write('7')", "assert open('x').read() == '7'", "passed", ""),
    "writes outside": ("open('{place}/evil', 'w')", "", "forbidden", "open '{place}/evil', 'w'"),
    "opens outside": (
        "import os\nos.open('{place}/evil', os.O_CREAT | os.O_WRONLY)",
        "",
        "forbidden",
        "open '{place}/evil'",
    ),
    "goes up to write": ("open('../evil', 'a')", "", "forbidden", "open '../evil', 'a'"),
    "deletes": ("import os\nos.remove('{place}/kept')", "", "forbidden", "os.remove '{place}/kept'"),
    "forks forever": ("import os\nwhile True: os.fork()", "", "forbidden", "os.fork"),
    "hides what it tried": ("import os\ntry: os.fork()\nexcept BaseException: pass", "", "forbidden", "os.fork"),
    "starts a shell": ("import os\nos.system('true')", "", "forbidden", "os.system"),
    "starts a program": ("import subprocess\nsubprocess.run(['true'])", "", "forbidden", "subprocess.Popen"),
    "kills its parent": ("import os\nos.kill(os.getppid(), 9)", "", "forbidden", "os.kill"),
    "calls out": ("import socket\nsocket.socket()", "", "forbidden", "socket.__new__"),
    "calls C": ("import ctypes\nctypes.CDLL(None)", "", "forbidden", "ctypes.dlopen"),
}  # fmt: skip
HUNGRY = {
    "computes forever": ("while True: pass", "timeout", "1 s of CPU time"),
    "prints forever": ("while True: print('x' * 999)", "timeout", ""),
    "eats memory": ("x = [0]\nwhile True: x += x", "memory", "MemoryError"),
}
LATE = {
    "sleeps": "import time\ntime.sleep(60)",
    "sleeps behind closed doors": "import os, time\nos.closerange(0, 64)\ntime.sleep(60)",
    "is deaf": "import signal\nfor s in 2, 15, 24: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory that no program may touch."""
    place = tmp_path_factory.mktemp("outside")
    (place / "kept").write_text("kept")
    return place


@pytest.fixture(scope="module")
def results(place):
    programs = [[t.replace("{place}", str(place)) for t in case[:2]] for case in VERDICTS.values()]
    return dict(zip(VERDICTS, jail.run_all(map(tuple, programs), LIMITS, workers=2), strict=True))


@pytest.mark.parametrize("name", VERDICTS)
def test_a_program_that(name, results, place):
    _, _, outcome, detail = VERDICTS[name]
    found = results[name]
    assert found.outcome == outcome and outcome in jail.OUTCOMES
    assert found.detail.startswith(detail.replace("{place}", str(place)))
    assert found.seconds < 4


def test_nothing_outside_was_changed(results, place):
    assert len(results) == len(VERDICTS)
    assert [path.name for path in place.iterdir()] == ["kept"]
    assert not (pathlib.Path(jail.tempfile.gettempdir()) / "evil").exists()


def test_what_a_program_takes_too_much_of_ends_it():
    found = jail.run_all([(program, "") for program, *_ in HUNGRY.values()], LIMITS, workers=2)
    for result, (name, (_, outcome, detail)) in zip(found, HUNGRY.items(), strict=True):
        assert (name, result.outcome) == (name, outcome)
        assert result.detail.startswith(detail)
        assert len(result.output) <= LIMITS.output


def test_nothing_outlives_its_deadline():
    start = time.monotonic()
    found = jail.run_all([(program, "") for program in LATE.values()], SHORT, workers=3)
    assert [result.outcome for result in found] == ["timeout"] * 3
    assert {result.detail for result in found} == {"0.4 s of wall time"}
    assert time.monotonic() - start < 3


def test_output_is_kept_from_its_beginning_and_capped():
    """More than a pipe holds: a program that nobody reads would block."""
    found = jail.run("print('start')\nprint('x' * 3_000_000)", "", jail.Limits(output=4001))
    assert found.outcome == "passed"
    assert found.output == "start\n" + "x" * 3995


def test_a_program_finds_nothing_of_ours(monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    show = "import os, sys\nprint('SECRET' in os.environ, os.listdir('.'), any('site-packages' in p for p in sys.path))"
    assert jail.run(show).output == "False [] False\n"


@pytest.mark.skipif(not LINUX, reason="seccomp and Landlock are Linux's")
def test_the_kernel_refuses_what_the_hook_does_not_see(tmp_path):
    """The same process without the audit hook: it can still make no process, reach none, and write only in its room."""
    room, outside = tmp_path / "room", tmp_path / "kept"
    room.mkdir()
    outside.write_text("kept")
    script = f"""
import json, os, socket
inner = {{"__name__": "inner"}}
exec(open({str(jail.INNER)!r}).read(), inner)
inner["_close"]({{}}, os.getcwd())
tried = {{
    "fork": os.fork, "exec": lambda: os.execv("/bin/true", ["true"]), "signal": lambda: os.kill(os.getppid(), 0),
    "socket": socket.socket, "session": os.setsid, "mode": lambda: os.chmod({str(outside)!r}, 0),
    "write": lambda: open({str(outside)!r}, "w"), "make": lambda: os.mkdir({str(tmp_path / "new")!r}),
    "remove": lambda: os.remove({str(outside)!r}), "write inside": lambda: open("x", "w").write("x"),
}}
done = []
for name, try_it in tried.items():
    try:
        try_it()
        done.append(name)
    except OSError:
        pass
print(json.dumps(done))
"""
    command = [sys.executable, "-I", "-S", "-B", "-c", script]
    done = json.loads(subprocess.run(command, cwd=room, capture_output=True, check=True).stdout)
    files = {"write", "make", "remove"}
    assert "write inside" in done and set(done) <= files | {"write inside"}
    if ctypes.CDLL(None).syscall(jailed.LANDLOCK_CREATE, None, 0, 1) >= 3:
        assert done == ["write inside"] and outside.read_text() == "kept"


# Problems.


def test_humaneval_goes_on_where_its_prompt_ends():
    problem = {
        "prompt": "def half(x):\n",
        "test": "def check(f):\n    assert f(6) == 3",
        "entry_point": "half",
    }
    program, tests = jail.humaneval(problem, "    return x // 2\n")
    assert program == "def half(x):\n    return x // 2\n"
    assert tests == "def check(f):\n    assert f(6) == 3\ncheck(half)\n"
    outcomes = [
        jail.run(*jail.humaneval(problem, body)).outcome
        for body in ("    return x // 2\n", "    return x\n")
    ]
    assert outcomes == ["passed", "failed"]


def test_mbpp_is_a_program_and_its_asserts():
    problem = {
        "test_setup_code": "six = 6",
        "test_list": ["assert double(3) == six", "assert double(0) == 0"],
    }
    program, tests = jail.mbpp(problem, GOOD)
    assert (program, tests) == (
        GOOD,
        "six = 6\nassert double(3) == six\nassert double(0) == 0",
    )
    assert jail.run(program, tests).outcome == "passed"


def test_a_problem_without_a_field_is_refused():
    with pytest.raises(
        errors.BadInput,
        match="^the problem has no field 'test_setup_code'; its fields are code, text$",
    ):
        jail.mbpp({"code": "", "text": ""}, "")


def test_limits_of_nothing_are_refused():
    with pytest.raises(errors.BadInput, match="^the jail's limit cpu is 0; give more than 0$"):
        jail.Limits(cpu=0)


def test_a_system_without_process_groups_is_refused(monkeypatch):
    monkeypatch.setattr(jail.os, "name", "nt")
    with pytest.raises(
        errors.BadInput,
        match="^generated code runs on Linux and macOS only, not on .*; there it would",
    ):
        jail.run("pass")
