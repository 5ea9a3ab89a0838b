"""Are the run's own files the same after a kill, valid at every moment, and readable by people?"""

import io
import json
import math
import re
import subprocess
import sys
import textwrap

import pytest
from rich import console as consoles
from tensorboardX.proto import event_pb2

from model import errors
from train import log

TIMING = {"tokens_per_second": 12345.6, "utilisation": 0.31, "seconds_left": 65.0}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(directory, start, stop):
    """What a run writes: a loss every step, texts every third."""
    record = log.Record(directory, start)
    for step in range(start + 1, stop + 1):
        record.metrics(step, "train", {"loss": 1 / step}, {"seconds": 0.1})
        if step % 3 == 0:
            record.metrics(step, "valid", {"loss": 2 / step}, {"seconds": 0.2})
            record.samples(step, {"greedy": [("The moon", f" of step {step}\n## step 1\nis")]})
    record.sync()
    record.close()


@pytest.mark.parametrize(
    "torn", ["", '{"step": 8, "split": "tra', '{"step": 7, "split": "train"}', "{}\n", "[1]\n"]
)
def test_files_after_a_resume_equal_those_of_a_run_that_never_stopped(tmp_path, torn):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for directory in (whole, parts):
        directory.mkdir()
    write_steps(whole, 0, 11)
    write_steps(parts, 0, 7)
    with (parts / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with (parts / "samples.md").open("a") as file:
        file.write("## step 9\n\n### gree")
    write_steps(parts, 5, 11)
    for name in ("metrics.jsonl", "samples.md"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert [
        line["step"] for line in lines(parts / "metrics.jsonl") if line["split"] == "train"
    ] == [*range(1, 12)]
    assert not list(parts.glob(".*"))


def test_a_loss_comes_back_to_the_bit_and_what_is_not_finite_is_null(tmp_path):
    record = log.Record(tmp_path, 0)
    record.metrics(
        1, "train", {"loss": 0.1 + 0.2, "perplexity": math.inf, "norm": math.nan}, {"seconds": 0.5}
    )
    record.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    expected = {
        "step": 1,
        "split": "train",
        "loss": 0.1 + 0.2,
        "perplexity": None,
        "norm": None,
        "time": {"seconds": 0.5},
    }
    assert json.loads(text, parse_constant=pytest.fail) == expected


def events(directory):
    """(step, tag or "start", value) of every event; a file is (length u64, crc u32, bytes, crc u32) repeated."""
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                yield event.step, "start", None
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_tensorboard_is_told_to_forget_what_comes_after_the_resumed_step(tmp_path):
    record = log.Record(tmp_path, 4)
    record.metrics(5, "train", {"loss": 0.25}, {"seconds": 0.5})
    record.close()
    assert list(events(tmp_path / "tensorboard")) == [
        (5, "start", None),
        (5, "train/loss", 0.25),
        (5, "train/time/seconds", 0.5),
    ]


class Wandb:
    """In place of the package: keeps what it is told; with `error`, refuses."""

    def __init__(self, error=None):
        self.error, self.told, self.asked = error, [], []

    def init(self, **asked):
        if self.error:
            raise self.error
        self.asked.append(asked)
        return self

    def define_metric(self, name, step_metric=None):
        self.told.append((name, step_metric))

    def log(self, values):
        self.told.append(values)

    def finish(self):
        self.told.append("finished")


def test_weights_and_biases_gets_the_numbers_of_the_file_by_step_and_the_same_run_after_a_stop(
    tmp_path, monkeypatch
):
    service = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", service)
    (tmp_path / "config.json").write_text('{"seed": 5}')
    for step in (0, 3):
        record = log.Record(tmp_path, step, "moons")
        timing = {"data_wait": 0.25, "device_memory": None}
        record.metrics(step + 1, "train", {"loss": 0.5}, timing)
        record.metrics(step + 1, "valid", {"loss": 0.75}, {})
        record.close()
    one, two = service.asked
    assert one == two and re.fullmatch(r"[0-9a-f]{16}", one["id"])
    assert (one["project"], one["dir"], one["resume"]) == ("moons", str(tmp_path), "allow")
    assert (one["name"], one["config"]) == (tmp_path.name, {"seed": 5})
    assert service.told[5:] == [
        ("step", None),
        ("*", "step"),
        {"step": 4, "train/loss": 0.5, "train/time/data_wait": 0.25},
        {"step": 4, "valid/loss": 0.75},
        "finished",
    ]
    assert [line["time"] for line in lines(tmp_path / "metrics.jsonl")][:2] == [timing, {}]
    with_it = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "without").mkdir()
    record = log.Record(tmp_path / "without", 0)
    for step in (1, 4):
        record.metrics(step, "train", {"loss": 0.5}, timing)
        record.metrics(step, "valid", {"loss": 0.75}, {})
    record.close()
    assert (tmp_path / "without" / "metrics.jsonl").read_bytes() == with_it


def test_a_service_that_refuses_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb(RuntimeError("no API key\nconfigured")))
    message = "^config.log.wandb is 'moons', and wandb says: no API key; log in, set WANDB_MODE=offline, or leave it"
    with pytest.raises(errors.BadInput, match=message):
        log.Record(tmp_path, 0, "moons")


