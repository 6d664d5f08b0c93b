"""Rules from files to what the data plane takes, worked out beside the process that serves.

Reading and checking a thousand keyspaces is half a second of Python. In the process that serves, it
would take the interpreter from the event loop again and again, so a `Writer` lets a process of its
own do it, and puts the pieces together with a rest after each. `drafted_here` is the same in one
step, for the start.

Always true: a draft is made of files that nobody changed while they were read; it is complete, or
there is none and every mistake is told.
"""

import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from proxy import commands, wire
from proxy.documents import Mistake
from proxy.errors import PolicyError
from proxy.policy import compiler, files
from proxy.policy.compiler import Arguments
from proxy.policy.differences import differences
from proxy.policy.loader import PolicyMistakes, load
from proxy.policy.model import Policies
from proxy.policy.rights import Vocabulary
from proxy.wire.rules import Keyspace

# Files that are being written settle within this; who still writes then is told so.
ATTEMPTS = 5
ATTEMPT_PAUSE = 0.2  # seconds

# Keyspaces per piece: some 75 µs of the interpreter, which is what the loop misses.
PIECE = 8

# So that few requests meet a piece: together they are a hundredth of ten seconds.
PIECE_PAUSE = 0.0005  # seconds

# Traffic goes first. What has not come to an end on processors that nobody needs begins again with
# a share of its own: on a machine that is never idle it would not end at all.
PATIENT = 10.0  # seconds
NICENESS = 10
_IDLE = "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))"  # Linux only
_NICE = f"os.nice({NICENESS})"

# Starting Python takes half a second, a thousand keyspaces another; a pod may have a tenth of a
# core. Whoever has not finished then never will.
DEADLINE = 60.0  # seconds

# Whoever changes more at once looks at the files.
MOST_DIFFERENCES = 200  # lines

# Of what a process that failed has said.
_LAST_WORDS = 2000  # characters


class Settled(NamedTuple):
    """What rules say, for the comparison with the next ones."""

    policies: Policies
    arguments: Arguments


class Head(NamedTuple):
    """What a draft begins with. Keyspaces of the arguments follow in pieces if anything changed."""

    look: files.Look
    mark: str
    changed: bool
    differences: tuple[str, ...]  # from what is in force, a line each
    settled: bytes  # a pickled `Settled`
    arguments: Arguments


class Refusal(NamedTuple):
    """What stands in the place of a draft: the mistakes, and the files that have them."""

    look: files.Look
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Draft:
    """Rules that may be put in force. Without a ruleset nothing has changed."""

    look: files.Look
    mark: str
    settled: bytes
    ruleset: wire.Ruleset | None
    differences: tuple[str, ...] = ()


