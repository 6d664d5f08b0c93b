"""CLIENT REPLY, PAUSE and UNPAUSE: whether replies leave, and whether commands are taken.

Always true: a pause ends by itself at the time that was asked for, whatever becomes of who asked;
what it holds back waits in its client's own window, so it costs no more than a slow node.
"""

import asyncio
from collections.abc import Iterable

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.connection import integer
from proxy.wire.rules import Pause

# An hour. A pause is for a moment's work; longer, and clients have given up long before.
LONGEST_PAUSE = 3600.0  # seconds

PAUSES = {b"WRITE": Pause.WRITE, b"ALL": Pause.ALL}
SILENCES = {b"ON": 0, b"OFF": 1, b"SKIP": 2}


class Pauses:
    """What is held back of all clients, and until when."""

    def __init__(self, router: wire.Router) -> None:
        self._router = router
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._held: Iterable[Session] = ()

    def begin(self, kind: Pause, seconds: float, clients: Iterable[Session]) -> None:
        """Hold commands back; a second pause neither shortens nor weakens the first."""
        end = self._loop.time() + seconds
        if self._timer is not None:
            self._timer.cancel()
            end = max(end, self._timer.when())
        self._router.pause = max(self._router.pause, kind)
        self._held = clients
        self._timer = self._loop.call_at(end, self.end)

    def end(self) -> None:
        """Let everybody go on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._router.pause = Pause.NEVER
        for session in list(self._held):
            session.flush()


def reply(session: Session, request: wire.Request) -> bytes:
    """ON is always answered; OFF and SKIP answer nothing, and SKIP does not end an OFF."""
    asked = SILENCES.get(request.arguments[2].upper())
    if asked is None:
        return errors.SYNTAX
    side = session.downstream
    if asked == 2 and side.silence == 1:
        return b""
    side.silence = asked
    if asked == 0:
        # The place of this command's own reply is silent still; nothing else is pending.
        session.push(resp.OK)
    return b""


def pause(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    if len(words) > 2:
        return errors.SYNTAX
    kind = PAUSES.get(words[1].upper() if words[1:] else b"ALL")
    if kind is None:
        return errors.PAUSE_MODE
    milliseconds = integer(words[0])
    if milliseconds is None:
        return errors.PAUSE_NOT_AN_INTEGER
    if milliseconds < 0:
        return errors.PAUSE_NEGATIVE
    seconds = min(milliseconds / 1000, LONGEST_PAUSE)
    session.server.pauses.begin(kind, seconds, session.server.sessions.values())
    return resp.OK


def unpause(session: Session, request: wire.Request) -> bytes:
    session.server.pauses.end()
    return resp.OK


HANDLERS: dict[bytes, Handler] = {
    b"client|reply": reply,
    b"client|pause": pause,
    b"client|unpause": unpause,
}
