"""The package as a whole: what imports what, what it needs, and that what the documents name is there."""

import ast
import configparser
import graphlib
import importlib.metadata
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.house import LEVELS, drawing

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wsod_jax"
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
COMMANDS = [PACKAGE / "commands" / path.name for path in SCRIPTS]


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Yield every import of a file, wherever it stands, as (statement, dotted module)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node, inner if inner in MODULES else node.module


def room(module: str) -> str:
    """Return the room of a module of the package: `wsod_jax.ops.roi` is in `ops`."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"wsod_jax"}))
def test_imports_go_down(module):
    own = room(module)
    assert own in LEVELS, f"{module} is in no room of the house"
    for node, imported in imports(MODULES[module]):
        other = room(imported)
        if not imported.startswith("wsod_jax.") or other == own:
            continue
        assert LEVELS[other] < LEVELS[own], (
            f"{module}:{node.lineno} imports {imported}, which is not below it"
        )


def test_the_architecture_draws_the_levels_that_are_enforced():
    assert set(LEVELS) == {room(module) for module in MODULES if room(module)}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert drawing() in text, "python -m tests.house draws it again"


def test_no_file_is_too_long_to_read_in_one_sitting():
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("wsod_jax", "scripts")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def test_no_circles():
    graph = {
        module: {name for _, name in imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
        if module != "wsod_jax"  # the front door, which imports when it is used
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError on a circle
    assert len(order) == len(MODULES)


def test_scripts_are_not_imported_by_the_package():
    for module, path in MODULES.items():
        for node, imported in imports(path):
            top = imported.split(".")[0]
            assert top not in ("scripts", "configs", "tests"), f"{module}:{node.lineno}: {imported}"


def not_run_on_import(path: Path) -> set[tuple[int, int]]:
    """Return where the imports stand that run when a function is called, or for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        (node.lineno, node.col_offset)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for node in ast.walk(block)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


def test_only_data_imports_tensorflow_and_only_when_used():
    for module, path in MODULES.items():
        lazy = not_run_on_import(path)
        for node, imported in imports(path):
            if imported.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
                where = f"{module}:{node.lineno}"
                assert room(module) == "data", f"{where}: TensorFlow outside data/"
                assert (node.lineno, node.col_offset) in lazy, (
                    f"{where}: import it where it is used"
                )


BLOCK = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run_python(code: str, *args: str, blocked: tuple[str, ...] = ()) -> str:
    """Run code in a fresh interpreter where the `blocked` packages cannot be imported."""
    prelude = f"BLOCKED = {blocked!r}\n{BLOCK}" if blocked else ""
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


IMPORT_ALL = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_every_module_imports_and_none_brings_tensorflow():
    loaded = json.loads(run_python(IMPORT_ALL, *MODULES).splitlines()[-1])
    assert "wsod_jax" in loaded
    assert not {"tensorflow", "tensorflow_datasets", "torch"} & set(loaded)


def test_package_works_without_tensorflow():
    use_it = """
import jax.numpy as jnp
from wsod_jax.ops.nms import nms_mask
boxes = jnp.array([[0., 0., 10., 10.], [1., 0., 11., 10.], [20., 0., 30., 10.]])
keep = nms_mask(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool), iou_thr=0.3)
print(keep.tolist())
"""
    blocked = ("tensorflow", "tensorflow_datasets", "keras")
    lines = run_python(IMPORT_ALL + use_it, *MODULES, blocked=blocked).splitlines()
    assert lines[-1] == "[True, False, True]"
    with pytest.raises(AssertionError, match="blocked"):  # the blocker does block
        run_python("import tensorflow", blocked=blocked)


def test_import_is_quick():
    code = "import time; t = time.perf_counter(); import wsod_jax; print(time.perf_counter() - t)"
    fastest = min(float(run_python(code)) for _ in range(2))  # other tests share the machine
    assert fastest < 2.0


def canonical(requirement: str) -> str:
    """Return a requirement's bare, normalized project name."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def declared(*extras: str) -> set[str]:
    """Return the names of the declared dependencies, with those of the extras."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    text = parser["options"]["install_requires"]
    text += "".join(parser["options.extras_require"][extra] for extra in extras)
    lines = [line.strip() for line in text.splitlines()]
    return {canonical(line) for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize(
    "folder, extras", [("wsod_jax", ()), ("scripts", ()), ("configs", ()), ("tests", ("test",))]
)
def test_third_party_imports_are_declared(folder, extras):
    allowed = declared(*extras) | {"tensorflow", "torch"}  # torch only behind `importorskip`
    owners = importlib.metadata.packages_distributions()
    ours = {"wsod_jax", "scripts", "configs", "tests"}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node, imported in imports(path):
            top = imported.split(".")[0]
            if top in sys.stdlib_module_names or top in ours:
                continue
            names = {canonical(name) for name in owners.get(top, [top])}
            assert names & allowed, f"{path}:{node.lineno}: {top} is not in setup.cfg"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_every_dependency_once(python):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [
        canonical(pin.name)
        for pin in pins
        if pin.marker is None or pin.marker.evaluate({"python_version": python})
    ]
    assert declared("test") - {"tensorflow"} <= set(names) and len(names) == len(set(names))
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)


def test_documents_name_files_and_targets_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\b((?:scripts|configs)/\w+\.py)\b", text):
            assert (ROOT / name).exists() or "my_" in name, f"{path.name} names {name}"
        for target in re.findall(r"`make ([\w-]+)", text):
            assert target in targets, f"{path.name} names `make {target}`"
        for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", text):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


def command_source(name: str) -> str:
    """Return the text of the file that parses a command's line, and of what all commands share."""
    files = [PACKAGE / "commands" / f"{part}.py" for part in (name, "command_line")]
    return "".join(path.read_text(encoding="utf-8") for path in files)


def test_commands_in_texts_use_flags_that_exist():
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.py")]
    checked = 0
    for path in [*texts, *COMMANDS]:
        text = re.sub(r"\\+\n\s*", " ", path.read_text(encoding="utf-8"))
        for name, rest in re.findall(r"(?:^|[ `])wsod-jax (\w+)([^\n#`]*)", text, re.MULTILINE):
            source = command_source(name)
            for flag in re.findall(r"(?<![\w-])--(\w[\w-]*)", rest.split("&&")[0]):
                assert f'"--{flag}"' in source + '"--help"', f"{path.name}: {name} has no --{flag}"
                checked += 1
    assert checked > 40


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_scripts_are_launchers_of_commands(script):
    text = script.read_text(encoding="utf-8")
    assert f"from wsod_jax.commands.{script.stem} import main" in text
    assert len(text.splitlines()) <= 20


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_help_is_quick_and_the_docstring(script):
    """In seconds of the processor, since other tests share the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and not done.stderr, done.stderr
    parsed = ast.parse((PACKAGE / "commands" / script.name).read_text(encoding="utf-8"))
    assert ast.get_docstring(parsed, clean=False).strip() in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_import_of_the_package_brings_no_heavy_library():
    code = "import json, sys, wsod_jax; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(run_python(code))}
    assert "wsod_jax" in loaded
    assert not {"tensorflow", "tensorflow_datasets", "torch", "matplotlib"} & loaded


def test_nothing_below_commands_takes_a_config_dict():
    """Commands turn it into a `RunConfig`; families of configurations make it."""
    allowed = {"commands", "presets"}
    for module, path in MODULES.items():
        if module != "wsod_jax" and room(module) not in allowed:
            for node, imported in imports(path):
                assert imported.split(".")[0] != "ml_collections", f"{module}:{node.lineno}"
