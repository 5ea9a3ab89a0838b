"""What becomes of a training that is told to stop before it has begun, or told twice?"""

import signal
import subprocess
import sys

import running


def test_a_second_signal_ends_the_process_at_once():
    program = (
        "import signal; from train import loop\n"
        "with loop.Interrupt() as interrupt:\n"
        "    interrupt.patient = True\n"
        "    signal.raise_signal(signal.SIGINT); print(interrupt.signum, flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM); print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=running.ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "2\n"


def test_ctrl_c_before_training_ends_with_one_line_and_nothing_half_written(tmp_path):
    asked = running.config(running.texts(tmp_path / "texts"))
    workdir = tmp_path / "run"
    process = running.start(asked, workdir)
    while not workdir.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, out, err = running.finish(process)
    assert status == 128 + signal.SIGINT
    assert err == "ganymede: stopped before training began; run the same command again\n"
    assert not list(workdir.rglob("*partial*"))
    assert not (workdir / "metrics.jsonl").exists()
