"""The node's end: who gets a reply, what is overdue, and what a lost connection leaves behind."""

import subprocess
import sys

import pytest

from proxy import wire
from proxy.commands import ROWS
from proxy.wire import rules
from tests.wire import model
from tests.wire.stage import TIMEOUT, Stage, keyspace, ruleset

# What a node has at least for a command that was sent late: nine tenths of the timeout.
PATIENCE = 0.9 * TIMEOUT

GET = model.frame([b"GET", b"b"])
INCR = model.frame([b"INCR", b"b"])


@pytest.mark.parametrize(
    ("line", "kind", "address", "slot"),
    [
        (b"-MOVED 3300 10.0.0.1:7000\r\n", "moved", "10.0.0.1:7000", 3300),
        (b"-MOVED 3300 :7000\r\n", "moved", ":7000", 3300),
        (b"-MOVED 3300 2001:db8::1:7000\r\n", "moved", "2001:db8::1:7000", 3300),
        (b"-MOVED 16384 a:1\r\n", "moved", "", -1),
        (b"-MOVED 03300000 a:1\r\n", "moved", "", -1),
        (b"-MOVED x a:1\r\n", "moved", "", -1),
        (b"-MOVED 3300 a:1 b:2\r\n", "moved", "", -1),
        (b"-ASK 1 a:1\r\n", "ask", "a:1", 1),
        (b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", "tryagain", "", -1),
        (b"-CLUSTERDOWN The cluster is down\r\n", "unavailable", "", -1),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "unavailable", "", -1),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "unavailable", "", -1),
        (b"-READONLY You can't write against a read only replica.\r\n", "readonly", "", -1),
    ],
)
def test_what_goes_elsewhere(line: bytes, kind: str, address: str, slot: int) -> None:
    """What proves that a command has not run becomes an orphan, and its client hears nothing."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    client.receive_data(GET, 1.0)
    node.data_to_send(1.0)
    (orphan,) = node.receive_data(line, 1.0) or []
    assert (orphan.kind, orphan.address, orphan.redirect_slot) == (kind, address, slot)
    assert (orphan.reply, orphan.slot, orphan.cluster) == (line, model.key_slot(b"b"), 0)
    assert (orphan.sent, orphan.repeatable, orphan.wanted, orphan.hops) == (True, True, True, 0)
    assert client.pending == 1
    assert client.data_to_send() == b""


def test_an_answer_before_the_question() -> None:
    """A reply while nothing has been sent is a fault, also where a command is about to be sent."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    client.receive_data(GET, 1.0)
    assert node.receive_data(b"+1\r\n", 1.0) is None
    assert node.fault is not None
    assert client.data_to_send() == b""
    assert [(orphan.kind, orphan.sent) for orphan in node.connection_lost()] == [("lost", False)]


def test_lost_commands_come_back_in_order() -> None:
    """A lost connection returns what was sent and what was not, but for clients that have gone."""
    stage = Stage()
    (node,) = stage.upstreams
    client, gone = stage.client(), stage.client()
    client.receive_data(INCR, 1.0)
    gone.receive_data(GET, 1.0)
    node.data_to_send(1.0)
    client.receive_data(GET, 1.0)
    gone.connection_lost()
    orphans = node.connection_lost()
    assert [(o.kind, o.sent, o.repeatable) for o in orphans] == [
        ("lost", True, False),
        ("lost", False, True),
    ]
    assert (node.pending, node.unsent_bytes, node.fault) == (0, 0, None)
    for orphan in reversed(orphans):
        orphan.resubmit(node, False)
    assert node.data_to_send(2.0) == GET + INCR
    node.receive_data(b"+get\r\n+incr\r\n", 2.0)
    assert client.data_to_send() == b"+incr\r\n+get\r\n"


