"""Faults put into a copy of the code, to see that a test turns red where they are.

A mutant is a replacement in one file. `build` copies the tree to a directory, applies it and
compiles what it touched; a proxy started there (`rig.run_from`) and tests run there meet the faulty
code. The text to replace must occur exactly once, so a mutant that the code has outgrown fails
loudly.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Compiling one module takes ten to thirty seconds on a busy machine.
BUILD_TIMEOUT = 300.0  # seconds

_BUILD = "import setuptools; setuptools.setup()"


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    fault: str
    file: str
    before: str
    after: str
    red: str = ""  # the test that must fail


VANISHED = Mutant(
    name="m1",
    fault="the entry of a client that has vanished is removed from its node's queue",
    file="proxy/wire/upstream.pyx",
    before="        if self.head is None or self.head is self.unsent:\n            self.fault =",
    after=(
        "        while (self.head is not None and self.head is not self.unsent\n"
        "               and self.head.sink is None and not self.head.asking):\n"
        "            self.pop()\n"
        "        if self.head is None or self.head is self.unsent:\n            self.fault ="
    ),
)

TIMED_OUT = Mutant(
    name="m2",
    fault="the head of the queue is popped at its deadline, and the connection kept",
    file="proxy/wire/upstream.pyx",
    before="            return True, overdue\n",
    after=(
        '            overdue.append(self._orphan(pending, "overdue"))\n'
        "            self.pop()\n"
        "            return False, overdue\n"
    ),
)

LYING = "tests/integration/test_lying_nodes.py::"
HOSTILE = "tests/integration/test_hostile.py::"

MUTANTS = (
    Mutant(
        name="m4",
        fault="a command sent on by ASK stands before its ASKING",
        file="proxy/wire/upstream.pyx",
        before=("        if asking:\n            permission = Pending.__new__(Pending)\n"),
        after=(
            "        if asking:\n"
            "            upstream.enqueue(pending, <char*> self.command, len(self.command))\n"
            "            pending = Pending.__new__(Pending)\n"
            "            permission = Pending.__new__(Pending)\n"
        ),
        red=LYING + "test_asking_stands_before_its_command",
    ),
    Mutant(
        name="m5",
        fault="a write that may have run is sent again",
        file="proxy/upstream/redirects.py",
        before="        if orphan.sent and not orphan.repeatable:\n            orphan.answer(",
        after="        if False:\n            orphan.answer(",
        red=LYING + "test_a_write_that_may_have_run_is_never_repeated",
    ),
    Mutant(
        name="m10",
        fault="no window on the replies that a client is owed",
        file="proxy/wire/downstream.pyx",
        before="    WINDOW_BYTES = 1024 * 1024\n",
        after="    WINDOW_BYTES = 1024 * 1024 * 1024\n",
        red=HOSTILE + "test_unread_replies_cost_a_fixed_amount",
    ),
    Mutant(
        name="foreign",
        fault="a node's identity is not checked",
        file="proxy/upstream/connection.py",
        before='        if told.removeprefix("txt:") != self._endpoint.node_id:\n',
        after="        if False:\n",
        red=LYING + "test_a_node_with_a_foreign_identity_gets_no_data",
    ),
    Mutant(
        name="shift",
        fault="a reply that nobody asked for is ignored instead of ending the connection",
        file="proxy/wire/upstream.pyx",
        before=(
            '            self.fault = "a reply came that nobody asked for"\n'
            "            return None\n"
        ),
        after="            return None\n",
        red=LYING + "test_a_node_out_of_step_harms_nobody",
    ),
    Mutant(
        name="redirect",
        fault="a redirect loop is answered in the node's words",
        file="proxy/upstream/redirects.py",
        before='        elif orphan.kind in ("moved", "ask") or orphan.reply is None:\n',
        after="        elif orphan.reply is None:\n",
        red=LYING + "test_a_redirect_loop_ends",
    ),
)


def build(mutant: Mutant, directory: Path) -> Path:
    """Return a tree with the mutant's fault in it, compiled."""
    tree = directory / mutant.name
    for part in ("proxy", "tests"):
        shutil.copytree(
            ROOT / part, tree / part, symlinks=False, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy2(ROOT / "pyproject.toml", tree)
    for name in ("README.md", "LICENSE"):
        (tree / name).write_text("")
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.before) != 1:
        raise AssertionError(
            f"mutant {mutant.name}: its text occurs {text.count(mutant.before)} times in "
            f"{mutant.file}; write it anew"
        )
    path.write_text(text.replace(mutant.before, mutant.after))
    if path.suffix == ".pyx":
        _compile(tree, path)
    return tree


def _compile(tree: Path, path: Path) -> None:
    for stale in path.parent.glob(f"{path.stem}.*"):
        if stale.suffix in (".c", ".so"):
            stale.unlink()
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, "-q", "build_ext", "--inplace"],
        cwd=tree, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"{path.name} does not compile:\n{done.stderr[-3000:]}")
