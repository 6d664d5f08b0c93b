"""Operations on locks by name: what `SEAT.ACQUIRE` and its kin do.

A script of the policies that says `lock: acquire` (or another operation of `_OPERATIONS`) is a
command of that meaning; `offered` gives it here, its keys judged and its arguments by name. Which
arguments an operation reads is said beside it. Replies are maps, flat for RESP2: `outcome` first.

Always true: several locks are taken, kept and confirmed all or none; whoever is told of a token can
prove by it, to PostgreSQL, that no later grant was made.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from proxy import errors, resp, wire
from proxy.handlers import Session
from proxy.handlers.claims import Claim, Hold, Taken
from proxy.handlers.connection import integer
from proxy.handlers.grants import Grants, scope_of
from proxy.handlers.held import forget
from proxy.handlers.locks import answered, note, unnamed
from proxy.handlers.owners import text_of, value_for
from proxy.handlers.targets import misspelled, target_of
from proxy.handlers.terms import LONGEST, MOST, bounded, oversized
from proxy.origin.batching import segments_of
from proxy.plans import Plan, plans_in

# Arguments that are numbers.
_NUMBERS = ("token", "seconds")


class Order(NamedTuple):
    """What a client wants done."""

    session: Session
    ruleset: wire.Ruleset  # that judged it
    grants: Grants
    plan: Plan
    keys: Sequence[bytes]  # of the locks, as clients name them
    values: Mapping[str, str]  # the arguments by name
    more: Sequence[str]  # and those that have none

    def value(self, name: str) -> str | None:
        return self.values.get(name) or None

    @property
    def owner(self) -> str:
        return self.values["owner"]

    @property
    def holds(self) -> list[Hold]:
        """The locks with their tokens: further words are pairs of both."""
        tokens = [self.values["token"], *self.more[1::2]]
        return [Hold(key, self.owner, int(token))
                for key, token in zip(self.keys, tokens, strict=True)]  # fmt: skip

    def reply(self, **fields: object) -> bytes:
        pairs = [(resp.bulk(name.encode()), _encoded(value)) for name, value in fields.items()]
        return resp.mapping(pairs, self.session.protocol)


def named(
    session: Session,
    request: wire.Request,
    operation: str,
    keys: Sequence[bytes],
    values: Mapping[str, bytes],
    more: Sequence[bytes] = (),
) -> bytes | Awaitable[bytes]:
    """Answer an operation on the lock of the first key; `more` names further ones beside it.

    Of `mine` there is no lock yet: the keyspace is the one whose locks are counted by owner.
    """
    grants = session.server.grants
    if grants is None:
        return errors.ORIGIN_DOWN
    plan = _plan(request.ruleset, keys[0])
    if plan is None:
        return errors.DEGRADED
    texts = _texts(request, operation, values, more)
    if isinstance(texts, bytes):
        return texts
    locks = _locks(session, request, plan, operation, keys[0], more)
    if isinstance(locks, bytes):
        return locks
    others = [word.decode() for word in more]
    order = Order(session, request.ruleset, grants, plan, locks, texts, others)
    if operation in _TELLING and (line := _oversized(order)) is not None:
        return line
    if operation == "acquire" and len(locks) == 1:
        refused = grants.refused(plan, locks[0], order.owner)
        if refused is not None:
            return _told(order, refused)
    return answered(_OPERATIONS[operation](order))


def _texts(
    request: wire.Request, operation: str, values: Mapping[str, bytes], more: Sequence[bytes]
) -> dict[str, str] | bytes:
    """Return the arguments as text, or the line of what is none, or no number."""
    try:
        texts = {name: value.decode() for name, value in values.items()}
        words = [*texts.values(), *(word.decode() for word in more)]
    except UnicodeDecodeError:
        return errors.NOT_TEXT
    if any("\0" in word for word in words) or text_of(texts.get("owner", "x")) is None:
        return errors.NOT_TEXT
    if operation == "confirm" and not texts["booking"]:
        # What is sold to nobody's booking could not be told from what is sold to another's.
        return errors.NOT_TEXT
    if any(integer(values[name]) is None for name in _NUMBERS if name in values):
        return errors.NOT_AN_INTEGER
    if "seconds" in values and not 0 < int(values["seconds"]) <= LONGEST:
        return errors.invalid_expire(request.name.decode())
    return texts


def _locks(
    session: Session, request: wire.Request, plan: Plan, operation: str, key: bytes,
    more: Sequence[bytes],
) -> list[bytes] | bytes:  # fmt: skip
    """Return the keys of all locks that are meant, none twice, or the line of what names none."""
    locks = [key]
    if operation in _SEVERAL:
        names, rest = (more[::2], more[1::2]) if operation in _PROVEN else (more, ())
        if any(integer(word) is None for word in rest):
            return errors.NOT_AN_INTEGER
        if request.ruleset.find_keyspace(key) != plan.keyspace:
            return errors.key_refused(plan.name, "it is no name of a lock")
        if len(names) >= MOST:
            return errors.TOO_MANY_LOCKS
        locks = list(dict.fromkeys([key, *(_beside(plan, key, name) for name in names)]))
        if operation in _PROVEN and (len(names) != len(rest) or len(locks) <= len(names)):
            return errors.SYNTAX
        if any(request.ruleset.find_keyspace(each) != plan.keyspace for each in locks):
            return errors.key_refused(plan.name, "it is no name of a lock")
        # The first has been judged with the command.
        for each in locks[1:]:
            if isinstance(place := session.downstream.locate(each, request.row), bytes):
                return place
    found = [target for each in locks if (target := target_of(request.ruleset, each)) is not None]
    if (line := misspelled(found) or unnamed(found)) is not None:
        return line
    if len(locks) > 1 and len({scope_of(plan, each) for each in locks}) > 1:
        return errors.lock_refused(plan.name, "scopes")
    return locks


def _oversized(order: Order) -> bytes | None:
    """Return the error line for what is more than the value of a lock may be.

    That is an argument, as of any command, and what the lock would show.
    """
    assert order.plan.locking is not None
    booking, session = order.value("booking"), order.value("session")
    shown = value_for(order.plan.locking.owner, order.owner, booking, session, 0.0)
    sizes = (len(text.encode()) for text in (shown, *order.values.values()))
    return oversized(order.ruleset, order.plan, max(sizes))


def _plan(ruleset: wire.Ruleset, key: bytes) -> Plan | None:
    plans = plans_in(ruleset).by_keyspace
    plan = plans.get(ruleset.find_keyspace(key))
    if plan is not None and plan.locking is not None:
        return plan
    locks = [(each, each.locking) for each in plans.values() if each.locking is not None]
    # That which is limited comes first; policies have one such.
    return max(locks, key=lambda pair: pair[1].most > 0, default=(None,))[0]


def _beside(plan: Plan, key: bytes, name: bytes) -> bytes:
    """Return the key of another lock, which differs in the last segment alone."""
    segments, end = [*segments_of(plan, key).values()], plan.pattern[-1]
    if not segments:
        return name
    end = end if isinstance(end, bytes) else b""
    return key[: -len(segments[-1].encode() + end)] + name + end


async def _acquire(order: Order) -> bytes:
    """`owner` takes locks for `seconds`, or as long as the policy says; `booking`, `session`."""
    claim = Claim(order.owner, _seconds(order), order.value("booking"), order.value("session"))
    taken = await order.grants.take(order.plan, order.keys, claim)
    await note(order.session, order.grants, order.plan, order.keys, claim, taken)
    return _told(order, taken)


async def _extend(order: Order) -> bytes:
    """`owner` keeps locks for `seconds` from now, at most as long as the policy says."""
    claim = Claim(order.owner, _seconds(order))
    return _told(order, await order.grants.extend(order.plan, order.keys, claim))


def _told(order: Order, taken: Taken) -> bytes:
    if taken.granted:
        tokens = list(taken.tokens)
        left = _ms(min(taken.lefts))
        if len(tokens) == 1:
            return order.reply(outcome=taken.outcome, token=tokens[0], expires_in_ms=left)
        return order.reply(outcome=taken.outcome, tokens=tokens, expires_in_ms=left)
    if taken.outcome in ("held", "queue"):
        return order.reply(outcome=taken.outcome, expires_in_ms=_ms(taken.lefts[0]))
    if taken.outcome == "limit":
        return order.reply(outcome="limit", held=taken.has)
    return order.reply(outcome=taken.outcome)


async def _release(order: Order) -> bytes:
    """`owner` gives up a lock that was granted with `token`, and others by theirs.

    What is not held so is left alone, whatever becomes of the others.
    """
    released = await order.grants.release(order.plan, order.holds)
    for key, done in zip(order.keys, released, strict=True):
        if done:
            forget(order.session, key)
    outcome = "released" if all(released) else "lost"
    if len(released) == 1:
        return order.reply(outcome=outcome)
    return order.reply(outcome=outcome, released=sum(released))


async def _confirm(order: Order) -> bytes:
    """`owner` makes a lock with `token`, and others with theirs, a sale for `booking`."""
    outcome = await order.grants.confirm(order.plan, order.holds, order.values["booking"])
    if outcome == "confirmed":
        for key in order.keys:
            forget(order.session, key)
    return order.reply(outcome=outcome)


async def _status(order: Order) -> bytes:
    """Tell anybody what becomes of a lock."""
    row = await order.grants.row(order.plan, order.keys[0])
    if row is None:
        # A table of the application has the rows that it has; of others one is made by a grant.
        own = order.plan.locking is not None and order.plan.locking.table is None
        return order.reply(outcome="available" if own else "missing")
    if row.status != "locked" or row.left <= 0:
        status = "available" if row.status == "locked" else row.status
        return order.reply(outcome=status)
    owner = {} if row.owner is None else {"owner": row.owner}
    return order.reply(outcome="locked", **owner, token=row.token, expires_in_ms=_ms(row.left))


async def _queue(order: Order) -> bytes:
    """`owner` joins the queue, or shows that it still waits; further words: leave."""
    leaving = [word.lower() for word in order.more] == ["leave"]
    if order.more and not leaving:
        return errors.SYNTAX
    if not order.plan.locking or not order.plan.locking.heartbeat:
        return errors.lock_refused(order.plan.name, "queue")
    waiting = await order.grants.queue(order.plan, order.keys[0], order.owner, leaving=leaving)
    if waiting.outcome not in ("waiting", "offered"):
        return order.reply(outcome=waiting.outcome)
    return order.reply(
        outcome=waiting.outcome, position=waiting.place, wait_ms=_ms(waiting.waits),
        offered_ms=_ms(waiting.offered),
    )  # fmt: skip


async def _mine(order: Order) -> bytes:
    """Tell which locks `owner` holds: name, token, milliseconds each.

    Where locks are counted they are those within the other argument, named by their last segment;
    elsewhere all, named by their keys.
    """
    scope = next((text for name, text in order.values.items() if name != "owner"), "")
    held = await order.grants.mine(order.plan, order.owner, scope)
    return resp.array(
        [
            resp.array([resp.bulk(_told_as(order.plan, each.columns)), resp.integer(each.token),
                        resp.integer(_ms(each.left))])
            for each in held
        ]
    )  # fmt: skip


def _told_as(plan: Plan, columns: Sequence[str]) -> bytes:
    """Return the name of a lock by the columns that pick its row."""
    assert plan.locking is not None
    if plan.locking.table is None:
        key = columns[0].encode()
    else:
        values = iter(columns)
        parts = (part if isinstance(part, bytes) else next(values).encode()
                 for part in plan.pattern)  # fmt: skip
        key = b"".join(parts)
    try:
        return [*segments_of(plan, key).values()][-1].encode() if plan.locking.most else key
    except ValueError:
        # Taken while the keyspace had another pattern.
        return key


def _seconds(order: Order) -> float:
    """Return how long a lock is wanted, at most and at least what the policy says."""
    wanted = order.values.get("seconds")
    seconds = order.plan.ttl_ms / 1000 if wanted is None else float(wanted)
    return bounded(order.ruleset, order.plan, seconds)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _encoded(value: object) -> bytes:
    if isinstance(value, list):
        return resp.array([resp.integer(number) for number in value])
    return resp.integer(value) if isinstance(value, int) else resp.bulk(str(value).encode())


_OPERATIONS: Mapping[str, Callable[[Order], Awaitable[bytes]]] = {
    "acquire": _acquire,
    "extend": _extend,
    "release": _release,
    "confirm": _confirm,
    "status": _status,
    "queue": _queue,
    "mine": _mine,
}

# Those that take names of further locks, and those that want a token behind each, no lock twice.
_SEVERAL = frozenset(("acquire", "extend", "release", "confirm"))
_PROVEN = frozenset(("release", "confirm"))

# Those whose arguments stay in the row of a lock.
_TELLING = frozenset(("acquire", "confirm"))