def test_deadlines() -> None:
    """What is overdue is answered; a node is stuck that had its time for the oldest."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    assert node.next_deadline() == float("inf")
    client.receive_data(GET, 1.0)
    client.receive_data(GET, 1.5)
    assert node.next_deadline() == 1.0 + TIMEOUT
    node.data_to_send(1.5)
    assert node.expire(1.9) == (False, [])
    stuck, overdue = node.expire(2.0)
    assert (stuck, [orphan.kind for orphan in overdue]) == (False, ["overdue"])
    overdue[0].answer(b"-LATE\r\n", 2.0)
    assert node.next_deadline() == 1.5 + PATIENCE
    assert node.expire(2.3) == (False, [])
    assert node.expire(2.4) == (True, [])


def arriving(*times: float) -> tuple[wire.Upstream, wire.Downstream, wire.Downstream]:
    """Return a node that sends parts of a reply then, its client, and another one's behind it."""
    stage = Stage()
    (node,) = stage.upstreams
    first, second = stage.client(), stage.client()
    first.receive_data(GET, 1.0)
    second.receive_data(GET, 1.0)
    node.data_to_send(1.0)
    node.receive_data(b"$1000\r\n", times[0])
    for now in times[1:]:
        node.receive_data(b"x", now)
    return node, first, second


def test_a_reply_that_arrives_is_not_overdue() -> None:
    """While more of the oldest reply comes its client waits; who is behind it has its deadline."""
    node, first, second = arriving(1.5, 1.9)
    stuck, overdue = node.expire(2.0)
    assert (stuck, len(overdue)) == (False, 1)
    overdue[0].answer(b"-LATE\r\n", 2.0)
    assert second.data_to_send() == b"-LATE\r\n"
    assert node.next_deadline() == 1.9 + TIMEOUT
    node.receive_data(b"x" * 500, 2.8)
    assert node.next_deadline() == 2.8 + TIMEOUT
    assert node.expire(3.7) == (False, [])
    node.receive_data(b"x" * 499 + b"\r\n", 3.7)
    assert first.data_to_send() == b"$1000\r\n" + b"x" * 1000 + b"\r\n"
    # The node has its time for what it could not answer before.
    assert node.expire(3.7) == (False, [])
    node.receive_data(b"+late\r\n", 3.75)
    assert (node.pending, node.next_deadline()) == (0, float("inf"))
    assert first.data_to_send() == second.data_to_send() == b""


def test_a_large_reply_is_told_of_while_it_grows() -> None:
    """Whole ones are not, nor what is no more than one read; the callable hears what has come."""
    stage = Stage()
    (node,) = stage.upstreams
    told: list[tuple[wire.Upstream, int]] = []
    stage.batch.on_arriving = lambda upstream, size: told.append((upstream, size))
    client = stage.client()
    client.receive_data(GET * 3, 1.0)
    node.data_to_send(1.0)
    node.receive_data(b"$900000\r\n%b\r\n" % bytes(900_000), 1.0)
    node.receive_data(b"$900000\r\n" + bytes(250_000), 1.0)
    assert told == []
    node.receive_data(bytes(250_000), 1.0)
    assert told == [(node, 500_009)]
    node.receive_data(bytes(400_000) + b"\r\n$900000\r\n", 1.0)
    assert len(told) == 1
    assert node.begun_bytes == 9


@pytest.mark.parametrize("part", [b"$1000\r\nx", b"*2\r\n+1\r\n"])
def test_what_is_refused_is_an_orphan_of_its_own_kind(part: bytes) -> None:
    """The command whose reply arrives is the first of what the connection leaves unanswered."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    client.receive_data(GET + INCR, 1.0)
    node.data_to_send(1.0)
    node.receive_data(part, 1.0)
    node.refuse()
    assert node.pending == 1
    orphans = node.connection_lost()
    assert [(o.kind, o.sent) for o in orphans] == [("oversized", True), ("lost", True)]
    assert node.begun_bytes == 0
    for orphan in reversed(orphans):
        orphan.answer(b"-%b\r\n" % orphan.kind.encode(), 1.0)
    assert client.data_to_send() == b"-oversized\r\n-lost\r\n"


@pytest.mark.parametrize("part", [b"", b">2\r\n+x\r\n", b"$9\r\n"])
def test_what_answers_nobody_refuses_nobody(part: bytes) -> None:
    """A push, no reply at all, and one before its question are no command's."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    client.receive_data(GET, 1.0)
    if part[:1] != b"$":
        node.data_to_send(1.0)
    node.receive_data(part, 1.0)
    node.refuse()
    assert [orphan.kind for orphan in node.connection_lost()] == ["lost"]


