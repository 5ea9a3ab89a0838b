"""Is a window of steps traced, the last of them to its end, and is one that is none told before a run begins?"""

import re
import sys

import jax
import jax.numpy as jnp
import pytest
import running

from model import errors
from train import loop, recipe, trace


def test_the_steps_of_the_window_are_traced_and_no_others(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: told.append(f"into {path}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("end"))
    monkeypatch.setattr(jax, "block_until_ready", lambda metrics: told.append(f"wait {metrics}"))
    window = trace.Window("3:2", 7, tmp_path)
    for number in range(1, 8):
        window.before(number)
        told.append(number)
        window.after(number, f"of {number}")
    window.close()
    assert told == [1, 2, f"into {tmp_path / 'profile'}", 3, 4, "wait of 4", "end", 5, 6, 7]


def test_a_run_that_is_stopped_in_its_window_leaves_a_whole_trace(tmp_path):
    window = trace.Window("1:5", 7, tmp_path)
    window.before(1)
    window.after(1, jax.jit(lambda x_D: x_D + 1)(jnp.ones(3)))
    assert not list(tmp_path.glob("profile/**/*.xplane.pb"))
    window.close()
    window.close()
    (found,) = tmp_path.glob("profile/**/*.xplane.pb")
    assert found.stat().st_size > 1000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("3", "--profile=3 is not START:COUNT; write --profile=20:3 for steps 20 to 22"),
        ("0:2", "--profile=0:2 is not START:COUNT; write --profile=20:3 for steps 20 to 22"),
        ("3:3", "--profile=3:3 ends with step 5, and the run with step 4; start it earlier"),
    ],
)
def test_a_window_of_steps_that_is_none_is_refused(tmp_path, asked, message):
    with pytest.raises(errors.BadInput, match=f"^{re.escape(message)}$"):
        trace.Window(asked, 4, tmp_path)
    nothing = running.config(
        tmp_path / "nowhere", train={"steps": 4}, optimizer={"warmup_steps": 1}
    )
    with pytest.raises(errors.BadInput, match="is not START:COUNT|start it earlier"):
        loop.run(recipe.from_config(nothing), tmp_path / "run", profile=asked)


def test_a_tracker_that_is_not_installed_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    nothing = running.config(tmp_path / "nowhere") | {"log": {"wandb": "moons"}}
    message = r"^config.log.wandb is 'moons', and wandb cannot be imported \(.+\); pip install"
    with pytest.raises(errors.BadInput, match=message):
        loop.run(recipe.from_config(nothing), tmp_path / "run")
