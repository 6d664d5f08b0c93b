"""Forty people who want the same seats: the load of the proof that no seat is held twice.

Clients are in groups; all of a group are after the few seats that are on offer to it, so that every
seat has many who want it, and a history short enough to be searched. A client asks one question
after the other. It remembers what it was told, and goes by it; now and then it tries what is not
its own.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.histories import Operation
from tests.integration.rig import Caller
from tests.integration.tickets import Line, Seat, Unanswered, ask, ask_plainly

# Of a group, so many seats are on offer at once. More than half as many as it has clients that may
# hold several: all want what others have.
ON_OFFER = 14
GROUP = 10  # clients, so that a seat's history is that of few
MOST_OPERATIONS = 95  # on one seat; a few more may be on their way
SEATS_OF_EVENT = 200

# A client that is refused for want of a server asks again a little later, as people do.
PAUSE = 0.05  # seconds


@dataclass(frozen=True)
class Plan:
    """How much is asked, of what."""

    operations: int  # that are answered
    seed: int
    clients: int = 40
    hold: float = 2.0  # seconds of a lock
    longer: int = 3  # seconds of some extensions
    limit: int = 4  # locks of one owner in one event

    @property
    def groups(self) -> int:
        return math.ceil(self.clients / GROUP)

    @property
    def seats(self) -> int:
        """Seats of each group: a fifth more than are used up, as chaos may take its time."""
        used = self.operations * 1.2 / self.groups / MOST_OPERATIONS
        return math.ceil(used) + 2 * ON_OFFER

    def seats_of(self, group: int) -> list[Seat]:
        return [
            Seat(f"evt_{group}_{number // SEATS_OF_EVENT}", f"seat_{number}")
            for number in range(self.seats)
        ]


@dataclass
class Offer:
    """The seats that are on offer to a group; one that was asked for often enough makes room."""

    coming: list[Seat]
    open: list[Seat] = field(default_factory=list)
    asked: Counter[Seat] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.coming.reverse()
        self.fill()

    def fill(self) -> None:
        while self.coming and len(self.open) < ON_OFFER:
            self.open.append(self.coming.pop())

    def count(self, seat: Seat) -> None:
        self.asked[seat] += 1
        if self.asked[seat] >= MOST_OPERATIONS and seat in self.open:
            self.open.remove(seat)
            self.fill()


@dataclass(slots=True)
class Belief:
    """What a client believes to hold: by which token, and whether by a plain SET."""

    token: int | None
    plain: bool = False


Connect = Callable[[int], Awaitable[Line]]


class Client:
    """One of the crowd."""

    def __init__(self, number: int, crowd: "Crowd", offer: Offer) -> None:
        self.number = number
        self.owner = f"usr_{number}"
        self.crowd = crowd
        self.offer = offer
        self.dice = random.Random(f"{crowd.plan.seed}:{number}")
        self.beliefs: dict[Seat, Belief] = {}
        self.tokens: list[int] = []  # that were ours once, to try what is wrong
        self.line: Line | None = None

    async def run(self) -> None:
        """Ask until the crowd is over or nothing is on offer; a lost line is opened again."""
        while not self.crowd.over.is_set() and self.offer.open:
            try:
                if self.line is None:
                    self.line = await self.crowd.connect(self.number)
                await self.step(self.line)
            except Unanswered as lost:
                self.note(lost.operation)
                self.leave()
            except (OSError, TimeoutError):
                self.leave()
                await asyncio.sleep(PAUSE)
        self.leave()

    def leave(self) -> None:
        if isinstance(self.line, Caller):
            self.line.close()
        self.line = None

    async def step(self, line: Line) -> None:
        """Ask one question about one seat."""
        seat = self.dice.choice(self.offer.open)
        self.offer.count(seat)
        belief = self.beliefs.get(seat)
        if belief is None:
            operation = await self.want(line, seat)
        else:
            operation = await self.have(line, seat, belief)
        self.note(operation, seat)
        if operation.error and not operation.error.startswith("LOCKOWNER"):
            await asyncio.sleep(PAUSE * self.dice.random())

    async def want(self, line: Line, seat: Seat) -> Operation:
        """Ask for a seat, look at it, or try to meddle with what somebody else has."""
        hold, dice = self.crowd.plan.hold, self.dice.random()
        if dice < 0.72:
            return await ask(line, "acquire", seat, self.owner, hold=hold)
        if dice < 0.80:
            return await ask_plainly(line, "acquire", seat, self.owner, hold=hold)
        if dice < 0.88:
            return await ask(line, "status", seat, self.owner, hold=hold)
        if dice < 0.92:
            return await ask_plainly(line, "status", seat, self.owner, hold=hold)
        token = self.dice.choice(self.tokens or [1])
        kind = self.dice.choice(("extend", "release", "confirm"))
        return await ask(line, kind, seat, self.owner, hold=hold, token=token)

    async def have(self, line: Line, seat: Seat, belief: Belief) -> Operation:
        """Extend, give back or buy what is believed to be held; by then it may have run out."""
        plan, dice = self.crowd.plan, self.dice.random()
        if belief.plain and dice < 0.5:
            return await ask_plainly(line, "release", seat, self.owner, hold=plan.hold)
        if belief.token is None or dice < 0.1:
            return await ask(line, "acquire", seat, self.owner, hold=plan.hold)
        if dice < 0.35:
            seconds = plan.longer if dice < 0.2 else None
            return await ask(line, "extend", seat, self.owner, hold=plan.hold,
                             seconds=seconds)  # fmt: skip
        if dice < 0.45:
            return await ask(line, "status", seat, self.owner, hold=plan.hold)
        kind = "confirm" if dice < 0.47 else "release"
        return await ask(line, kind, seat, self.owner, hold=plan.hold, token=belief.token)

    def note(self, operation: Operation, seat: Seat | None = None) -> None:
        """Write an operation down, and believe what it told."""
        self.crowd.note(operation)
        if seat is None or operation.error:
            return
        match operation.outcome:
            case "acquired" | "extended" if operation.token is not None:
                plain = self.beliefs[seat].plain if seat in self.beliefs else False
                self.beliefs[seat] = Belief(operation.token, plain)
                self.tokens = [*self.tokens[-20:], operation.token]
            case "granted":
                self.beliefs[seat] = Belief(None, plain=True)
            case "released" | "confirmed" | "held" | "booked" | "queued":
                self.beliefs.pop(seat, None)
            case "refused" if operation.kind in ("extend", "confirm", "release"):
                self.beliefs.pop(seat, None)


class Crowd:
    """All clients of one run, and what they noted."""

    def __init__(self, plan: Plan, connect: Connect) -> None:
        self.plan = plan
        self.connect = connect
        self.history: list[Operation] = []
        self.answered = 0
        self.outcomes: Counter[str] = Counter()
        self.over = asyncio.Event()
        offers = [Offer(plan.seats_of(group)) for group in range(plan.groups)]
        self.clients = [Client(n, self, offers[n // GROUP]) for n in range(plan.clients)]

    @property
    def owners(self) -> Sequence[str]:
        return [client.owner for client in self.clients]

    def note(self, operation: Operation) -> None:
        self.history.append(operation)
        said = operation.error.split(" ")[0] if operation.error else operation.outcome
        self.outcomes[f"{operation.kind} {said}"] += 1
        self.answered += not operation.error and operation.outcome != "unknown"

    @property
    def enough(self) -> bool:
        return self.answered >= self.plan.operations

    @property
    def progress(self) -> float:
        """How much is done, of 1; without an end where no seat is left."""
        return math.inf if self.over.is_set() else self.answered / self.plan.operations

    async def run(self) -> None:
        """Ask until `over` is set or no seat is left."""
        try:
            async with asyncio.TaskGroup() as group:
                for client in self.clients:
                    group.create_task(client.run())
        finally:
            self.over.set()
