"""Under which conditions does every test run?

On eight simulated CPU devices, offline, with what XLA compiled kept in `.cache/xla` for the next
run, and with dtype and rank promotion forbidden; a test that goes through optax is marked
`standard_promotion`, because optax itself needs it.
"""

import gc
import os
import pathlib

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "xla"

# Set before jax is imported, and in the environment, so that programs which tests start have them too.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Most programs run for milliseconds: LLVM's optimising took 40 % of the time (77 s against 49 for test_guides.py).
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Files whose claims are about our own logic more than about jax's, where that takes time: CI runs them on one jax only.
ONCE = {
    *("test_adapters", "test_attention", "test_beam", "test_chains", "test_check"),
    *("test_context_curve", "test_contrastive", "test_corpus", "test_distributed"),
    *("test_documents", "test_drafting", "test_embeddings", "test_few_shot", "test_formats"),
    *("test_grammar", "test_guides", "test_harness", "test_invariance", "test_jail", "test_launch"),
    *("test_loop", "test_metrics", "test_per_device", "test_plan", "test_pretrained_tokenizer"),
    *("test_processors", "test_report", "test_resume", "test_sampling", "test_scatter"),
    *("test_start", "test_sweep", "test_task_eval", "test_tokenizer", "test_train_sweep"),
    *("test_trials", "test_two_roads", "test_word_tests"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests of `ONCE`."""
    for item in items:
        if item.path.stem in ONCE:
            item.add_marker("once")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Forbids dtype promotion around a test and the fixtures it is the first to need."""
    loose = item.get_closest_marker("standard_promotion")
    jax.config.update("jax_numpy_dtype_promotion", "standard" if loose else "strict")
    return (yield)


def pytest_sessionfinish():
    """Spares the log a traceback: xdist interrupts a worker that may be in jax's collection hook."""
    gc.callbacks.clear()