def test_a_reply_of_which_no_more_comes_is_overdue() -> None:
    """A node that stops within a reply is stuck a timeout after its last byte."""
    node, _, second = arriving(1.5)
    second.connection_lost()
    assert node.expire(2.4) == (False, [])
    assert node.expire(2.5) == (True, [])
    assert len(node.connection_lost()) == 1
    assert node.next_deadline() == float("inf")


def test_a_node_that_trickles_is_stuck_in_the_end() -> None:
    """However steadily a reply comes, half a minute from when it was asked for it must be whole."""
    node, _, second = arriving(*(1.5 + number / 2 for number in range(59)))
    second.connection_lost()
    assert node.next_deadline() == 31.0
    assert node.expire(30.9) == (False, [])
    assert node.expire(31.0) == (True, [])


def test_a_look_up_does_not_wait_for_what_arrives() -> None:
    """Where PostgreSQL can answer too, a reply that is not whole in time is left to it."""
    duties = bytes(rules.Duty.ORIGIN * (row.keys.kind is not rules.KeyKind.NONE) for row in ROWS)
    stage = Stage(ruleset(keyspaces=(keyspace("b", [b"b"], duties=duties, detours=True),)))
    (node,) = stage.upstreams
    client = stage.client()
    assert client.receive_data(GET, 1.0) is None
    node.data_to_send(1.0)
    node.receive_data(b"$1000\r\n", 1.1)
    assert node.next_deadline() == 1.0 + wire.LOOKUP_SECONDS
    stuck, overdue = node.expire(1.2)
    assert (stuck, [orphan.detours for orphan in overdue]) == (False, [True])
    # Nobody waits in its place, and the node is not stuck for it.
    assert node.next_deadline() == 1.1 + TIMEOUT
    node.receive_data(b"x" * 1000 + b"\r\n", 2.0)
    assert (node.pending, client.data_to_send()) == (0, b"")


def test_what_nobody_waits_for_has_no_deadline() -> None:
    """Commands of clients that have gone bring up no deadline, but the oldest as the node's own."""
    stage = Stage()
    (node,) = stage.upstreams
    client, gone = stage.client(), stage.client()
    gone.receive_data(GET, 1.0)
    gone.connection_lost()
    assert node.next_deadline() == float("inf")
    client.receive_data(GET, 1.5)
    assert node.next_deadline() == 1.5 + TIMEOUT
    node.data_to_send(1.2)
    assert node.next_deadline() == 1.2 + PATIENCE


def test_a_receiver_may_end_the_connection() -> None:
    """A connection that is given up amid a batch of replies answers nothing behind that."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    left: list[wire.Orphan] = []
    location = wire.Location(0, model.key_slot(b"k"))
    client.receive_data(INCR, 1.0)
    client.submit(location, GET, 0, 1.0, lambda _: left.extend(node.connection_lost()))
    client.receive_data(INCR + GET, 1.0)
    node.data_to_send(1.0)
    assert node.receive_data(b"-MOVED 1 a:1\r\n$1", 1.0) is not None
    client.receive_data(b"", 1.0)
    assert node.receive_data(b"\r\n1\r\n:7\r\n$1\r\n", 1.0) is None
    assert [(orphan.kind, orphan.repeatable) for orphan in left] == [
        ("lost", False),
        ("lost", True),
    ]
    assert (node.pending, node.unsent_bytes, node.fault) == (0, 0, None)
    client.receive_data(b"", 1.0)
    for orphan in left:
        orphan.resubmit(node, False)
    assert node.data_to_send(1.0) == INCR + GET
    assert node.receive_data(b":8\r\n+get\r\n", 1.0) is None
    assert node.pending == 0


def test_what_was_refused_before_the_end_comes_first() -> None:
    """A connection that is given up amid a batch returns what the batch refused, in order."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    left: list[wire.Orphan] = []
    client.receive_data(INCR, 1.0)
    location = wire.Location(0, model.key_slot(b"k"))
    client.submit(location, GET, 0, 1.0, lambda _: left.extend(node.connection_lost()))
    client.receive_data(GET, 1.0)
    node.data_to_send(1.0)
    assert node.receive_data(b"-MOVED 1 a:1\r\n+get\r\n+get\r\n", 1.0) is None
    assert [orphan.kind for orphan in left] == ["moved", "lost"]
    assert left[0].ticket < left[1].ticket


