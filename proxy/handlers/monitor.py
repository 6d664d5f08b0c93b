"""MONITOR: every command that this process lets through, as it is taken, on one connection.

Always true: a client is shown what its own user sends only, unless its role is `admin`; secrets are
never shown (no AUTH, and of HELLO nothing behind its AUTH); values are shortened; a monitor that
does not read is closed by the limits of every other client, and costs nothing to anybody while
there is none.
"""

import time
from collections.abc import Mapping

from proxy import commands, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.glimpse import words_of
from proxy.handlers.tenants import sees

# Redis does not show what administers it, nor who logs in.
HIDDEN = {row.name for row in commands.COMMANDS if "admin" in row.flags} | {b"auth"}


class Watching:
    """A client that is sent what others send: its holding "monitor"."""

    flag = "O"

    def __init__(self, session: Session) -> None:
        self._session = session
        self._monitors = session.server.monitors

    @property
    def counts(self) -> Mapping[str, int]:
        return {}

    def release(self) -> None:
        self._monitors.leave(self._session)


class Monitors:
    """The clients that watch, and what they are sent."""

    def __init__(self, batch: wire.Batch) -> None:
        self._batch = batch
        self._watching: dict[int, Session] = {}

    def join(self, session: Session) -> None:
        self._watching[session.id] = session
        self._batch.observer = self.observe

    def leave(self, session: Session) -> None:
        self._watching.pop(session.id, None)
        if not self._watching:
            self._batch.observer = None

    def observe(self, sender: Session | None, frame: bytes) -> None:
        """Send a line of one command to everybody who watches and may hear of its sender."""
        words = words_of(frame)
        name = words[0].lower()
        if sender is None or name in HIDDEN or _row_name(words) in HIDDEN:
            return
        if name == b"hello":
            words = _without_secret(words)
        shown = " ".join(_quoted(word) for word in words)
        line = resp.encode(
            resp.Simple(f"{time.time():.6f} [{sender.database} {sender.peer}] {shown}"), 2
        )
        for session in list(self._watching.values()):
            if sees(session, sender.user):
                session.push(line)


def _row_name(words: list[bytes]) -> bytes:
    return b"|".join(words[:2]).lower()


def _without_secret(words: list[bytes]) -> list[bytes]:
    for position, word in enumerate(words):
        if word.lower() == b"auth":
            return [*words[: position + 1], b"(redacted)"]
    return words


def _quoted(word: bytes) -> str:
    """Return a word as redis-cli prints strings: printable ASCII, everything else escaped."""
    marks = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    text = "".join(
        marks.get(char) or (char if " " <= char <= "~" else f"\\x{ord(char):02x}")
        for char in word.decode("latin-1")
    )
    return f'"{text}"'


def monitor(session: Session, request: wire.Request) -> bytes:
    if "monitor" not in session.holdings:
        session.holdings["monitor"] = Watching(session)
        session.server.monitors.join(session)
    return resp.OK


HANDLERS: dict[bytes, Handler] = {b"monitor": monitor}
