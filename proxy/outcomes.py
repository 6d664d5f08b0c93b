"""What becomes of a command that a client has sent, for `explain` and `replay`.

What the data plane forwards or refuses is read off it. What it leaves to a handler goes through the
checks that the handler makes before it sends anything, by the same functions, so that a verdict is
the one of a running proxy.

Always true: nothing is sent, and nothing counts but words and rules. What a handler learns only
from others (whether there is room for one more wait, what PostgreSQL or a node says) is not
foreseen.
"""

from collections.abc import Iterable
from typing import NamedTuple

from proxy import effects, errors, wire
from proxy.handlers import blocking, guarded
from proxy.handlers.channels import KEYED, channels_of
from proxy.handlers.connection import integer
from proxy.handlers.forward import followers_of, place_all
from proxy.plans import Plan, plans_in
from proxy.wire import rules
from proxy.wire.scripts import run_of

# Commands that run a script or function.
_RUNS = {b"eval", b"eval_ro", b"evalsha", b"evalsha_ro", b"fcall", b"fcall_ro"}


class Outcome(NamedTuple):
    """What becomes of a command.

    name: "forwarded" "split" "handled" (sent with names changed, and changed back) "pinned" (sent
    on a connection of its own) "backed" (PostgreSQL stands behind its keys) "decided" (by
    PostgreSQL) "run" (of a script) "answered" (here) "refused".
    """

    name: str
    line: str = ""  # of a refusal
    sent: tuple[tuple[int, bytes], ...] = ()  # by a handler: cluster and frame, in their order


def outcome_of(side: wire.Downstream, request: wire.Request | None, reply: bytes) -> Outcome:
    """Return what becomes of the command that a client has sent."""
    if request is None:
        return _refused(reply) if reply else Outcome("forwarded")
    if request.row < 0:
        return _refused(errors.unknown_command(request.arguments[0], request.arguments[1:]))
    row = request.ruleset.commands[request.row]
    lock = _lock(request, row)
    if lock is not None and not _locks(request, row):
        return _refused(errors.lock_refused(lock.name, "command"))
    places = _places(side, request, row)
    if isinstance(places, bytes):
        return _refused(places)
    if lock is not None:
        return Outcome("decided")
    name = _name(request, row, places)
    if name not in ("forwarded", "handled", "pinned", "run"):
        return Outcome(name)
    return Outcome(name, "", tuple(_frames(side, request, row, places)))


def _refused(line: bytes) -> Outcome:
    return Outcome("refused", line.decode("latin-1").strip())


def _lock(request: wire.Request, row: rules.Command) -> Plan | None:
    """Return the locks that a command is about, where PostgreSQL does what it says."""
    known = plans_in(request.ruleset).by_keyspace
    if not known or (row.script is not None and row.script.lock is None):
        return None
    words = run_of(row.script, request.arguments)
    plans = (known.get(request.ruleset.find_keyspace(words[at])) for at in request.keys)
    return next((plan for plan in plans if plan is not None and plan.locking is not None), None)


def _locks(request: wire.Request, row: rules.Command) -> bool:
    """Return whether a command is one of those by which locks are used."""
    by_script = row.script is not None or row.name in (b"eval", b"evalsha")
    return by_script or effects.locks(request.arguments)


def _places(
    side: wire.Downstream, request: wire.Request, row: rules.Command
) -> list[wire.Location] | bytes:
    """Return where the keys of a command live, or the error line that its handler answers."""
    words, keys = request.arguments, request.keys
    check = guarded.REFUSALS.get(request.name)
    if check is not None and (line := check(words, 0)) is not None:
        return line
    # Rights are the same however many clusters there are.
    channels = channels_of(request.ruleset, 0)
    if channels.denied(side.role, request.name, words) is not None:
        return errors.NO_CHANNEL
    if row.keys.kind is rules.KeyKind.NONE or request.name in KEYED:
        return []
    if row.path is rules.Path.SPLIT:
        return _spread(side, request)
    if request.name in _RUNS and not keys:
        return [] if integer(words[2]) == 0 else request.keys_error
    return place_all(side, request, words, keys)


def _spread(side: wire.Downstream, request: wire.Request) -> list[wire.Location] | bytes:
    """Return where the keys of a command that is split live, or the error line."""
    words = request.arguments
    found: list[wire.Location] = []
    for position in request.keys:
        place = side.locate(words[position], request.row)
        if isinstance(place, bytes):
            return place
        if found and place.cluster != found[0].cluster:
            return errors.CROSS_CLUSTER
        found.append(place)
    return found


def _name(request: wire.Request, row: rules.Command, places: list[wire.Location]) -> str:
    """Return what becomes of a command that no rule refuses."""
    if row.path is rules.Path.SPLIT:
        return "split"
    if row.script is not None or request.name in _RUNS:
        return "run"
    if request.reason != rules.Reason.TABLE:
        return "backed"
    if request.name in guarded.HANDLERS:
        return "forwarded"
    if places and (row.path is rules.Path.BARRIER or blocking.block_at(request.arguments)):
        return "pinned"
    return "handled" if row.path is rules.Path.FORWARD else "answered"


def _frames(
    side: wire.Downstream,
    request: wire.Request,
    row: rules.Command,
    places: list[wire.Location],
) -> Iterable[tuple[int, bytes]]:
    """Yield the cluster and each frame that a handler sends, what rules send behind it too."""
    words = request.arguments
    if row.script is not None:
        words[0] = row.script.command
    for position, place in zip(request.keys, places, strict=True):
        words[position] = place.name
    cluster = places[0].cluster if places else request.ruleset.default_cluster
    yield cluster, wire.pack(words)
    for frame in followers_of(side, request, places):
        yield cluster, frame