def test_what_was_never_sent_is_taken_back() -> None:
    """Overdue commands that never left lose their bytes; those in time keep their order."""
    stage = Stage()
    (node,) = stage.upstreams
    early, late = stage.client(), stage.client()
    early.receive_data(model.frame([b"SET", b"b", b"1"]), 1.0)
    late.receive_data(GET, 1.5)
    early.receive_data(model.frame([b"SET", b"b", b"2"]), 1.0)
    late.receive_data(INCR, 1.5)
    stuck, overdue = node.expire(2.2)
    assert not stuck
    assert [(o.kind, o.sent) for o in overdue] == [("overdue", False)] * 2
    for orphan in overdue:
        orphan.answer(b"-TRYAGAIN\r\n", 2.2)
    assert node.data_to_send(2.2) == GET + INCR
    node.receive_data(b"+get\r\n:1\r\n", 2.3)
    assert early.data_to_send() == b"-TRYAGAIN\r\n" * 2
    assert late.data_to_send() == b"+get\r\n:1\r\n"
    assert (node.pending, node.fault) == (0, None)


def test_taking_back_behind_what_was_sent() -> None:
    """Bytes taken back from the end of a queue leave those before them as they were."""
    stage = Stage()
    (node,) = stage.upstreams
    first, second = stage.client(), stage.client()
    first.receive_data(GET, 2.0)
    assert node.data_to_send(2.0) == GET
    second.receive_data(INCR, 1.0)
    first.receive_data(INCR, 2.0)
    _, overdue = node.expire(2.5)
    assert len(overdue) == 1
    overdue[0].answer(b"-TRYAGAIN\r\n", 2.5)
    (moved,) = node.receive_data(b"-MOVED 1 a:1\r\n", 2.5) or []
    moved.resubmit(node, True)
    assert node.data_to_send(2.5) == INCR + b"*1\r\n$6\r\nASKING\r\n" + GET
    node.receive_data(b":1\r\n+OK\r\n+get\r\n", 2.5)
    assert first.data_to_send() == b"+get\r\n:1\r\n"


def test_a_parked_command_holds_its_client() -> None:
    """Until a command that was refused is answered, its client sends nothing more."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    client.receive_data(GET, 1.0)
    node.data_to_send(1.0)
    (orphan,) = node.receive_data(b"-TRYAGAIN\r\n", 1.0) or []
    orphan.park()
    orphan.park()
    client.receive_data(INCR, 1.0)
    assert client.blocked
    assert node.data_to_send(1.0) == b""
    orphan.resubmit(node, False)
    assert not client.resumable
    assert node.data_to_send(1.0) == GET
    node.receive_data(b"$-1\r\n", 1.0)
    assert client.resumable
    assert client in stage.batch.take_ready()
    client.receive_data(b"", 1.0)
    assert node.data_to_send(1.0) == INCR


def test_a_handler_that_fails_stops_nobody() -> None:
    """An exception in one part's receiver does not keep the next command from its reply."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    place = client.locate(b"b", 0)
    assert isinstance(place, wire.Location)

    def fail(reply: bytes) -> None:
        raise RuntimeError("seen")

    seen: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda event: seen.append(event.exc_value)
    try:
        client.submit(place, GET, 0, 1.0, fail)
        client.receive_data(GET, 1.0)
        node.data_to_send(1.0)
        node.receive_data(b"+1\r\n+2\r\n", 1.0)
    finally:
        sys.unraisablehook = hook
    assert client.data_to_send() == b"+2\r\n"
    assert [str(error) for error in seen] == ["seen"]