class DraftRefused(PolicyMistakes):
    """Every mistake of the files, and the files that have them."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.mistakes)
        self.look = refusal.look


class DraftFailed(PolicyError):
    """The rules could not be worked out, for reasons that are not theirs."""


class Order(NamedTuple):
    """What to make a draft of."""

    path: Path | None
    clusters: tuple[str, ...]
    before: bytes | None  # what is in force, as `Settled`
    memory: tuple[tuple[str, int], ...] = ()  # bytes, of clusters that say it


def drafted_here(order: Order) -> tuple[Draft, wire.Ruleset]:
    """Return the draft of the files and its rules, or raise DraftRefused."""
    pieces = _pieces(order._replace(before=None))
    head = _accepted(next(pieces))
    ruleset = _put_together(head, pieces, 0.0)
    return Draft(head.look, head.mark, head.settled, ruleset), ruleset


def _pieces(order: Order) -> Iterator[object]:
    """Yield a head and pieces of keyspaces, or a refusal."""
    for _ in range(ATTEMPTS):
        seen = files.look(order.path)
        outcome = _head(order, seen)
        if files.look(order.path) == seen:
            break
        time.sleep(ATTEMPT_PAUSE)
    else:
        message = "the files change while they are read; try again when they are written"
        outcome = Refusal(seen, (Mistake(str(order.path), 0, 0, message),))
    if isinstance(outcome, Refusal) or not outcome.changed:
        yield outcome
        return
    keyspaces = outcome.arguments["keyspaces"]
    arguments = outcome.arguments.copy()
    arguments["keyspaces"] = ()
    yield outcome._replace(arguments=arguments)
    for start in range(0, len(keyspaces), PIECE):
        yield list(keyspaces[start : start + PIECE])


def _head(order: Order, seen: files.Look) -> Head | Refusal:
    try:
        vocabulary = Vocabulary(
            commands.ROWS, commands.CATEGORIES, order.clusters, dict(order.memory)
        )
        policies = load(order.path, vocabulary)
        arguments = compiler.ruleset_arguments(
            policies, commands.ROWS, commands.FAMILIES, commands.CATEGORIES, order.clusters
        )
    except PolicyMistakes as mistakes:
        return Refusal(seen, mistakes.mistakes)
    # What many rows have becomes one object: it travels once, is kept once, and is one for the
    # collector of garbage to look at.
    shared: dict[object, Any] = {}
    arguments["keyspaces"] = [_sharing(space, shared) for space in arguments["keyspaces"]]
    settled = Settled(policies, arguments)
    # The files are our own children's, or our own.
    before = pickle.loads(order.before) if order.before is not None else None  # noqa: S301
    told = differences(before.policies, policies, MOST_DIFFERENCES) if before is not None else ()
    return Head(
        seen, files.mark(order.path), settled != before, tuple(told),
        pickle.dumps(settled), arguments,
    )  # fmt: skip


def _sharing(space: Keyspace, shared: dict[object, Any]) -> Keyspace:
    def one(value: Any) -> Any:
        # Rows of different types may be equal.
        alike = isinstance(value, bytes | tuple)
        return shared.setdefault((type(value), value), value) if alike else value

    return Keyspace._make(map(one, space._replace(pattern=tuple(map(one, space.pattern)))))


def _accepted(first: Any) -> Head:
    if isinstance(first, Refusal):
        raise DraftRefused(first)
    return cast(Head, first)


def _put_together(head: Head, pieces: Iterator[Any], pause: float) -> wire.Ruleset:
    keyspaces: list[Keyspace] = []
    with _uncollected():
        for piece in pieces:
            keyspaces += piece
            time.sleep(pause)
        arguments = head.arguments.copy()
        arguments["keyspaces"] = keyspaces
        return wire.Ruleset(**arguments)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Hold the collector back: of so many new objects none is garbage.

    It would look at them again and again, and each time at everything else that has come since
    the start: the longest of all times that a reload keeps the loop.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Writer:
    """Makes drafts, one at a time, each in a process that ends with it."""

    def __init__(self, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def drafted(self, order: Order) -> Draft:
        """Return the draft of the files; runs in a thread, and takes seconds.

        Raises DraftRefused for mistakes in the files, and DraftFailed when the process fails.
        """
        if hasattr(os, "SCHED_IDLE"):
            draft = self._attempted(order, _IDLE, min(PATIENT, self._deadline / 2))
            if draft is not None:
                return draft
        draft = self._attempted(order, _NICE, self._deadline)
        if draft is None:
            raise DraftFailed(f"the rules were not read within {self._deadline:.0f} s")
        return draft

    def _attempted(self, order: Order, priority: str, seconds: float) -> Draft | None:
        """Return the draft of a process of such a priority, None where that takes too long."""
        try:
            process = self._process = _start(priority)
        except OSError as error:
            raise DraftFailed(f"no process to read the rules: {error.strerror}") from error
        late = threading.Event()

        def expire() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        if self._stopped:
            process.kill()
        try:
            with process:
                return self._received(process, order)
        except DraftFailed:
            if late.is_set():
                return None
            raise
        finally:
            timer.cancel()
            self._process = None

    def _received(self, process: subprocess.Popen[bytes], order: Order) -> Draft:
        stdin, stdout, stderr = cast(
            tuple[IO[bytes], IO[bytes], IO[bytes]],
            (process.stdin, process.stdout, process.stderr),
        )
        try:
            with stdin:
                stdin.write(pickle.dumps(order))
            pieces = _unpickled(pickle.Unpickler(stdout))  # noqa: S301 - our own child's
            head = _accepted(next(pieces))
            ruleset = _put_together(head, pieces, PIECE_PAUSE) if head.changed else None
            return Draft(head.look, head.mark, head.settled, ruleset, head.differences)
        except (OSError, EOFError, StopIteration, pickle.UnpicklingError) as error:
            process.kill()
            words = stderr.read(_LAST_WORDS).decode(errors="replace").strip()
            last = words.splitlines()[-1] if words else f"exit code {process.wait()}"
            raise DraftFailed(f"the process that reads the rules has failed: {last}") from error

    def stop(self) -> None:
        """End what is under way: it fails."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()


def _start(priority: str) -> subprocess.Popen[bytes]:
    # The path of modules is ours, so that the same code runs, whatever the current folder is.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Where a sandbox forbids it, it works as everybody does.
    code = (
        f"import contextlib, os\nwith contextlib.suppress(OSError): {priority}\n"
        "from proxy.policy import draft; draft.write()"
    )
    # Descriptors are closed by the exec, as all of ours are marked for it: closing them one by
    # one, or copying this process, would hold it up.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code], env=environment, close_fds=False,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _unpickled(source: pickle.Unpickler) -> Iterator[Any]:
    """Yield what `write` has sent, up to its end. Raises EOFError where that is missing."""
    while (piece := source.load()) is not None:
        yield piece


def write() -> None:
    """Make the draft that is ordered on standard input, and send its pieces; the process's work."""
    # Nothing of what comes to be here is garbage before the end: a fifth of the work is saved.
    gc.disable()
    order = Order(*pickle.load(sys.stdin.buffer))  # noqa: S301
    # One pickler for all pieces: what they share is sent once.
    pickler = pickle.Pickler(sys.stdout.buffer)
    for piece in _pieces(order):
        pickler.dump(piece)
    pickler.dump(None)
    sys.stdout.buffer.flush()
