"""Does a checkpoint survive kills, full disks and damage, and does it come back bit for bit?"""

import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from model import blocks, checkpoint, errors, sharding

HERE = pathlib.Path(__file__).resolve().parent.parent


def some_state(seed: int = 0) -> dict:
    """Stacked layers, several dtypes, a scalar."""
    first, second = jax.random.split(jax.random.key(seed))
    params = {
        "layers": {"weight": jax.random.normal(first, (3, 5, 7)), "bias": jnp.zeros((3, 7))},
        "norm": {"scale": jnp.ones(11, jnp.bfloat16)},
    }
    return {
        "step": jnp.int32(seed),
        "params": params,
        "moment": jax.random.normal(second, (131, 97)),
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(one, two) -> None:
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def two_steps(tmp_path):
    """A directory with complete checkpoints of steps 2 and 3."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (2, 3):
        checkpoints.save(step, some_state(step), {"note": f"step {step}"})
    checkpoints.close()
    return tmp_path


def test_what_was_saved_comes_back_and_only_the_last_ones_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (3, 5, 7):
        checkpoints.save(step, some_state(step), {"step": step, "name": "é"})
    checkpoints.wait()
    assert checkpoints.latest() == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "7"]
    for step in (5, 7):
        state, meta = checkpoints.restore(step, abstract(some_state()))
        assert_same(state, some_state(step))
        assert meta == {"step": step, "name": "é"}
    assert checkpoint.read_meta(tmp_path, 5)["step"] == 5
    checkpoints.close()


def test_a_checkpoint_is_read_onto_any_mesh(tmp_path):
    written = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    read = sharding.make_mesh({"data": 4, "tensor": 2})
    value = jax.random.normal(jax.random.key(0), (8, 6))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    there = jax.sharding.NamedSharding(written, PartitionSpec("fsdp", "tensor"))
    checkpoints.save(1, {"x": jax.device_put(value, there)}, {})
    checkpoints.wait()
    here = jax.sharding.NamedSharding(read, PartitionSpec("tensor", None))
    state, _ = checkpoints.restore(
        1, {"x": jax.ShapeDtypeStruct((8, 6), value.dtype, sharding=here)}
    )
    assert state["x"].sharding == here
    np.testing.assert_array_equal(state["x"], value)
    checkpoints.close()


def test_parameters_are_read_without_the_optimizer_state(two_steps):
    shutil.rmtree(two_steps / "2")
    params = checkpoint.params_only(two_steps, 3, abstract(some_state())["params"])
    assert_same(params, some_state(3)["params"])
    assert checkpoint.read_meta(two_steps, 3) == {"note": "step 3"}


def test_a_state_that_training_consumes_while_it_is_being_written_is_written_as_it_was(tmp_path):
    """The next step is given the very buffers that are being written, to overwrite."""
    consume = jax.jit(lambda tree: jax.tree.map(lambda x: x * 3 + 1, tree), donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    state = {"x": jnp.arange(4_000_000, dtype=jnp.float32)}
    checkpoints.save(1, state, {})
    for _ in range(50):
        state = jax.block_until_ready(consume(state))
    checkpoints.wait()
    back, _ = checkpoints.restore(1, abstract(state))
    np.testing.assert_array_equal(back["x"], np.arange(4_000_000, dtype=np.float32))
    checkpoints.close()


def test_the_digest_is_the_one_its_docstring_describes():
    inner = hashlib.sha256(bytes.fromhex("0000803f")).hexdigest()
    outer = hashlib.sha256(f"a float32 (1,) {inner}\n".encode()).hexdigest()
    assert checkpoint.tree_digest({"a": jnp.ones(1)}) == outer


def test_the_digest_does_not_depend_on_layout_or_mesh():
    params = {"layers": {"weight": jax.random.normal(jax.random.key(0), (3, 5, 8))}}
    digest = checkpoint.tree_digest(params)
    assert checkpoint.tree_digest(blocks.unstack_layers(params)) == digest
    mesh = sharding.make_mesh({"tensor": 8})
    split = jax.sharding.NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
    assert checkpoint.tree_digest(jax.device_put(params, split)) == digest
    assert checkpoint.tree_digest(jax.device_get(params)) == digest


def test_the_digest_changes_with_every_bit_name_dtype_and_shape():
    weight = jnp.arange(6, dtype=jnp.float32)
    flipped = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(weight, jnp.int32) ^ 1, jnp.float32
    )
    trees = [
        {"a": weight},
        {"a": flipped},
        {"b": weight},
        {"a": weight.view(jnp.int32)},
        {"a": weight.reshape(2, 3)},
        {"a": weight, "b": weight[:0]},
    ]
    assert len({checkpoint.tree_digest(tree) for tree in trees}) == len(trees)


def test_a_half_written_checkpoint_is_never_listed_and_is_cleared_away(two_steps):
    half = two_steps / "5.orbax-checkpoint-tmp"
    shutil.copytree(two_steps / "3", half)
    assert checkpoint.latest(two_steps) == 3
    assert half.exists()  # a reader leaves it alone: another process may be writing it
    checkpoints = checkpoint.Checkpoints(two_steps)
    assert checkpoints.discarded == [half]
    assert not half.exists()
    assert checkpoints.latest() == 3
    checkpoints.close()


def largest(directory: pathlib.Path) -> pathlib.Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(directory: pathlib.Path) -> None:
    os.truncate(largest(directory), largest(directory).stat().st_size // 2)


def remove(directory: pathlib.Path) -> None:
    largest(directory).unlink()


def flip_a_bit(directory: pathlib.Path) -> None:
    content = bytearray(largest(directory).read_bytes())
    content[len(content) // 2] ^= 16
    largest(directory).write_bytes(content)


def remove_state(directory: pathlib.Path) -> None:
    shutil.rmtree(directory / "state")


def empty(directory: pathlib.Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def truncate_meta(directory: pathlib.Path) -> None:
    os.truncate(directory / "meta" / "metadata", 17)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, r"\S+ cannot be read"),
        (remove, r"\S+ cannot be read"),
        (flip_a_bit, r"\S+ is not what was written"),
        (remove_state, "state is missing"),
        (empty, "meta/metadata is missing"),
        (truncate_meta, "meta/metadata is not what was written"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_way_on(two_steps, damage, reason):
    damage(two_steps / "3")
    checkpoints = checkpoint.Checkpoints(two_steps)
    path = re.escape(str(two_steps / "3"))
    with pytest.raises(
        errors.BadInput,
        match=rf"^checkpoint {path} is damaged \({reason}\); remove that directory to go on from step 2$",
    ):
        checkpoints.restore(3, abstract(some_state()))
    shutil.rmtree(two_steps / "3")
    state, _ = checkpoints.restore(2, abstract(some_state()))
    assert_same(state, some_state(2))
    shutil.rmtree(two_steps / "2" / "meta")
    with pytest.raises(errors.BadInput, match="remove that directory to start again from step 0$"):
        checkpoints.restore(2, abstract(some_state()))
    checkpoints.close()


@pytest.mark.parametrize("damage", [truncate, remove])
def test_reading_a_checkpoint_with_a_lost_file_prints_nothing_but_the_error(
    two_steps, damage, capfd
):
    damage(two_steps / "3")
    checkpoints = checkpoint.Checkpoints(two_steps)
    with pytest.raises(errors.BadInput, match="damaged"):
        checkpoints.restore(3, abstract(some_state()))
    time.sleep(0.2)  # abandoned reads would print by now
    checkpoints.close()
    assert capfd.readouterr() == ("", "")


def test_damage_to_the_optimizer_state_does_not_matter_to_a_reader_of_parameters(two_steps):
    remove(two_steps / "3")
    params = checkpoint.params_only(two_steps, 3, abstract(some_state())["params"])
    assert_same(params, some_state(3)["params"])


def wider(params):
    return {**params, "norm": {"scale": jax.ShapeDtypeStruct((13,), jnp.bfloat16)}}


def other_dtype(params):
    return {**params, "norm": {"scale": jax.ShapeDtypeStruct((11,), jnp.float32)}}


def more(params):
    return {**params, "output": {"weight": jax.ShapeDtypeStruct((2,), jnp.float32)}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (wider, r"params/norm/scale is bfloat16 \[11\] there and bfloat16 \[13\] here"),
        (other_dtype, r"params/norm/scale is bfloat16 \[11\] there and float32 \[11\] here"),
        (more, r"params/output/weight is absent there and float32 \[2\] here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_cast(two_steps, change, problem):
    params = change(abstract(some_state())["params"])
    with pytest.raises(
        errors.BadInput, match=f"3 is of another model than this config: {problem}; use"
    ):
        checkpoint.params_only(two_steps, 3, params)


def test_a_checkpoint_that_holds_more_than_the_state_is_refused(two_steps):
    state = abstract(some_state())
    del state["moment"]
    checkpoints = checkpoint.Checkpoints(two_steps)
    with pytest.raises(
        errors.BadInput, match=r"moment is float32 \[131, 97\] there and absent here"
    ):
        checkpoints.restore(3, state)
    checkpoints.close()


def test_too_little_room_is_found_before_writing(two_steps, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1234)
    )
    checkpoints = checkpoint.Checkpoints(two_steps)
    where = re.escape(str(two_steps))
    with pytest.raises(
        errors.BadInput,
        match=rf"^checkpoint of step 5 was not written to {where} \(it needs 51,[0-9]+ bytes and 1,234 are free\); "
        "the one of step 3 is kept; make room and run the same command again$",
    ):
        checkpoints.save(5, some_state(5), {})
    checkpoints.close()
    assert checkpoint.latest(two_steps) == 3


def test_what_is_not_the_disks_fault_is_not_blamed_on_it(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(Exception, match="JSON") as caught:
        checkpoints.save(1, some_state(), {"object": object()})
        checkpoints.wait()
    assert not isinstance(caught.value, errors.BadInput)
    checkpoints.close()


def test_a_directory_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        errors.BadInput, match="checkpoints cannot be kept in .*file/checkpoints: Not a directory"
    ):
        checkpoint.Checkpoints(tmp_path / "file" / "checkpoints")


# Saves checkpoint after checkpoint of a state that its step determines, until it is killed or a write fails.
WRITER = """
import resource, signal, sys
import jax, jax.numpy as jnp
from model import checkpoint, errors

directory, largest_file = sys.argv[1], int(sys.argv[2])
checkpoints = checkpoint.Checkpoints(directory, keep=2)
step = checkpoints.latest() or 0
while True:
    step += 1
    state = {"x": jax.random.normal(jax.random.key(step), (200_000,)), "step": jnp.int32(step)}
    if largest_file and step == 4:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    try:
        checkpoints.save(step, state, {"step": step})
        if largest_file:
            checkpoints.wait()
    except errors.BadInput as error:
        checkpoints.close()
        sys.exit(f"ganymede: {error}")
    print(step, flush=True)
"""


def start_writer(directory: pathlib.Path, largest_file: int = 0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(largest_file)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )


def written_state(directory: pathlib.Path, step: int) -> dict:
    state = {"x": jnp.zeros(200_000), "step": jnp.int32(0)}
    checkpoints = checkpoint.Checkpoints(directory)
    state, meta = checkpoints.restore(step, abstract(state))
    checkpoints.close()
    assert meta == {"step": step}
    return state


# Refused to TensorStore's threads, and to Orbax's own.
@pytest.mark.parametrize("largest_file", [100_000, 20])
def test_a_write_that_the_system_refuses_keeps_the_last_checkpoint_and_says_so_in_one_line(
    tmp_path, largest_file
):
    writer = start_writer(tmp_path, largest_file)
    out, err = writer.communicate(timeout=120)
    assert out.split() == ["1", "2", "3"]
    assert re.fullmatch(
        rf"ganymede: checkpoint of step 4 was not written to {re.escape(str(tmp_path))} \(File too large\); "
        "the one of step 3 is kept; make room and run the same command again\n",
        err,
    )
    assert writer.returncode == 1
    expected = jax.random.normal(jax.random.key(3), (200_000,))
    np.testing.assert_array_equal(written_state(tmp_path, 3)["x"], expected)


def test_a_kill_at_any_moment_of_saving_leaves_a_complete_checkpoint(tmp_path):
    """Four kills of a process that does nothing but save; the control is that some of them left remains."""
    delays = random.Random(0)
    last = 0
    for _ in range(4):
        writer = start_writer(tmp_path)
        for _ in range(3):
            assert writer.stdout.readline()
        time.sleep(delays.uniform(0, 0.15))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        step = checkpoint.latest(tmp_path)
        assert step > last
        last = step
        expected = jax.random.normal(jax.random.key(step), (200_000,))
        state = written_state(tmp_path, step)
        np.testing.assert_array_equal(state["x"], expected)
        assert int(state["step"]) == step
