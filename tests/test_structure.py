"""Does the code keep the shape that CONTRIBUTING.md promises: directions, sizes, names, letters, keys?

Each rule is a generator over a parsed file that yields (line, what is wrong). It runs over every file
of the repository, and over snippets that break it and that keep it: a rule that never fires proves
nothing.
"""

import ast
import dataclasses
import functools
import graphlib
import pathlib
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEVELS = {"model": 0, "decode": 1, "train": 2, "launch": 3}  # imports point down
SHIPPED = (*LEVELS, "configs")
BOTTOM = {"model/errors.py": [], "model/config.py": ["model.errors"]}
ORACLES = ("torch", "transformers", "tensorflow")
NAMES_OF_NOTHING = ("utils", "util", "common", "helpers", "helper", "misc", "base")
LONG_FUNCTIONS = {"train/loop.py:run": 150}
MACHINE = re.compile(r"/(home|root|Users|work|opt|mnt)/\w|(py" + r"pi|python" + r"hosted)\.org")

Finding = tuple[int, str]


@dataclasses.dataclass(frozen=True)
class File:
    """One source file: its path from the root, its text, and what Python makes of it."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def home(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")


def nodes(file: File, *kinds: type) -> Iterator:
    return (node for node in ast.walk(file.tree) if isinstance(node, kinds))


def functions(file: File) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return nodes(file, ast.FunctionDef, ast.AsyncFunctionDef)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(file: File, within: ast.AST | None = None) -> Iterator[tuple[int, str]]:
    """(line, module) of each import; `from package import x` is package.x where that is a module."""
    for node in ast.walk(within or file.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                package = ".".join([*file.path.split("/")[: -node.level], *filter(None, [package])])
            for alias in node.names:
                inner = f"{package}.{alias.name}"
                yield node.lineno, inner if is_module(inner) else package


def imports_point_one_way(file: File) -> Iterator[Finding]:
    """model <- decode <- train <- launch; a config imports one parent; errors and config lie lowest."""
    ours = [(n, m) for n, m in imports(file) if m.split(".")[0] in SHIPPED]
    if file.path in BOTTOM:
        yield from ((n, f"imports {m}") for n, m in ours if m not in BOTTOM[file.path])
    if file.home in LEVELS:
        for line, module in ours:
            if LEVELS.get(module.split(".")[0], 9) > LEVELS[file.home]:
                yield line, f"imports {module}, which stands above {file.home}"
    if file.home == "configs":
        yield from ((n, f"a config imports {m}") for n, m in ours if not m.startswith("configs."))
        yield from ((n, f"a second parent, {m}") for n, m in ours[1:])


def imports_stand_at_the_top_and_name_modules(file: File) -> Iterator[Finding]:
    """`losses.cross_entropy(...)` says where it is from; only launch.py imports inside a function."""
    if file.home not in SHIPPED:
        return
    for function in functions(file) if file.home != "launch" else ():
        yield from ((n, f"imports {m} inside {function.name}") for n, m in imports(file, function))
    for node in nodes(file, ast.ImportFrom):
        if node.level or node.module.split(".")[0] not in SHIPPED:
            continue
        for alias in node.names:
            if not is_module(f"{node.module}.{alias.name}") and not alias.name[0].isupper():
                yield node.lineno, f"imports the name {alias.name}; import {node.module} instead"


def oracles_stay_in_tests(file: File) -> Iterator[Finding]:
    if file.home in SHIPPED:
        yield from ((n, f"imports {m}") for n, m in imports(file) if m.split(".")[0] in ORACLES)


def files_open_with_a_docstring_and_so_do_public_functions(file: File) -> Iterator[Finding]:
    if not ast.get_docstring(file.tree):
        yield 1, "opens without a docstring that says which question the file answers"
    if file.home in LEVELS:
        for node in file.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    yield node.lineno, f"{node.name} has no docstring"


def files_and_functions_stay_short(file: File) -> Iterator[Finding]:
    """400 lines a file, 60 a function, its docstring not counted."""
    if (lines := len(file.text.splitlines())) > 400:
        yield 1, f"has {lines} lines, of 400"
    for node in functions(file):
        limit = LONG_FUNCTIONS.get(f"{file.path}:{node.name}", 60)
        lines = (
            node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
        )
        if lines > limit:
            yield node.lineno, f"{node.name} has {lines} lines, of {limit}"


def names_say_something(file: File) -> Iterator[Finding]:
    if (name := file.path.split("/")[-1].removesuffix(".py")) in NAMES_OF_NOTHING:
        yield 1, f"{name} is no name: what is it about?"


def bare(node: ast.AST) -> ast.AST:
    """What a cast or a scale stands around: neither changes the letters."""
    while True:
        if isinstance(node, ast.BinOp):
            node = node.left
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "astype":
            node = node.func.value
        else:
            return node


def suffix(node: ast.AST) -> str | None:
    """BTD of `x_BTD` or `self.x_BTD.astype(t)`; None where there is no suffix to compare with."""
    node = bare(node)
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    found = re.search(r"_([A-Z]+)$", name) if re.search(r"[a-z]", name) else None
    return found and found[1]


def einsum(call: ast.AST) -> tuple[list[str], str, list[ast.expr]] | None:
    """(subscripts, result, operands) of a call whose equation is written out.

    The equation may stand before its operands, after them, in a keyword, or in the call that made
    the layer: `einsum("BT->B", x_BT)`, `dense(x_BT, equation="BT->B")`, `Dense("BT->B")(x_BT)`.
    """
    if not isinstance(call, ast.Call):
        return None
    if isinstance(call.func, ast.Call) and (made := einsum(call.func)):
        return *made[:2], call.args
    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
        equation = argument.value if isinstance(argument, ast.Constant) else None
        if isinstance(equation, str) and re.fullmatch(r"[A-Za-z., ]+->[A-Za-z. ]*", equation):
            left, right = equation.replace(" ", "").split("->")
            at = call.args.index(argument) if argument in call.args else len(call.args)
            return left.split(","), right, call.args[at + 1 :] or call.args[:at]
    return None


def agrees(subscripts: str, letters: str) -> bool:
    """Whether a subscript group equals a suffix; `...` stands for any letters."""
    pattern = re.escape(subscripts).replace(re.escape("..."), "[A-Z]*")
    return re.fullmatch(pattern, letters) is not None


def einsum_letters_equal_the_suffixes(file: File) -> Iterator[Finding]:
    """`"BTD,DF->BTF"` takes `x_BTD` and `kernel_DF` and makes `h_BTF`."""
    for call in nodes(file, ast.Call):
        if found := einsum(call):
            for subscripts, operand in zip(found[0], found[2], strict=False):
                if (letters := suffix(operand)) and not agrees(subscripts, letters):
                    yield call.lineno, f"{ast.unparse(operand)} stands at {subscripts!r}"
    for node in nodes(file, ast.Assign):
        if found := einsum(bare(node.value)):
            if (letters := suffix(node.targets[0])) and not agrees(found[1], letters):
                yield node.lineno, f"{ast.unparse(node.targets[0])} is made by '->{found[1]}'"


def one_function_makes_meshes(file: File) -> Iterator[Finding]:
    """jax.make_mesh makes explicit axes by default, and linen fails on them; model/sharding.py knows."""
    if file.path == "model/sharding.py":
        return
    for node in nodes(file, ast.Attribute):
        if node.attr == "make_mesh" and ast.unparse(node.value) == "jax":
            yield node.lineno, "calls jax.make_mesh; call model.sharding.make_mesh"
    for node in nodes(file, ast.ImportFrom):
        if node.module == "jax" and any(alias.name == "make_mesh" for alias in node.names):
            yield node.lineno, "imports jax.make_mesh; call model.sharding.make_mesh"


def keys_are_typed_and_never_defaulted(file: File) -> Iterator[Finding]:
    for node in nodes(file, ast.Attribute, ast.Name, ast.alias):
        if "PRNG" + "Key" in (getattr(node, name, None) for name in ("attr", "id", "name")):
            yield node.lineno, "makes an untyped key; use jax.random.key"
    for node in nodes(file, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda):
        positional = [*node.args.posonlyargs, *node.args.args]
        defaulted = positional[len(positional) - len(node.args.defaults) :]
        pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        for argument in defaulted + [a for a, default in pairs if default is not None]:
            if re.fullmatch(r"(.*_)?(key|rngs?)", argument.arg):
                yield argument.lineno, f"{argument.arg} has a default"


def no_trace_of_a_machine_or_of_work_to_come(file: File) -> Iterator[Finding]:
    for number, line in enumerate(file.text.splitlines(), 1):
        if found := MACHINE.search(line):
            yield number, f"names a place on somebody's machine or a registry: {found[0]}"
        if re.search(r"\b(TO" + r"DO|FIX" + r"ME)\b", line):
            yield number, "leaves work for later; do it, or open an issue"


Rule = Callable[[File], Iterator[Finding]]

# rule: [(path, a snippet that breaks it, a snippet that keeps it)]
CONTROLS: dict[Rule, list[tuple[str, str, str]]] = {
    imports_point_one_way: [
        ("model/x.py", "import decode", "import model"),
        ("model/x.py", "from decode import loop", "from model import config"),
        ("decode/x.py", "def f():\n    import train.step", "import model.cache"),
        ("decode/x.py", "from ..train import step", "from ..model import cache"),
        ("train/x.py", "import launch", "import decode, model, jax"),
        ("train/x.py", "from configs import quickstart", "from train import step"),
        ("model/errors.py", "from model import config", "import difflib"),
        ("model/config.py", "from model import layers", "from model import errors"),
        ("configs/x.py", "import model", "import ml_collections"),
        ("configs/x.py", "import configs.a\nimport configs.b", "import configs.a"),
    ],
    imports_stand_at_the_top_and_name_modules: [
        ("train/x.py", "def f():\n    import jax", "import jax"),
        ("train/x.py", "from model.errors import nearest", "from model.errors import BadInput"),
        ("train/x.py", "from model import build", "from model import errors"),
    ],
    oracles_stay_in_tests: [
        ("model/x.py", "import torch.nn", "import jax"),
        ("train/x.py", "def f():\n    from transformers import GPT2Model", "import torchless"),
        ("launch.py", "import tensorflow as tf", "import tensorboardX"),
    ],
    files_open_with_a_docstring_and_so_do_public_functions: [
        ("configs/x.py", "x = 1", "'''What?'''"),
        ("model/x.py", "'''What?'''\ndef f(): pass", "'''What?'''\ndef _f(): pass"),
        ("model/x.py", "'''What?'''\nclass C: pass", "'''What?'''\nclass C:\n    '''Yes.'''"),
    ],
    files_and_functions_stay_short: [
        ("tests/x.py", "\n" * 401, "\n" * 400),
        ("model/x.py", "def f():\n" + "    g()\n" * 60, "def f():\n" + "    g()\n" * 59),
        ("train/loop.py", "def go():\n" + "    g()\n" * 60, "def run():\n" + "    g()\n" * 149),
    ],
    names_say_something: [("model/utils.py", "", ""), ("tests/helpers.py", "", "")],
    einsum_letters_equal_the_suffixes: [
        (
            "model/x.py",
            "s = jnp.einsum('BTKGH,BSKH->BTKGS', q_BTKGH, k_BKSH)",
            "s = jnp.einsum('BTKGH,BSKH->BTKGS', q_BTKGH, k_BSKH)",
        ),
        (
            "model/x.py",
            "y_BTD = jnp.einsum('BTF,FD->BTF', x_BTF, w_FD)",
            "y_BTF = jnp.einsum('BTF,FD->BTF', x_BTF, self.w_FD)",
        ),
        (
            "model/x.py",
            "y_BT = jnp.einsum('BTD->B', x_BTD).astype(t) * s",
            "y_B = jnp.einsum('BTD->B', x_BTD).astype(t) * s",
        ),
        ("model/x.py", "einsum('BT->B', x_TB.astype(t))", "einsum('BT->B', x_BT.astype(t))"),
        ("model/x.py", "Dense('BTD,DF->BTF', shape)(x_BTF)", "Dense('BTD,DF->BTF', shape)(x_BTD)"),
        ("model/x.py", "dense(x_BF, equation='BD,DF->BF')", "dense(x_BD, equation='BD,DF->BF')"),
        ("model/x.py", "einsum('...D,DF->...F', x_BF, w)", "einsum('...D,DF->...F', x_BTD, w)"),
    ],
    one_function_makes_meshes: [
        ("tests/x.py", "jax.make_mesh((8,), ('data',))", "sharding.make_mesh(None)"),
        ("train/x.py", "from jax import make_mesh", "from jax import numpy"),
    ],
    keys_are_typed_and_never_defaulted: [
        ("tests/x.py", "jax.random.PRNG" + "Key(0)", "jax.random.key(0)"),
        ("train/x.py", "from jax.random import PRNG" + "Key", "from jax import random"),
        ("model/x.py", "def f(x, key=None): pass", "def f(key, x=None): pass"),
        ("model/x.py", "def f(*, dropout_key=K): pass", "def f(*, key, keys=3): pass"),
    ],
    no_trace_of_a_machine_or_of_work_to_come: [
        ("README.md", "see /" + "home/ann/runs", "see runs/quickstart and ~/runs"),
        ("Makefile", "pip install -i https://py" + "pi.org/simple", "pip install -e ."),
        ("model/x.py", "# TO" + "DO: faster", "# fast"),
    ],
}


def found(rule: Rule, file: File) -> list[str]:
    return [f"{file.path}:{line}: {what}" for line, what in rule(file)]


@functools.cache
def files(*patterns: str) -> list[File]:
    """The repository's files that match, not those of environments, caches and runs beside them."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())
    return [File(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


def sources() -> list[File]:
    return files("launch.py", *(f"{home}/**/*.py" for home in (*SHIPPED, "benchmarks", "tests")))


def texts() -> list[File]:
    here = ("*.md", "*.toml", "*.txt", "Makefile", ".ci/*", ".editorconfig", ".gitignore")
    return sources() + files(*here, "docs/**/*.md")


@pytest.mark.parametrize("rule", CONTROLS, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    where = texts() if rule is no_trace_of_a_machine_or_of_work_to_come else sources()
    findings = [line for file in where for line in found(rule, file)]
    assert not findings, "\n" + "\n".join(findings)


@pytest.mark.parametrize(
    "rule, path, bad, good",
    [(rule, *control) for rule, controls in CONTROLS.items() for control in controls],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_rule_fires_on_a_breach_and_only_there(rule, path, bad, good):
    assert found(rule, File(path, bad))
    good_path = "model/attention.py" if rule is names_say_something else path
    assert not found(rule, File(good_path, good))


def cycle(of: list[File]) -> list[str]:
    """The modules of an import cycle, or nothing."""
    graph = {}
    for file in of:
        name = file.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        graph[name] = {module for _, module in imports(file)} - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_through_others():
    assert cycle([file for file in sources() if file.home in SHIPPED]) == []


def test_an_import_cycle_would_be_seen():
    texts = {"model/cache.py": "import model.layers", "model/layers.py": "import model.cache"}
    assert cycle([File(path, text) for path, text in texts.items()])


def test_the_sources_are_found_so_that_the_rules_have_something_to_judge():
    assert {"model/errors.py", "tests/test_structure.py"} <= {file.path for file in sources()}
    assert {"Makefile", ".ci/run", "pyproject.toml"} <= {file.path for file in texts()}


def test_tests_run_on_eight_devices_and_refuse_promotion():
    assert jax.device_count() == 8
    with pytest.raises(jax.dtypes.TypePromotionError, match="promotion=strict"):
        jnp.zeros(3, jnp.float32) + jnp.zeros(3, jnp.bfloat16)


@pytest.mark.standard_promotion
def test_a_marked_test_may_promote_types_but_never_ranks():
    assert (jnp.zeros(3, jnp.float32) + jnp.zeros(3, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros((2, 3)) + jnp.zeros(3)