def test_a_full_queue_refuses() -> None:
    """A node under which too much waits refuses further commands at once."""
    stage = Stage()
    (node,) = stage.upstreams
    value = model.frame([b"SET", b"b", b"x" * (65 * 1024 * 1024)])
    clients = [stage.client() for _ in range(5)]
    for client in clients[:4]:
        client.receive_data(value, 1.0)
    assert node.overloaded
    clients[4].receive_data(GET, 1.0)
    assert clients[4].data_to_send().startswith(b"-TRYAGAIN")
    assert node.pending == 4
    for orphan in node.connection_lost():
        orphan.answer(b"-ERR\r\n", 1.0)


def test_a_long_queue_can_be_dropped() -> None:
    """A node's end that is thrown away with everything in its queue takes nobody down with it."""
    program = (
        "from tests.wire.stage import Stage\n"
        "from tests.wire import model\n"
        "stage = Stage()\n"
        "get = model.frame([b'GET', b'b'])\n"
        "clients = [stage.client() for _ in range(30_000)]\n"
        "for client in clients:\n"
        "    for _ in range(4): client.receive_data(get, 1.0)\n"
        "assert stage.upstreams[0].pending >= 100_000\n"
        "for client in clients: client.connection_lost()\n"
        "del client, clients, stage\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n")


@pytest.mark.parametrize(
    "end",
    [
        "for client in clients: client.connection_lost()",
        "for orphan in node.connection_lost(): orphan.answer(b'-ERR\\r\\n', 1.0); del orphan",
    ],
    ids=["clients leave", "all is answered"],
)
def test_a_long_queue_in_a_cycle_is_freed(end: str) -> None:
    """With its owner a node's end is a cycle; once nobody waits in it, all is freed."""
    program = (
        "import gc, weakref\n"
        "from tests.wire.stage import Stage\n"
        "from tests.wire import model\n"
        "class Owner: pass\n"
        "stage = Stage()\n"
        "node = stage.upstreams[0]\n"
        "node.owner = Owner()\n"
        "node.owner.upstream = node\n"
        "seen = weakref.ref(node.owner)\n"
        "get = model.frame([b'GET', b'b'])\n"
        "clients = [stage.client() for _ in range(30_000)]\n"
        "for client in clients:\n"
        "    for _ in range(4): client.receive_data(get, 1.0)\n"
        "assert node.pending >= 100_000\n"
        f"{end}\n"
        "del client, clients, stage, node\n"
        "gc.collect()\n"
        "print('leaked' if seen() else 'freed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "freed\n")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", "tryagain"),
        (b"-TRYAGAIN later\r\n", None),
        (b"-READONLY You can't write against a read only replica.\r\n", "readonly"),
        (b"-READONLY You can't write against a read only replica. script: x, on @y:1.\r\n", None),
        (b"-LOADING Valkey is loading the dataset in memory\r\n", "unavailable"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "unavailable"),
        (b"-MASTERDOWN\r\n", None),
        (b"-MOVED 15495 h:1\r\n", "moved"),
        (b"-ASK 15495 h:1\r\n", "ask"),
        (b"-MOVED 15494 h:1\r\n", None),
        (b"-MOVED here\r\n", None),
    ],
)
def test_a_command_that_quotes_is_redirected_by_exact_words(line: bytes, kind: str | None) -> None:
    """What a script says itself is its reply; what only the node says sends it elsewhere."""
    stage = Stage()
    client = stage.client()
    replies: list[bytes] = []
    row = stage.router.ruleset.find_command(b"eval")
    before = client.sent
    place = wire.Location(0, model.key_slot(b"a"))
    client.submit(place, model.frame([b"EVAL"]), row, 0.0, replies.append, quotes=True)
    assert client.sent == before + 1
    stage.upstreams[0].data_to_send(0.0)
    orphans = stage.upstreams[0].receive_data(line, 0.0) or []
    assert [orphan.kind for orphan in orphans] == ([kind] if kind else [])
    assert replies == ([] if kind else [line])
