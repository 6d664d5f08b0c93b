"""Scripts of policies as commands, by whichever command they are run.

The table of handlers comes here for what none of its rows answers. The data plane has put a command
into the words of its run: name, digest, number of keys, keys, arguments; and so it has a run of the
script's body, which names the same keys. Each key is judged as in any command.

Always true: a node that does not know the script gets its body, which rules carry, and the client
hears nothing of it; effects keep the client's order; what PostgreSQL decides is never left to the
script alone.
"""

from collections.abc import Awaitable

from proxy import errors, resp, wire
from proxy.handlers import Session, seats
from proxy.handlers.forward import locate_all
from proxy.handlers.runs import Frames
from proxy.handlers.scripts import NOSCRIPT, run
from proxy.wire.scripts import Script


def script_of(request: wire.Request) -> Script | None:
    """Return the script that a command is offered by."""
    return request.ruleset.commands[request.row].script if request.row >= 0 else None


def answer(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """Run the script that a command is offered by."""
    script = script_of(request)
    if script is None:
        return errors.INTERNAL
    if decided(session, request):
        return _decide(session, request, script)
    words = request.arguments
    words[0] = script.command
    # Clients know no digest, so none of them may hear of NOSCRIPT, and what has overtaken a run
    # keeps it from being repeated. Where its client has sent more, the body goes along; where it
    # has not, it loses nothing by waiting.
    waits = session.downstream.held_bytes == 0
    if not waits:
        words = whole(script, words)

    def mend(error: bytes) -> Frames:
        return (wire.pack(whole(script, words)),) if error.startswith(NOSCRIPT) else ()

    reply = run(session, request, words, script.digest, mend)
    if isinstance(reply, bytes):
        return reply
    if waits:
        session.downstream.hold()
    return _answered(session, reply, waits, maps(session, request))


async def _answered(session: Session, reply: Awaitable[bytes], waits: bool, mapped: bool) -> bytes:
    try:
        line = await reply
        return as_map(line) if mapped else line
    finally:
        if waits:
            session.downstream.release()


def whole(script: Script, words: list[bytes]) -> list[bytes]:
    """Return the words of a run with the body in the place of its digest."""
    return [b"EVAL_RO" if script.reads else b"EVAL", script.body, *words[2:]]


def decided(session: Session, request: wire.Request) -> bool:
    """Return whether PostgreSQL decides what a command does."""
    script = script_of(request)
    return script is not None and script.lock is not None and session.server.grants is not None


def _decide(session: Session, request: wire.Request, script: Script) -> bytes | Awaitable[bytes]:
    assert script.lock is not None
    words = request.arguments
    locations = locate_all(session, request, words)
    if isinstance(locations, bytes):
        return locations
    first = 3 + len(script.keys)
    values = dict(zip(script.arguments, words[first:], strict=False))
    more = words[first + len(script.arguments) :]
    reply = seats.named(session, request, script.lock, words[3:first], values, more)
    if isinstance(reply, bytes):
        return reply
    session.downstream.hold()
    return _answered(session, reply, True, False)


def maps(session: Session, request: wire.Request) -> bool:
    """Return whether the reply of a command is a map to its client."""
    script = script_of(request)
    return script is not None and script.mapped and session.protocol == 3


def as_map(reply: bytes) -> bytes:
    """Return a flat array of names and values as a map; any other reply as it is."""
    if reply[:1] != b"*" or reply[1:2] == b"-":
        return reply
    flat = resp.elements(reply)
    if len(flat) % 2:
        return reply
    return resp.mapping(zip(flat[::2], flat[1::2], strict=True), 3)
