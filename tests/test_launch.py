"""Does the command line do what it says, and does every mistake end in one line and exit code 2?"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import model

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (
    "The moon Ganymede circles Jupiter, and it is larger than Mercury. Cats eat cake, not donuts.\n"
)

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "model": {{"context_length": 32, "layers": 2, "width": 22, "heads": 1}},
        "tokenizer": {{"vocab_size": 290}},
        "data": {{"train": {train!r}, "valid": {valid!r}, "length": 31}},
        "train": {{"steps": 3, "batch_size": 8, "log_every": 1}},
        "decode": {{
            "prompts": ("The moon", "Cats"),
            "settings": {{
                "greedy": {{"temperature": 0.0, "max_new_tokens": 5}},
                "drawn": {{"top_k": 7, "max_new_tokens": 5}},
            }},
        }},
    }})
"""


def launch(*arguments):
    """Runs `launch.py` in a process of its own."""
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(directory of a trained run, path of its config)."""
    home = tmp_path_factory.mktemp("launch")
    (home / "train.txt").write_text(TEXT * 40)
    (home / "valid.txt").write_text(
        "Jupiter is a planet, and Mercury is one. The cake is a lie.\n" * 3
    )
    config = home / "config.py"
    config.write_text(CONFIG.format(train=str(home / "train.txt"), valid=str(home / "valid.txt")))
    done = launch("train", f"--config={config}", f"--workdir={home / 'run'}")
    assert done.returncode == 0, done.stderr
    return home / "run", config


def test_a_run_directory_holds_what_the_contract_lists(run):
    directory, _ = run
    names = {path.name for path in directory.iterdir()}
    assert names >= {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "tokenizer",
        "samples.md",
    }


def test_decode_writes_completions_that_replay_calls_identical_and_a_changed_file_is_named(
    run, tmp_path
):
    directory, _ = run
    decoded = launch("decode", f"--from={directory}", f"--workdir={tmp_path}")
    assert decoded.returncode == 0, decoded.stderr
    for word in ("greedy", "drawn", "The moon", "Cats"):
        assert word in decoded.stdout
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    replayed = launch("replay", f"--workdir={tmp_path}")
    assert replayed.returncode == 0, replayed.stderr
    assert "identical" in replayed.stdout
    (tmp_path / "completions.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines[1:])
    )
    changed = launch("replay", f"--workdir={tmp_path}")
    assert changed.returncode == 2
    assert "completions.jsonl" in changed.stderr
    assert changed.stderr.count("\n") == 1


def test_decode_takes_settings_and_prompts_from_the_command_line(run, tmp_path):
    directory, _ = run
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "Cats", "id": "x", "settings": {"n": 2}}\n')
    done = launch(
        "decode",
        f"--from={directory}",
        f"--workdir={tmp_path}",
        f"--prompts={prompts}",
        "--max_new_tokens=3",
        "--top_k=999",
        "--stop=zz",
        "--stop=qq",
        "--ignore_eos=true",
        f"--draft={directory}",
        "--num_assistant_tokens=2",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: top_k is 999, and the vocabulary has 290 tokens; all are kept\n"
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [(line["id"], line["sample"]) for line in lines] == [("x", 0), ("x", 1)]
    assert all(len(line["tokens"]) == 3 for line in lines)
    assert lines[0]["settings"]["stop"] == ["zz", "qq"]


def test_eval_prints_bits_per_byte_beside_xz_and_the_metrics_that_are_asked_for(run):
    directory, _ = run
    changed = "--config.evaluate.metrics=['word_perplexity']"
    done = launch("eval", f"--from={directory}", changed)
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stdout
    assert "xz -9e" in done.stdout
    assert "perplexity per word" in done.stdout


def test_inspect_draws_pictures_with_their_numbers(run):
    directory, _ = run
    done = launch("inspect", f"--from={directory}", "--prompt=The moon")
    assert done.returncode == 0, done.stderr
    for name in ("loss", "attention", "next_token", "neighbours", "embeddings_2d", "embeddings_3d"):
        assert (directory / "figures" / f"{name}.png").stat().st_size > 5000
        json.loads((directory / "figures" / f"{name}.json").read_text())


def test_a_run_goes_out_as_a_hugging_face_directory_and_comes_back_as_the_same_model(run, tmp_path):
    directory, _ = run
    there, back = tmp_path / "theirs", tmp_path / "bundle"
    for verb, source, out in (("export", directory, there), ("import", there, back)):
        done = launch(verb, f"--from={source}", f"--workdir={out}")
        assert done.returncode == 0, done.stderr
        assert "llama: " in done.stdout and f"wrote {out}: " in done.stdout
    ours = model.load(directory)
    for place in (there, back):
        lm = model.load(place)
        assert (lm.config, lm.digest) == (ours.config, ours.digest)


def test_a_recurrent_model_trains_and_decodes_through_the_same_verbs(run, tmp_path):
    _, config = run
    home = tmp_path / "lstm"
    changes = ("--config.model.family=lstm", "--config.model.heads=0", "--config.train.steps=2")
    trained = launch("train", f"--config={config}", f"--workdir={home}", *changes)
    assert trained.returncode == 0, trained.stderr
    decoded = launch("decode", f"--from={home}", f"--workdir={tmp_path / 'said'}")
    assert decoded.returncode == 0, decoded.stderr
    lines = (tmp_path / "said/completions.jsonl").read_text().splitlines()
    said = [json.loads(line) for line in lines]
    assert [len(completion["tokens"]) for completion in said] == [5, 5, 5, 5]


def test_check_tests_the_model_of_a_config(run):
    _, config = run
    done = launch("check", f"--config={config}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    said = [line.split()[0] for line in lines[1:-1]]
    assert said.count("ok") == 8 and said.count("-") == 1
    assert "-      both ways              left out: " in done.stdout
    assert lines[-1].startswith("none of 8 checks failed; ")


def test_plan_prints_what_a_published_model_would_cost():
    done = launch("plan", f"--config={ROOT}/configs/preset.py:bloom-176b")
    assert done.returncode == 0, done.stderr
    assert "176,247,271,424" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no verb 'trian' (did you mean 'train'?)"),
        (["train"], "train needs a recipe; add --config=configs/quickstart.py"),
        (["check"], "check needs a recipe; add --config=configs/quickstart.py"),
        (["plan"], "plan needs a config; add --config=configs/preset.py:gpt2-124m"),
        (["import", "--from={run}", "--workdir={run}"], "is a run, which needs no import"),
        (["train", "--config={config}"], "this verb needs a directory; add --workdir=runs/NAME"),
        (
            ["train", "--config=nowhere.py"],
            "--config=nowhere.py: No such file; give a recipe such as",
        ),
        (
            ["train", "--config={broken}"],
            "config file cannot be read: NameError: name 'oops' is not defined",
        ),
        (
            ["train", "--config={config}", "--workdir={new}", "--config.train.step=5"],
            "config.train has no key 'step' (did you mean 'steps'?)",
        ),
        (
            ["train", "--config={config}", "--workdir={new}", "--config.train.steps=abc"],
            "config.train.steps is 'abc'",
        ),
        (
            ["train", "--config={config}", "--wordkir=x"],
            "Unknown command line flag 'wordkir'. Did you mean: workdir?",
        ),
        (["train", "--config={config}", "more"], "'more' is not a flag"),
        (
            ["train", "--config={config}", "--workdir={run}", "--config.model.width=44"],
            "holds a run with model.width=22, and this config has 44",
        ),
        (
            ["train", "--config={config}", "--workdir={new}", "--config.model.heads=3"],
            "model.heads=3 does not divide model.width=22",
        ),
        (
            ["train", "--config={config}", "--workdir={new}", "--config.data.train=nothing.txt"],
            "nothing.txt",
        ),
        (["decode", "--from=nowhere"], "nowhere"),
        (
            ["decode", "--from={run}", "--prompt=a", "--temperature=-1"],
            "temperature is -1.0; it must be 0",
        ),
        (
            ["decode", "--from={run}", "--prompt=a", "--top_p=1.5"],
            "top_p is 1.5; it must be above 0 and at most 1",
        ),
        (
            ["decode", "--from={run}", "--prompt=a", "--top_k=few"],
            "--top_k is 'few'; it must be a number",
        ),
        (
            ["decode", "--from={run}", "--prompt=a", "--temprature=1"],
            "Unknown command line flag 'temprature'. Did you mean: temperature?",
        ),
        (
            ["decode", "--from={run}", "--prompt=a", "--regex=(a"],
            "regex '(a' cannot be used: unclosed group; correct it",
        ),
        (
            ["decode", "--from={run}", "--prompt=a", "--suppress_tokens=[7, 9999]"],
            "suppress_tokens has token id 9999; this model's are 0 to 289",
        ),
        (
            ["inspect", "--from={run}", "--draft={run}"],
            "inspect does not read --draft; it reads --from, --prompt, --words, --analogy, --similarity, --analogies, "
            "--several, --lower_case, --max_new_tokens and the other settings",
        ),
        (
            ["inspect", "--from={run}", "--words=moon", "--analogy=sun:moon"],
            "analogy 'sun:moon' is not of the form A:B::C; give one such as man:king::woman",
        ),
        (["eval", "--from={run}", "--top_k=3"], "eval does not read --top_k; it reads --from"),
        (
            ["sweep", "--config={config}", "--seeds=2", "--prompts=p.jsonl"],
            "sweep --config does not read --prompts; it reads --config, --workdir, --zip, --chain,",
        ),
        (["decode", "--from={run}", "--prompt="], "empty prompt"),
        (["decode", "--from={run}", "--prompt=" + "cake " * 40], "the context window of 32"),
        (["decode", "--from={run}", "--prompts=nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["replay", "--workdir=nowhere"], "nowhere"),
        (["inspect", "--from=nowhere"], "nowhere"),
        (["eval", "--from=nowhere"], "nowhere"),
        (["eval", "--from={run}", "--shots=0"], "eval needs --config=FILE with a group prompt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, arguments, message):
    directory, config = run
    before = sorted(str(path) for path in directory.rglob("*"))
    broken = tmp_path / "broken.py"
    broken.write_text("oops")
    names = dict(run=directory, config=config, new=tmp_path / "new", broken=broken)
    done = launch(*(argument.format(**names) for argument in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("ganymede: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(str(path) for path in directory.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["--help"], 0), (["train", "--help"], 0)]
)
def test_no_verb_and_help_list_the_verbs_and_flags(arguments, code):
    done = launch(*arguments)
    assert done.returncode == code
    assert "\nhow a token is drawn:\n  --temperature " in done.stdout
    assert "--top_k" in done.stdout
    for verb in ("train", "decode", "eval", "inspect", "replay", "import", "export", "plan"):
        assert f"\n  {verb}" in done.stdout


def test_a_key_that_the_config_file_leaves_out_can_be_given(run, tmp_path):
    _, config = run
    done = launch(
        "train",
        f"--config={config}",
        f"--workdir={tmp_path}",
        "--config.train.steps=1",
        "--config.runtime.dtype=bfloat16",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["runtime"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("after", [0, 0.7])
def test_an_interrupt_in_any_verb_is_at_most_one_line(run, after):
    directory, _ = run
    process = subprocess.Popen(
        [sys.executable, ROOT / "launch.py", "eval", f"--from={directory}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while (
        process.poll() is None
        and "jaxlib" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text()
    ):
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert complaint in ("", "\nganymede: interrupted; run the same command again\n")