def test_samples_are_markdown_that_no_text_can_break(tmp_path):
    record = log.Record(tmp_path, 0)
    completions = {
        "greedy": [("def f():", "\n\n    ```\n# a\x00\u2028b")],
        "top_p 0.9": [("The", " moon"), ("A", " é\r")],
    }
    record.samples(7, completions)
    record.close()
    assert (tmp_path / "samples.md").read_bytes().decode() == textwrap.dedent("""\
        ## step 7

        ### greedy

            [def f():]

                ```
            # a\\x00\\u2028b

        ### top_p 0.9

            [The] moon

            [A] é\\r

        """)


def test_blanks_at_the_end_of_a_sample_are_seen(tmp_path):
    record = log.Record(tmp_path, 0)
    record.samples(3, {"greedy": [("p", 48 * " "), ("q ", " x  \n\t"), ("", "\n")]})
    record.close()
    samples = (tmp_path / "samples.md").read_text()
    assert "    [p]·×48\n\n    [q ] x··⏎⇥\n\n    []⏎\n" in samples
    assert all(line == line.rstrip() for line in samples.splitlines())


def test_a_full_disk_is_said_in_one_line_and_leaves_valid_files(tmp_path):
    """A real refusal: no file of the child may grow beyond 2,000 bytes."""
    program = """
        import pathlib, resource, signal, sys
        from model import errors
        from train import log
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        record = log.Record(pathlib.Path(sys.argv[1]), 0)
        try:
            for step in range(1, 1000):
                record.metrics(step, "train", {"loss": 0.5}, {})
        except errors.BadInput as error:
            record.close()
            print(step)
            sys.exit(str(error))
        """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))} cannot be written to \(File too large\); the last checkpoint is kept; "
        "make room and run the same command again\n",
        child.stderr,
    )
    failed = int(child.stdout)
    assert failed > 10
    record = log.Record(tmp_path, failed)
    record.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [*range(1, failed)]


def test_a_directory_that_is_missing_is_bad_input(tmp_path):
    with pytest.raises(
        errors.BadInput, match=r"nowhere cannot be written to \(No such file or directory\)"
    ):
        log.Record(tmp_path / "nowhere", 0)


def test_elsewhere_than_on_a_terminal_progress_is_plain_lines(monkeypatch):
    out = io.StringIO()
    progress = log.Progress(200, consoles.Console(file=out, highlight=False))
    with progress.work("tokenising") as show:
        show(1_000_000, 3_000_000)
        monkeypatch.setattr(log, "SILENCE", -1)
        show(2_000_000, 3_000_000)
    progress.start(7)
    progress.say("[bold]resuming[/bold] at step 7 " + "x" * 200)
    progress.step(8, {"loss": 3.25}, TIMING, line=False)
    progress.step(9, {"loss": 3.125}, TIMING, line=True)
    progress.stop()
    assert out.getvalue() == (
        "tokenising: 2 of 3 MB\n"
        f"[bold]resuming[/bold] at step 7 {'x' * 200}\n"
        "step   9/200  loss 3.1250     12,346 tokens/s  FLOP use  31%  1 min 05 s left\n"
    )


def test_on_a_terminal_progress_is_a_bar():
    out = io.StringIO()
    console = consoles.Console(file=out, force_terminal=True, width=120, color_system=None)
    progress = log.Progress(200, console)
    with progress.work("tokenising") as show:
        show(2_000_000, 3_000_000)
    progress.start(7)
    progress.step(9, {"loss": 3.125}, TIMING, line=True)
    progress.stop()
    for shown in ("2.0/3.0 MB", "7/200 compiling", "9/200 loss 3.1250"):
        assert shown in out.getvalue()
    assert "step   9" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (11257, "3 h 07 min"),
        (90000, "1 d 01 h"),
    ],
)
def test_durations_show_the_two_units_that_matter(seconds, text):
    assert log.duration(seconds) == text
