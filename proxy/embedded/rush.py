"""A sale, played on the terminal: many buyers, one event, and nobody is sold a seat twice.

Used by `sidecache demo --rush`. Buyers take seats by SEAT.ACQUIRE, think, and buy, give back or
leave; a primary of the locks is killed in the middle and started again. An oracle that knows only
what the buyers were told looks for a seat that two of them held at a time; in the end the tables
are compared with it.

Always true: only a node that was started here is killed, and whatever ends the sale leaves the
stopping of servers to who started them.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from proxy.embedded.board import Board
from proxy.embedded.process import EmbeddedError
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar
from proxy.embedded.smoke import Client

# How long the sale is open, and how many want to buy.
SECONDS = 30.0
BUYERS = 200

# The event is as large as makes it a rush: about one seat for every two buyers is left in the end.
SEATS = 400
MAP_WIDTH = 80

# How often the table is drawn, how long buyers think, and after which part of the time a primary
# is killed and started again; seconds and shares.
INTERVAL = 0.5
THINKING = (0.1, 1.0)
KILLED, RESTARTED = 0.4, 0.7

# What becomes of a seat that was taken: bought, given back, or left until its lock expires.
ENDS = ("bought", "returned", "left")
WEIGHTS = (0.25, 0.7, 0.05)

EVENT = "evt_1"

_SEATS = """
SELECT seat_id FROM seat_booking_state WHERE event_id = $1 AND status = 'available'
 ORDER BY length(seat_id), seat_id LIMIT $2"""
_STATES = "SELECT seat_id, status, locked_by FROM seat_booking_state WHERE event_id = $1"


@dataclass(frozen=True)
class Hall:
    """What the sale is played with."""

    sidecar: Sidecar
    locks: Cluster
    dsn: str


class Oracle:
    """Who holds what, as the buyers were told."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}
        self._tokens: dict[str, tuple[int, str]] = {}
        self.sold: dict[str, str] = {}
        self.doubles: list[str] = []

    def granted(self, seat: str, buyer: str, token: int) -> None:
        """Note that a buyer was told so; an earlier holder must have given the seat up by then."""
        holder = self._held.get(seat)
        if holder is not None and holder[0] != buyer:
            self.doubles.append(f"{seat}: {buyer} while {holder[0]} held it")
        if seat in self.sold:
            self.doubles.append(f"{seat}: {buyer} after it was sold to {self.sold[seat]}")
        last, before = self._tokens.get(seat, (0, buyer))
        # Who left without a word and comes back while its lock lasts holds the same grant.
        if token < last or (token == last and buyer != before):
            self.doubles.append(f"{seat}: token {token} is not greater than {last}, the last one")
        self._held[seat], self._tokens[seat] = (buyer, token), (token, buyer)

    def given_up(self, seat: str) -> None:
        """Note that a buyer asks to end what it holds, or will not use it any more."""
        self._held.pop(seat, None)

    def confirmed(self, seat: str, buyer: str) -> None:
        if seat in self.sold:
            self.doubles.append(f"{seat}: sold to {self.sold[seat]} and to {buyer}")
        self.sold[seat] = buyer


