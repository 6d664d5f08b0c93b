"""Seats, and how a client asks for them: the commands, and what their replies mean.

How commands are spelt stands in one table. An `Operation` of `tests.histories` is what is noted.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tests.histories import NEVER, Operation
from tests.integration.rig import Word, is_error

# The words of a command behind its name, by what they are.
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "acquire": ("SEAT.ACQUIRE", ("event", "seat", "owner", "booking", "session")),
    "extend": ("SEAT.EXTEND", ("event", "seat", "owner", "seconds")),
    "release": ("SEAT.RELEASE", ("event", "seat", "owner", "token")),
    "confirm": ("SEAT.CONFIRM", ("event", "seat", "owner", "token", "booking")),
    "status": ("SEAT.STATUS", ("event", "seat")),
}


class Seat(NamedTuple):
    """One seat of one event."""

    event: str
    name: str

    @property
    def key(self) -> str:
        return f"seat_lock:{self.event}:{self.name}"

    def __str__(self) -> str:
        return f"{self.event}/{self.name}"


class Line(Protocol):
    """What sends a command and returns its reply: a connection to a proxy, or what stands for it.

    Raises OSError or TimeoutError where there is no reply: the outcome is unknown then.
    """

    async def call(self, *words: Word) -> Any: ...


class Answer(NamedTuple):
    """What a reply means."""

    outcome: str
    token: int | None = None
    seconds: float = 0.0
    holder: str | None = None
    error: str = ""


def pairs(reply: Any) -> dict[bytes, Any]:
    """Return a flat array or a map by its fields."""
    if isinstance(reply, Mapping):
        return dict(reply)
    if isinstance(reply, Sequence) and len(reply) % 2 == 0:
        return dict(zip(reply[::2], reply[1::2], strict=True))
    raise AssertionError(f"neither a map nor a flat array: {reply!r}")


def read(kind: str, reply: Any) -> Answer:
    """Return the meaning of a reply to one of COMMANDS."""
    if is_error(reply):
        text = str(reply)
        return Answer("unknown") if "unknown" in text.lower() else Answer("refused", error=text)
    fields = pairs(reply)
    outcome = fields[b"outcome"].decode()
    match kind:
        case "status":
            holder = fields[b"owner"].decode() if outcome == "locked" else None
            return Answer("told", holder=holder)
        case "release" | "confirm":
            return Answer(outcome if outcome in ("released", "confirmed") else "refused")
    if outcome in ("acquired", "extended"):
        return Answer(outcome, int(fields[b"token"]), int(fields[b"expires_in_ms"]) / 1000)
    if kind == "extend":
        return Answer("refused")
    return Answer("queued" if outcome == "queue" else outcome)


async def ask(
    line: Line, kind: str, seat: Seat, owner: str, *, hold: float, token: int | None = None,
    seconds: int | None = None,
) -> Operation:  # fmt: skip
    """Ask one of COMMANDS about a seat; return the question with what was told.

    A grant holds for `hold` seconds where no other time is asked for. Raises Unanswered.
    """
    name, words = COMMANDS[kind]
    given = {
        "event": seat.event, "seat": seat.name, "owner": owner, "session": f"session_{owner}",
        "booking": booking(owner, seat.event), "token": token,
        "seconds": seconds or math.ceil(hold),
    }  # fmt: skip
    command = [name, *(str(given[word]) for word in words)]
    each = Operation(str(seat), owner, kind, time.monotonic(), seconds=seconds or hold)
    each.token = token if "token" in words else None
    return await _noted(line, command, each, lambda reply: read(kind, reply))


def booking(owner: str, event: str) -> str:
    return f"bkg_{owner}_{event}"


async def ask_plainly(line: Line, kind: str, seat: Seat, owner: str, *, hold: float) -> Operation:
    """Ask for a seat, give it back or look at it by SET NX EX, DEL or GET."""
    each = Operation(str(seat), owner, kind, time.monotonic(), seconds=hold)
    value = json.dumps({"user_id": owner, "booking_id": booking(owner, seat.event)})
    command: dict[str, list[Word]] = {
        "acquire": ["SET", seat.key, value, "NX", "EX", math.ceil(hold)],
        "release": ["DEL", seat.key],
        "status": ["GET", seat.key],
    }

    def meaning(reply: Any) -> Answer:
        if is_error(reply):
            at_limit = kind == "acquire" and "as many locks as it may" in str(reply)
            return Answer("limit") if at_limit else read(kind, reply)
        match kind:
            case "acquire":
                return Answer("granted" if reply else "refused", seconds=math.ceil(hold))
            case "release":
                return Answer("released" if reply == 1 else "refused")
        return Answer("told", holder=json.loads(reply)["user_id"] if reply else None)

    return await _noted(line, command[kind], each, meaning)


class Unanswered(ConnectionError):
    """No reply came; the operation may have happened."""

    def __init__(self, operation: Operation) -> None:
        super().__init__("no reply")
        self.operation = operation


async def _noted(
    line: Line, command: Sequence[Word], each: Operation, meaning: Callable[[Any], Answer]
) -> Operation:
    try:
        reply = await line.call(*command)
    except (OSError, TimeoutError) as error:
        raise Unanswered(each) from error
    answer = meaning(reply)
    each.outcome, each.holder, each.error = answer.outcome, answer.holder, answer.error
    each.told = NEVER if answer.outcome == "unknown" else time.monotonic()
    if each.grants:
        each.token = answer.token if answer.token is not None else each.token
        each.seconds = answer.seconds or each.seconds
    return each
