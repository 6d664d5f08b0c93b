"""What stateful commands need of the data plane: captured commands, units, silence, pauses."""

import pytest

from proxy import commands, errors, wire
from proxy.wire import rules
from tests.wire import model
from tests.wire.stage import Stage, keyspace, ruleset

GET = model.frame([b"GET", b"a"])
SET = model.frame([b"SET", b"a", b"1"])
PING = model.frame([b"PING"])
UNIT = model.frame([b"MULTI"]) + SET + GET + model.frame([b"EXEC"])
QUEUED = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n"


def test_a_captured_command_says_where_it_would_go() -> None:
    """While capture is on, a command becomes a Request with its place, and nothing is sent."""
    tagged = keyspace("seats", (b"seat:", rules.Segment("event", "text"), b":s"), hash_tag=1)
    stage = Stage(ruleset(keyspaces=[tagged]))
    client = stage.client()
    client.capture = True
    request = client.receive_data(model.frame([b"SET", b"seat:e1:s", b"1"]), 1.0)
    assert request is not None
    assert request.location is not None
    assert request.routed == model.frame([b"SET", b"seat:{e1}:s", b"1"])
    assert (request.location.cluster, request.location.slot) == (0, model.key_slot(b"e1"))
    assert request.arguments[1] == b"seat:e1:s"
    assert stage.upstreams[0].pending == 0
    client.answer(request, b"+QUEUED\r\n")
    assert client.data_to_send() == b"+QUEUED\r\n"


def test_a_refusal_spoils_what_is_captured() -> None:
    """A command that the data plane itself refuses while capture is on leaves a mark."""
    client = Stage().client()
    client.receive_data(model.frame([b"GET"]), 1.0)
    assert not client.spoiled
    client.capture = True
    assert client.receive_data(model.frame([b"MSETNX", b"a", b"1", b"b", b"2"]), 1.0) is None
    assert client.spoiled
    assert client.data_to_send().endswith(errors.CROSSSLOT)


def unit(stage: Stage) -> list[bytes]:
    client = stage.client()
    got: list[bytes] = []
    client.submit_unit(wire.Location(0, model.key_slot(b"a")), UNIT, 4, 1.0, got.append)
    return got


def test_a_unit_gives_its_last_reply() -> None:
    """Of MULTI, commands and EXEC, sent together, only the reply of EXEC is handed out."""
    stage = Stage()
    got = unit(stage)
    (node,) = stage.upstreams
    assert node.data_to_send(1.0) == UNIT
    for part in (b"+OK\r\n+QUE", b"UED\r\n+QUEUED\r\n", b"*2\r\n+OK\r\n$1\r\n1\r\n"):
        assert node.receive_data(part, 1.0) is None
    assert got == [b"*2\r\n+OK\r\n$1\r\n1\r\n"]
    assert (node.pending, node.fault) == (0, None)


@pytest.mark.parametrize(
    "replies",
    [
        b"+OK\r\n-MOVED 1 a:1\r\n+QUEUED\r\n-EXECABORT Transaction discarded\r\n",
        b"+OK\r\n-TRYAGAIN wait\r\n-MOVED 1 a:1\r\n-EXECABORT Transaction discarded\r\n",
        QUEUED + b"-ASK 1 a:1\r\n",
    ],
)
def test_a_unit_moves_as_a_whole(replies: bytes) -> None:
    """A redirect anywhere in a unit proves that nothing of it ran: all of it goes elsewhere."""
    stage = Stage()
    got = unit(stage)
    (node,) = stage.upstreams
    node.data_to_send(1.0)
    (orphan,) = node.receive_data(replies, 1.0) or []
    assert (got, node.pending) == ([], 0)
    orphan.resubmit(node, True)
    assert node.data_to_send(1.0) == model.frame([b"ASKING"]) + UNIT
    assert node.receive_data(b"+OK\r\n" + QUEUED + b"*0\r\n", 1.0) is None
    assert got == [b"*0\r\n"]


def test_a_refused_unit_names_the_cause() -> None:
    """Where a node refuses a part, the reply says why and not only that."""
    stage = Stage()
    got = unit(stage)
    (node,) = stage.upstreams
    node.data_to_send(1.0)
    node.receive_data(b"+OK\r\n-OOM no\r\n+QUEUED\r\n-EXECABORT Transaction discarded\r\n", 1.0)
    assert got == [b"-EXECABORT Transaction discarded because of: OOM no\r\n"]


def test_an_error_of_exec_may_follow_nothing() -> None:
    """An EXEC that a node refuses by itself is handed out as it is."""
    stage = Stage()
    got = unit(stage)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(QUEUED + b"-NOREPLICAS no\r\n", 1.0)
    assert got == [b"-NOREPLICAS no\r\n"]


def test_a_client_can_be_silent() -> None:
    """Silence drops replies of nodes, of handlers and of the data plane, each in its place."""
    stage = Stage()
    client = stage.client()
    client.silence = 1
    request = client.receive_data(GET + PING, 1.0)
    assert request is not None
    client.answer(request, b"+PONG\r\n")
    client.receive_data(model.frame([b"GET"]), 1.0)
    client.silence = 0
    client.receive_data(SET, 1.0)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"$1\r\n1\r\n+OK\r\n", 1.0)
    assert (client.data_to_send(), client.pending, client.output_bytes) == (b"+OK\r\n", 0, 0)


