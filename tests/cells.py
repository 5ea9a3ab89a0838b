"""Which trainings are killed? The matrix of `kills.py`: meshes, processes, optimisers, and every kind of task."""

from typing import Any

from tests.kills import BITWISE, CLOSE, ONE, Cell

OFTEN = {"eval_every": 11, "sample_every": 17, "save_every": 5}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adafactor": {"name": "adafactor"},
    "lion, bfloat16 moments": {"name": "lion", "moments_dtype": "bfloat16"},
    "muon, averaged weights": {"name": "muon", "ema_decay": 0.9},
    "sgd": {"name": "sgd", "schedule": "wsd"},
    "schedule-free": {"name": "schedule_free", "schedule": "constant"},
}  # besides adamw, which all others have
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
WIDE = {"batch_size": 8, **OFTEN}  # rows that eight devices can share
ENCODER = {"family": "encoder_only"}
BOTH = {"family": "encoder_decoder"}
SILENT: dict[str, Any] = {"prompts": []}  # what writes nothing is asked for no samples
A, B = ({"path": f"{name}.txt", "split": "line"} for name in "ab")
RECORDS = ({"path": "records.jsonl"},)
DENOISING = {"task": {"kind": "denoising"}}
PAIRS = {"task": {"kind": "seq2seq"}, "data": {"deduplicate": False}}


def _cell(
    name: str,
    meshes: Any = (ONE,),
    promise: str = BITWISE,
    sources: Any = (),
    processes: Any = (1,),
    tuned: bool = False,
    **changes: Any,
) -> Cell:
    changes["train"] = {**OFTEN, **changes.get("train", {})}
    return Cell(name, changes, meshes, processes, promise, sources, tuned)


CELLS = (
    _cell("decoder, dropout, 2 micro-batches, mixture"),
    _cell("LSTM", model={"family": "lstm", "heads": 0}),
    _cell("no dropout, one batch", runtime={"dropout": 0.0}, train={"accumulate": 1}),
    _cell("3 micro-batches, LayerNorm, learned positions",
          train={"accumulate": 3}, model={"norm": "layer", "position": "learned", "tied": True}),
    _cell("no mixture, short rows", sources=(A, B), data={"length": 11}),
    _cell("bfloat16", runtime={"dtype": "bfloat16"}),
    _cell("recomputation, unrolled", runtime={"remat": "full", "unroll": 2}),
    _cell("bad steps skipped",
          optimizer={"learning_rate": 1e-5}, train={"on_bad_step": "skip", "spike": 1.0}),
    *(_cell(name, optimizer=group) for name, group in OPTIMIZERS.items()),
    _cell("prefix LM", task={"kind": "prefix"}),
    _cell("encoder, masked words", model=ENCODER, decode=SILENT, task={"kind": "masked", "whole_words": True}),
    _cell("encoder-decoder, spans", model=BOTH, task={"kind": "spans"}, tokenizer={"vocab_size": 400}),
    _cell("encoder-decoder, denoising", model=BOTH, **DENOISING),
    _cell("encoder-decoder, packed pairs", model=BOTH, sources=RECORDS, **PAIRS),
    _cell("decoder, pairs continued", sources=RECORDS, **PAIRS),
    _cell("decoder, chat", sources=RECORDS, task={"kind": "chat"}, data={"deduplicate": False}),
    _cell("encoder, classes of texts", model=ENCODER, decode=SILENT, sources=RECORDS, data={"deduplicate": False},
          task={"kind": "classify", "labels": ["2", "3", "4", "5"]}),
    _cell("encoder, classes of tokens", model=ENCODER, decode=SILENT, sources=RECORDS, data={"deduplicate": False},
          task={"kind": "tag", "source": "tokens", "labels": ["long", "short"]}),
    _cell("mixture of spans and denoising", model=BOTH, task={"kind": "spans"}, tokenizer={"vocab_size": 400},
          sources=({**A, "weight": 0.7}, {**B, "weight": 0.3, **DENOISING})),
    _cell("mixture of causal and prefix LM",
          sources=({**A, "weight": 0.7}, {**B, "weight": 0.3, "task": {"kind": "prefix"}})),
    _cell("LoRA of a run", tuned=True, adapt={"rank": 2, "targets": ["attention"]}),
    _cell("8 devices: data 2, fsdp 2, tensor 2", (EIGHT,), train=WIDE),
    _cell("8 devices: fsdp 8", ({"fsdp": 8},), train={**WIDE, "accumulate": 1}),
    _cell("LSTM on 8 devices: fsdp 4, data 2", ({"fsdp": 4, "data": 2},), train={**WIDE, "accumulate": 1},
          model={"family": "lstm", "heads": 0}),
    _cell("1, 8, 1 ... devices", (ONE, EIGHT), CLOSE, train=WIDE, runtime={"dropout": 0.0}),
    _cell("1, 2, 1 ... processes", (ONE, {"fsdp": 2}), CLOSE, processes=(1, 2), train=WIDE, runtime={"dropout": 0.0}),
)  # fmt: skip
