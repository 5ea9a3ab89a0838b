"""What happens between `train` and a trained model? One run, top to bottom, that may be stopped anywhere.

Whatever a step needs is a function of its number: the batch is `batches[step]`, the key is folded from the run's key
and the step. A checkpoint therefore holds the state and a few sums, and a resumed run computes what it would have.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Self

import jax
from jax.sharding import Mesh
from rich import console as consoles

import decode
import model
from decode import compilations
from model import blocks, checkpoint, errors, sharding, tokenizer
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from train import (
    data,
    distributed,
    evaluate,
    flight,
    log,
    meter,
    optimizer,
    prepare,
    recipe,
    rows,
    start,
    step,
    trace,
    tracker,
)
from train.distributed import Peers
from train.meter import Meter
from train.recipe import Recipe
from train.step import TrainState

# What the run's key is folded with, by what is random.
INITIALISATION, TRAINING = 0, 1
SHOW_CURSOR = b"\x1b[?25h"  # the bar hides it


def run(
    asked: Recipe,
    workdir: str | os.PathLike[str],
    peers: Peers = distributed.ALONE,
    allow_change: Sequence[str] = (),
    profile: str | None = None,
) -> None:
    """Trains what a recipe describes in `workdir`, or goes on with the run that is there.

    Several processes each call it with the same recipe; the first of `peers` prepares, writes and speaks for all.
    `allow_change` names keys of the recipe that may be others than the run was started with (`recipe.ALLOWABLE`).

    Told to stop by SIGINT or SIGTERM it finishes its step, saves, and leaves with SystemExit(128 + signal). A second
    signal ends it at once; like SIGKILL that costs the steps since the last checkpoint and nothing else. `profile` is
    a window of steps to trace, as `trace.Window` reads it.

    Raises:
        BadInput: for what a person can mend: another run's directory, a full disk, a loss that is not finite.
    """
    directory = pathlib.Path(workdir)
    train = asked.train
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        if peers.first:
            stack.enter_context(_claimed(directory))
        progress = log.Progress(train.steps, None if peers.first else consoles.Console(quiet=True))

        if asked.log.wandb:
            tracker.load(asked.log.wandb)  # its absence is told before any work is done
        window = trace.Window(profile, train.steps, directory)
        stack.callback(window.close)
        programs = stack.enter_context(compilations.counted())

        # The text, and the tokens it is made of.
        mesh = sharding.make_mesh(asked.runtime.mesh)
        _check_batch(asked, mesh)
        _check_platform(asked)
        ready = json.loads(
            peers.agree(lambda: prepare.prepare(asked, directory, progress, allow_change))
        )
        prepare.check_shared(directory, peers)
        words = tokenizer.load(directory / "tokenizer")
        config = asked.model_config(words.vocab_size)
        prepare.check_same(ready["config"], recipe.to_json(asked, config), peers)
        checkpoints = checkpoint.Checkpoints(directory / "checkpoints", train.keep)
        stack.callback(checkpoints.close)
        for path in checkpoints.discarded:
            progress.say(f"not used, because it is half-written: {path}")
        first = ready["step"]
        before = checkpoint.read_meta(checkpoints.directory, first) if first else {}
        if first >= train.steps:
            progress.say(f"{directory} is complete at step {first}; {meter.last_losses(before)}")
            return
        prepared = data.read(pathlib.Path(ready["tokens"]), asked.corpus())
        sources = prepare.rows_of(asked, prepared, words, config)
        batches, share = (
            data.batches(
                sources, prepared.weights, batch_size=train.batch_size, seed=asked.seed, rows=here
            )
            for here in (None, sharding.rows_here(mesh, train.batch_size))
        )
        held_out = evaluate.held_out(asked, prepared, words, config)

        # The model, new or as it was left.
        net = model.build(config, asked.runtime.runtime)
        transform = flight.guard(optimizer.build(asked.optimizer, train.steps), train.spike)
        key = jax.random.key(asked.seed)
        initial = jax.random.fold_in(key, INITIALISATION)
        begun = start.begin(asked.start.path, asked.adapt, net, mesh, before, key=initial)
        abstract = step.abstract_state(net, transform, mesh, begun.adapt)
        if first:
            state, _ = checkpoints.restore(first, abstract)
            progress.say(f"resuming at step {first} of {train.steps}")
        else:
            if begun.params is None:
                state = step.init_state(net, transform, mesh, key=initial)
            else:
                state = step.state_of(begun.params, transform, step.shardings(abstract))
            progress.say(_introduction(config, state, words, prepared, mesh))
            for whose, made in [
                *(("to train on", each) for each in sources),
                ("held out", held_out),
            ]:
                if isinstance(made, rows.Gathered):
                    progress.say(f"{whose}: {made.note}")
        for note in (*begun.notes, *step.notes(net, mesh)):
            progress.say(f"note: {note}")
        train_step = step.make_train_step(
            net,
            transform,
            mesh,
            step.shardings(abstract),
            train.accumulate,
            asked.optimizer.frozen,
            asked.loss,
            begun.base,
            begun.adapt,
        )
        train_key = jax.random.fold_in(key, TRAINING)
        eval_step = evaluate.make_eval_step(net, mesh, asked.loss)

        # The steps. Batches are made a step early and metrics read a step late: the devices wait for neither.
        record = stack.enter_context(
            contextlib.closing(_record(directory, first, asked.log.wandb, peers))
        )
        account = Meter(
            asked, config, record, progress, before, lambda n: batches[n - 1], train_key, programs
        )
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        stack.callback(progress.stop)
        progress.start(first)
        interrupt.patient = True
        upcoming = pool.submit(share.__getitem__, first)
        for number in range(first + 1, train.steps + 1):
            with account.waiting():
                batch = step.put_batch(upcoming.result(), mesh, train.batch_size)
            upcoming = pool.submit(share.__getitem__, number)
            window.before(number)
            with account.compiling(number == first + 1):
                state, metrics = train_step(state, batch, train_key)
                peers.steady(metrics)
            window.after(number, metrics)
            account.step(number, metrics)
            last, stop = number == train.steps, peers.stopping(number, interrupt.signum)
            told = interrupt.received or time.perf_counter()  # by a peer just now
            if last or _due(number, train.eval_every):
                with account.pause():
                    values = _evaluate(
                        eval_step, begun.whole(state.weights), held_out, asked, prepared, mesh
                    )
                    account.evaluated(number, values)
            if asked.decode.prompts and (last or _due(number, train.sample_every)):
                with account.pause():
                    params = jax.tree.map(sharding.to_host, begun.whole(state.weights))
                    write = functools.partial(
                        _samples, record, number, asked, config, words, params
                    )
                    peers.agree(write)
            if last or stop or _due(number, train.save_every):
                with account.pause():
                    record.sync()
                    identity = {**ready["identity"], **begun.identity}
                    checkpoints.save(number, state, {**identity, **account.meta()})
            if stop:
                break
        checkpoints.wait()
        progress.stop()
        if last:
            progress.say(account.summary(begun.whole(state.weights)))
        if stop:
            if not last:
                seconds = time.perf_counter() - told
                progress.say(
                    f"{signal.Signals(stop).name}: stopped after step {number} of {train.steps}, saved in "
                    f"{seconds:.1f} s; run the same command again to go on"
                )
            raise SystemExit(128 + stop)


class Interrupt:
    """SIGINT and SIGTERM, as a request that `run` looks at after each step once it is `patient`.

    Before that, there is nothing to save: the process ends with a line. A second signal ends it at once.
    """

    def __init__(self) -> None:
        self.patient = False
        self.signum: int | None = None
        self.received = 0.0
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._usual[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, usual in self._usual.items():
            signal.signal(signum, usual)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os.write(2, SHOW_CURSOR if os.isatty(2) else b"")
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum, self.received = signum, time.perf_counter()
        start = b"\n" if os.isatty(2) else b""  # below the bar, or the ^C
        if self.patient:
            os.write(
                2, start + b"ganymede: finishing this step and saving; once more ends it at once\n"
            )
        else:
            os.write(
                2, start + b"ganymede: stopped before training began; run the same command again\n"
            )
            raise SystemExit(128 + signum)


@contextlib.contextmanager
def _claimed(directory: pathlib.Path) -> Iterator[None]:
    """Makes the directory ours alone; the system frees it when we end, however that happens."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise errors.BadInput(
            f"{directory} cannot hold a run ({error.strerror}); choose another --workdir"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise errors.BadInput(
            f"another process is training in {directory}; wait for it or choose another --workdir"
        ) from error
    except OSError:  # a file system that cannot lock leaves it to people
        pass
    try:
        yield
    finally:
        os.close(handle)


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _check_batch(asked: Recipe, mesh: Mesh) -> None:
    """Refuses a batch that the devices cannot share evenly, before any work is done."""
    rows, parts = asked.train.batch_size, asked.train.accumulate
    where = sharding.batch(mesh)
    sharding.check_divides(f"config.train.batch_size={rows}", (rows, asked.data.length), where)
    sharding.check_divides(
        f"config.train.batch_size={rows} in config.train.accumulate={parts} parts",
        (rows // parts, asked.data.length),
        where,
    )


def _record(directory: pathlib.Path, first: int, wandb: str | None, peers: Peers) -> log.Record:
    """Where metrics go: to disk if we speak for all processes, else nowhere."""
    return log.Record(directory, first, wandb) if peers.first else log.Nothing(directory)


def _check_platform(asked: Recipe) -> None:
    """Refuses kernels that these devices do not have."""
    kind, platform = asked.runtime.attention, jax.default_backend()
    if kind == "splash" and platform != "tpu":
        raise errors.BadInput(
            f"config.runtime.attention is 'splash', which needs TPUs, and this is a {platform}; set it to auto"
        )
    if kind == "cudnn" and platform != "gpu":
        raise errors.BadInput(
            f"config.runtime.attention is 'cudnn', which needs NVIDIA GPUs, and this is a {platform}; set it to auto"
        )


def _evaluate(
    eval_step: evaluate.EvalStep,
    params: Any,
    held_out: rows.Rows,
    asked: Recipe,
    prepared: data.Prepared,
    mesh: Mesh,
) -> dict[str, float]:
    size = asked.train.batch_size // asked.train.accumulate
    batches = data.eval_batches(held_out, size, sharding.rows_here(mesh, size))
    placed = (step.put_batch(batch, mesh, size) for batch in batches)
    valid = prepared.valid
    return evaluate.evaluate(eval_step, params, placed, valid.bytes, valid.words)


def _samples(
    record: log.Record,
    number: int,
    asked: Recipe,
    config: ModelConfig,
    words: Tokenizer,
    host_params: Any,
) -> None:
    """Records what the model makes of the config's prompts now: per name of settings, pairs of prompt and text."""
    params = jax.device_put(blocks.unstack_layers(host_params))
    prefix = asked.task.kind == "prefix"
    lm = model.LM(config, params, words, model.build(config), prefix=prefix)
    named = asked.requests(words)
    prompts = {request.id: (name, prompt) for name, prompt, request in named}
    texts: dict[str, list[tuple[str, str]]] = {name: [] for name in asked.decode.settings}
    for done in decode.generate(lm, [request for _, _, request in named], seed=asked.decode.seed):
        name, prompt = prompts[done.id]
        texts[name].append((prompt, done.text))
    record.samples(number, texts)


def _introduction(
    config: ModelConfig, state: TrainState, words: Tokenizer, prepared: data.Prepared, mesh: Mesh
) -> str:
    """What is about to be trained, on what, by what."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    tokens = sum(source.tokens for source in prepared.train)
    report = prepared.report
    return (
        f"{count:,} parameters; {words.vocab_size:,} pieces; {tokens:,} tokens of {report['train_documents']:,} "
        f"documents to train on, {report['held_out_documents']:,} held out; "
        f"{mesh.size} {jax.devices()[0].device_kind} device{'s' if mesh.size > 1 else ''}"
    )