def test_one_reply_is_skipped() -> None:
    """With silence for one command the reply of the next is dropped, and no further one."""
    client = Stage().client()
    client.silence = 2
    client.receive_data(model.frame([b"GET"]) + model.frame([b"APPEND"]), 1.0)
    assert client.data_to_send() == errors.wrong_arity(b"append")
    assert client.silence == 0


def test_a_push_goes_between_replies() -> None:
    """A push leaves behind the replies that are ready and waits for none that is missing."""
    stage = Stage()
    client = stage.client()
    client.receive_data(GET + GET, 1.0)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"+1\r\n", 1.0)
    client.push(b">1\r\n+m\r\n")
    assert client.data_to_send() == b"+1\r\n>1\r\n+m\r\n"
    assert stage.batch.take_ready() == [client]


def test_one_at_a_time() -> None:
    """A serial client's next command is taken when the one before it is answered."""
    stage = Stage()
    client = stage.client()
    client.serial = True
    client.receive_data(SET + GET, 1.0)
    (node,) = stage.upstreams
    assert node.data_to_send(1.0) == SET
    assert client.blocked
    assert not client.resumable
    node.receive_data(b"+OK\r\n", 1.0)
    assert client.resumable
    client.receive_data(b"", 1.0)
    assert node.data_to_send(1.0) == GET


def test_a_pause_holds_writes_or_everything() -> None:
    """A pause lets through what it is not about, and what it holds goes on when it ends."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    stage.router.pause = rules.Pause.WRITE
    client.receive_data(GET + SET + GET, 1.0)
    assert node.data_to_send(1.0) == GET
    assert client.blocked
    stage.router.pause = rules.Pause.NEVER
    node.receive_data(b"$-1\r\n", 1.0)
    client.receive_data(b"", 1.0)
    assert node.data_to_send(1.0) == SET + GET
    stage.router.pause = rules.Pause.ALL
    other = stage.client()
    assert other.receive_data(PING, 1.0) is not None
    other.receive_data(GET, 1.0)
    assert node.data_to_send(1.0) == b""


def test_slow_commands_are_told() -> None:
    """Who is slower than the limit is told with its words, its client and its times."""
    stage = Stage()
    told: list[tuple[object, list[bytes], float, float, float]] = []
    stage.batch.on_seen = lambda owner, traces: told.extend(
        (owner, trace.words, trace.received, trace.sent, trace.replied) for trace in traces
    )
    client = stage.client()
    client.owner = "session"
    for limit in (float("inf"), 0.5):
        stage.batch.slow_after = limit
        client.receive_data(GET + SET, 1.0)
        stage.upstreams[0].data_to_send(1.1)
        stage.upstreams[0].receive_data(b"$-1\r\n", 1.2)
        stage.upstreams[0].receive_data(b"+OK\r\n", 1.7)
        assert told == []
        client.data_to_send()
    assert told == [("session", [b"SET", *SET.split()[4::2]], 1.0, 1.1, 1.7)]


def test_what_is_let_through_is_observed() -> None:
    """An observer sees every command that is judged right, and none that is refused."""
    stage = Stage()
    seen: list[bytes] = []
    stage.batch.observer = lambda owner, frame: seen.append(frame)
    client = stage.client()
    client.receive_data(GET + model.frame([b"GET"]) + PING, 1.0)
    assert seen == [GET, PING]


def test_figures_by_command() -> None:
    """Each command's replies are counted by the power of two of microseconds, failures apart."""
    latencies = wire.Latencies(1, len(commands.ROWS))
    batch = wire.Batch(lambda: None)
    node = wire.Upstream(batch, latencies, 0, 1.0)
    rules_ = ruleset()
    owners = Stage().owners
    router = wire.Router(rules_, wire.SlotMap([(True, owners)], [((node,), (node,))]))
    client = wire.Downstream(router, batch, 0)
    client.assume("default")
    client.receive_data(GET + GET, 1.0)
    node.data_to_send(1.0)
    node.receive_data(b"-ERR no\r\n+1\r\n", 1.0 + 3.5e-6)
    ((row, failed, seconds, buckets),) = latencies.commands()
    assert (commands.COMMANDS[row].name, failed, buckets.index(2)) == (b"get", 1, 2)
    assert seconds == pytest.approx(7e-6)
    latencies.forget_commands()
    assert latencies.commands() == []


def test_one_place_for_each_owner() -> None:
    """Every node that owns slots has one place, at the first of its slots."""
    stage = Stage(nodes=3)
    places = stage.router.slots.places(0)
    assert [stage.router.slots.owner(0, place.slot) for place in places] == [0, 1, 2]


def test_a_connection_of_ones_own() -> None:
    """A command on a connection of one's own gets its reply as it is, redirects too."""
    stage = Stage()
    (node,) = stage.upstreams
    got: list[bytes] = []
    node.submit(UNIT, 4, 1.0, 9.0, got.append)
    node.submit(GET, 1, 1.0, float("inf"), got.append)
    assert node.data_to_send(1.0) == UNIT + GET
    assert node.next_deadline() == 9.0
    assert node.receive_data(QUEUED + b"*-1\r\n-MOVED 1 a:1\r\n", 2.0) is None
    assert got == [b"*-1\r\n", b"-MOVED 1 a:1\r\n"]
