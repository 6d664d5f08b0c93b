"""What is said of locks about which PostgreSQL decides, between `grants` and who calls it."""

from collections.abc import Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """Who wants a lock, and for how long."""

    owner: str
    seconds: float
    booking: str | None = None
    session: str | None = None
    value: str | None = None  # as the client has written it
    same: bool = True  # who holds it already is granted it again; else by this very session alone


class Hold(NamedTuple):
    """A lock, and what is said of who holds it."""

    key: bytes
    owner: str
    token: int | None  # None: whichever grant
    stamp: str | None = None  # as PostgreSQL gave it to the last who was granted it by that token


class Taken(NamedTuple):
    """What became of a claim."""

    outcome: str  # acquired extended held queue limit lost missing, or the state of the row
    tokens: Sequence[int] = ()
    lefts: Sequence[float] = ()  # seconds: of what is held, or of the first that another has
    holder: str | None = None  # or for whom it is kept
    has: int = 0  # how many locks the owner has, of those that are counted
    fresh: Sequence[int] = ()  # places of those that nobody held
    stamps: Sequence[str] = ()  # what tells these grants from the same owner's next

    @property
    def granted(self) -> bool:
        return self.outcome in ("acquired", "extended")


class Freed(NamedTuple):
    """What became of a wish to give a lock up."""

    token: int | None  # of the grant that is no longer; None: it was not held so
    looked: bool  # whether that is known
    again: bool  # whether an earlier answer was lost


class Waiting(NamedTuple):
    """A place in a queue."""

    outcome: str  # waiting offered available holder left full missing, or the state of the row
    place: int  # 1: the next
    waits: float  # seconds, at most as it looks now
    offered: float  # seconds left to take what is offered


class Row(NamedTuple):
    """A lock as its table has it."""

    status: str
    owner: str | None
    token: int
    booking: str | None
    session: str | None
    left: float  # seconds


class Mine(NamedTuple):
    """A lock that somebody holds."""

    columns: Sequence[str]  # of its key
    token: int
    left: float  # seconds