@dataclass
class Sale:
    """What buyers have heard."""

    oracle: Oracle = field(default_factory=Oracle)
    heard: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)  # of SEAT.ACQUIRE, seconds

    def row(self, since: float) -> str:
        """Return the figures as one line."""
        spent = sorted(self.times[-5000:]) or [0.0]
        half, most = spent[len(spent) // 2], spent[int(0.99 * (len(spent) - 1))]
        refused = sum(self.heard[word] for word in ("held", "booked", "limit", "queue"))
        return (
            f"  {since:5.1f} s  granted {self.heard['acquired']:>6,}  refused {refused:>8,}"
            f"  sold {len(self.oracle.sold):>4,}  errors {self.heard['error']:>4,}"
            f"  p50 {1000 * half:6.1f} ms  p99 {1000 * most:6.1f} ms"
            f"  held twice {len(self.oracle.doubles)}"
        )


async def play(hall: Hall, board: Board, seconds: float = SECONDS, buyers: int = BUYERS) -> bool:
    """Play the sale; return whether no seat was held or sold twice and the tables agree.

    Raises EmbeddedError where the nodes are not ours to kill.
    """
    if any(node.pid is None for node in hall.locks.nodes):
        raise EmbeddedError(f"the nodes of {hall.locks.name} are not ours to kill")
    database = await asyncpg.connect(hall.dsn)
    try:
        seats = [row["seat_id"] for row in await database.fetch(_SEATS, EVENT, SEATS)]
        sale, started = Sale(), time.monotonic()
        async with _crowd(hall, sale, seats, buyers):
            await _open(hall, sale, board, database, seats, seconds)
        return await _closed(sale, board, database, seats, time.monotonic() - started)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise EmbeddedError(f"the sale cannot go on: {error or 'no answer'}") from error
    finally:
        database.terminate()


async def _open(
    hall: Hall, sale: Sale, board: Board, database: Any, seats: Sequence[str], seconds: float
) -> None:
    started = time.monotonic()
    board.tell(f"{len(seats)} seats of {EVENT} are on sale: . free  o held  # sold")
    acts = [(KILLED, "kill -9 of a primary of the locks"), (RESTARTED, "it is started again")]
    node = hall.locks.primaries[0]
    while (since := time.monotonic() - started) < seconds:
        if acts and since > acts[0][0] * seconds:
            board.tell(f"{since:5.1f} s  {acts.pop(0)[1]}")
            if acts:
                node.kill()
            else:
                await node.restart()
        states = {row["seat_id"]: row["status"] for row in await database.fetch(_STATES, EVENT)}
        line = sale.row(since)
        board.show([*_map(seats, states), "", line], line)
        await asyncio.sleep(INTERVAL)


def _map(seats: Sequence[str], states: dict[str, str]) -> list[str]:
    marks = {"available": ".", "locked": "o", "booked": "#"}
    drawn = "".join(marks.get(states.get(seat, ""), "?") for seat in seats)
    return [f"  {drawn[at : at + MAP_WIDTH]}" for at in range(0, len(drawn), MAP_WIDTH)]


async def _closed(
    sale: Sale, board: Board, database: Any, seats: Sequence[str], seconds: float
) -> bool:
    """Compare what buyers were told with the table, and say what was found."""
    rows = {row["seat_id"]: row for row in await database.fetch(_STATES, EVENT)}
    wrong = list(sale.oracle.doubles)
    for seat in seats:
        buyer, row = sale.oracle.sold.get(seat), rows[seat]
        if buyer is not None and (row["status"], row["locked_by"]) != ("booked", buyer):
            wrong.append(f"{seat}: sold to {buyer}, the table says {row['status']}")
    board.tell(sale.row(seconds))
    for text in wrong[:10]:
        board.tell(f"  wrong: {text}")
    board.tell(
        f"no seat was held twice, {len(sale.oracle.sold)} were sold once" if not wrong
        else f"{len(wrong)} things are wrong"
    )  # fmt: skip
    return not wrong and sale.heard["acquired"] > 0


@contextlib.asynccontextmanager
async def _crowd(hall: Hall, sale: Sale, seats: Sequence[str], buyers: int) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(_buyer(hall, sale, seats, f"buyer_{number}"))
        for number in range(buyers)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def _buyer(hall: Hall, sale: Sale, seats: Sequence[str], name: str) -> None:
    streams = await asyncio.open_connection(hall.sidecar.host, hall.sidecar.port)
    client, dice, number = Client(*streams), random.Random(name), 0
    try:
        while True:
            number += 1
            # Everybody wants to sit in front.
            seat = seats[min(int(dice.expovariate(6 / len(seats))), len(seats) - 1)]
            await _try(client, sale, seat, name, f"{name}_{number}", dice)
    finally:
        client.close()


async def _try(
    client: Client, sale: Sale, seat: str, name: str, booking: str, dice: random.Random
) -> None:
    started = time.monotonic()
    (reply,) = await client.send(f"SEAT.ACQUIRE {EVENT} {seat} {name} {booking} rush")
    sale.times.append(time.monotonic() - started)
    told = _told(reply)
    sale.heard[told.get("outcome", "error")] += 1
    if told.get("outcome") not in ("acquired", "extended"):
        await asyncio.sleep(dice.uniform(0.01, 0.1))
        return
    token = told["token"]
    sale.oracle.granted(seat, name, token)
    await asyncio.sleep(dice.uniform(*THINKING))
    (end,) = dice.choices(ENDS, WEIGHTS)
    if end == "bought":
        (reply,) = await client.send(f"SEAT.CONFIRM {EVENT} {seat} {name} {token} {booking}")
        if _told(reply).get("outcome") == "confirmed":
            sale.oracle.confirmed(seat, name)
    sale.oracle.given_up(seat)
    if end == "returned":
        await client.send(f"SEAT.RELEASE {EVENT} {seat} {name} {token}")


def _told(reply: Any) -> dict[str, Any]:
    """Return a flat reply as fields; of an error none."""
    if not isinstance(reply, list):
        return {}
    return dict(zip(reply[::2], reply[1::2], strict=False))
