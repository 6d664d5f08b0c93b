"""One socket to one node: handshake, order, deadlines, and what becomes of it when it is lost."""

import asyncio
import contextlib
import ssl
from array import array
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from proxy import wire
from proxy.upstream.connection import (
    FIRST_PAUSE,
    Endpoint,
    Flusher,
    Greeting,
    Loss,
    UpstreamConnection,
)
from tests.fakenode import Answer, FakeConnection, FakeNode
from tests.integration.rig import wait_for
from tests.quiet import Stopwatch
from tests.upstream.stand import Client, data_of, ruleset, secret

pytestmark = pytest.mark.integration

NODE_ID = "f" * 40

SILENCE = Answer(b"", 60.0)  # nothing, and nothing behind it either


class Owner:
    """Writes down what a connection says, and resubmits what it lost when it is asked to."""

    def __init__(self) -> None:
        self.ups = 0
        self.losses: list[Loss] = []
        self.orphans: list[wire.Orphan] = []

    def connected(self, connection: UpstreamConnection) -> None:
        self.ups += 1

    def disconnected(self, connection: UpstreamConnection, loss: Loss) -> None:
        self.losses.append(loss)

    def orphaned(self, connection: UpstreamConnection, orphans: list[wire.Orphan]) -> None:
        self.orphans += orphans


class Link:
    """A connection with all that it needs, and a client whose every key lives behind it."""

    def __init__(self, port: int, protocol: int = 2, **fields: Any) -> None:
        settings = {
            "host": "127.0.0.1", "port": port, "username": None, "password": None, "tls": None,
            "server_name": None, "node_id": None, "timeout": 0.3,
        }  # fmt: skip
        endpoint = Endpoint(**(settings | fields))
        self.owner = Owner()
        self.flusher = Flusher(asyncio.get_running_loop())
        self.upstream = wire.Upstream(self.flusher.batch, wire.Latencies(1), 0, endpoint.timeout)
        self.connection = UpstreamConnection(endpoint, protocol, 0, self.upstream, self.owner)
        slots = wire.SlotMap([(False, array("h", [0]))], [[(self.upstream,), (self.upstream,)]])
        self.router = wire.Router(ruleset(), slots)
        self.client = self.another()

    def another(self) -> Client:
        return Client(self.router, self.flusher.batch, self.connection.protocol)

    async def opened(self) -> "Link":
        self.connection.open()
        await wait_for(lambda: self.connection.ready, "the handshake")
        return self


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode(identity=NODE_ID, answers={"CLUSTER": b"$40\r\n%b\r\n" % NODE_ID.encode()})
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def other() -> AsyncIterator[FakeNode]:
    node = FakeNode()
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def links() -> AsyncIterator[list[Link]]:
    """Links that end with the test."""
    made: list[Link] = []
    yield made
    for link in made:
        link.connection.stop()


NAME = [b"CLIENT", b"SETNAME", b"sidecache"]


@pytest.mark.parametrize(
    ("protocol", "username", "password", "node_id", "wanted"),
    [
        (2, None, None, None, [NAME, [b"PING"]]),
        (2, None, "pw", None, [[b"AUTH", b"pw"], NAME, [b"PING"]]),
        (2, "app", "pw", NODE_ID, [[b"AUTH", b"app", b"pw"], NAME, [b"CLUSTER", b"MYID"]]),
        (3, None, None, None, [[b"HELLO", b"3"], NAME, [b"PING"]]),
        (3, None, "pw", NODE_ID,
         [[b"HELLO", b"3", b"AUTH", b"default", b"pw"], NAME, [b"CLUSTER", b"MYID"]]),
        (3, "app", "pw", None, [[b"HELLO", b"3", b"AUTH", b"app", b"pw"], NAME, [b"PING"]]),
    ],
)  # fmt: skip
async def test_the_handshake(
    node: FakeNode,
    links: list[Link],
    protocol: int,
    username: str | None,
    password: str | None,
    node_id: str | None,
    wanted: list[list[bytes]],
) -> None:
    """Identity, protocol, our name and the node's own id come before the first command."""
    link = Link(node.port, protocol, username=username, password=secret(password), node_id=node_id)
    links.append(link)
    link.client.send((b"SET", b"k", b"v"), (b"GET", b"k"))
    assert await link.client.take(2) == [b"OK", b"v"]
    assert node.commands == [*wanted, [b"SET", b"k", b"v"], [b"GET", b"k"]]
    assert (link.owner.ups, link.owner.losses) == (1, [])


@pytest.mark.parametrize(
    ("name", "answer", "kind"),
    [
        ("CLUSTER", b"$40\r\n" + b"e" * 40 + b"\r\n", "protocol"),
        ("CLUSTER", b":40\r\n", "protocol"),
        ("CLUSTER", b"-NOPERM no\r\n", "authentication"),
        ("HELLO", b"-WRONGPASS invalid\r\n", "authentication"),
        ("HELLO", b"-LOADING Redis is loading\r\n", "refused"),
        ("HELLO", b"HTTP/1.1 400\r\n", "protocol"),
        ("CLUSTER", b"$40\r\n%b\r\n+more\r\n" % NODE_ID.encode(), "protocol"),
        ("CLUSTER", b"", "timeout"),
        ("HELLO", b"$100000\r\n" + b"x" * 70_000, "protocol"),
    ],
    ids=lambda value: repr(value)[:24],
)
async def test_a_wrong_answer_to_the_handshake(
    node: FakeNode, links: list[Link], name: str, answer: bytes, kind: str
) -> None:
    """Nothing of a client is told to a node that is not the right one or does not want us."""
    node.answers[name] = answer
    link = Link(node.port, 3, node_id=NODE_ID, timeout=0.1)
    links.append(link)
    link.client.send((b"SET", b"k", b"secret"))
    await wait_for(lambda: link.owner.losses, "the loss")
    assert link.owner.losses[0].kind == kind
    assert not link.upstream.available
    (orphan,) = link.owner.orphans
    assert (orphan.kind, orphan.sent) == ("lost" if kind != "timeout" else orphan.kind, False)
    assert not any(data_of(connection) for connection in node.connections)


async def test_a_refusal_is_retried_at_a_growing_pace(node: FakeNode, links: list[Link]) -> None:
    """A node that accepts and then refuses the password is asked as if it were not there."""
    node.answers["AUTH"] = b"-WRONGPASS invalid username-password pair\r\n"
    link = Link(node.port, password=secret("wrong"))
    links.append(link)
    watch = Stopwatch()
    link.connection.open()
    await wait_for(lambda: len(node.connections) == 4, "the fourth attempt")
    assert watch.elapsed >= 7 * FIRST_PAUSE
    assert watch.spent <= 0.8
    assert len(link.owner.losses) in (3, 4)
    node.answers.clear()
    await wait_for(lambda: link.connection.ready, "the handshake")


async def test_a_node_that_closes_right_after_the_handshake_is_paced(
    node: FakeNode, links: list[Link]
) -> None:
    """A connection that never lives is not opened again at once for ever."""
    node.answers["PING"] = Answer(b"+PONG\r\n", close="finish")
    link = Link(node.port)
    links.append(link)
    start = asyncio.get_running_loop().time()
    link.connection.open()
    await wait_for(lambda: len(node.connections) == 4, "the fourth attempt")
    assert asyncio.get_running_loop().time() - start >= 7 * FIRST_PAUSE


async def test_nobody_there(node: FakeNode, links: list[Link]) -> None:
    """Attempts are told once each and paced; queued commands do not hasten them."""
    await node.stop()
    link = Link(node.port)
    links.append(link)
    link.client.send((b"GET", b"k"))
    await wait_for(lambda: link.owner.losses, "the loss")
    assert link.owner.losses == [Loss("refused", link.owner.losses[0].text)]
    link.owner.orphans[0].answer(b"+gone\r\n", 0.0)
    assert await link.client.take(1) == [b"gone"]
    assert str(await link.client.ask(b"GET", b"k")).startswith("CLUSTERDOWN")
    for _ in range(100):
        link.connection.flush(0.0)
    assert link.connection._line is None
    await wait_for(lambda: len(link.owner.losses) == 3, "two more attempts")
    assert [loss.kind for loss in link.owner.losses] == ["refused"] * 3
    await node.start()
    await wait_for(lambda: link.connection.ready, "the node")
    assert await link.client.ask(b"SET", b"k", b"v") == b"OK"


@pytest.mark.parametrize("lie", [b"$1\r\na\r\n$1\r\nb\r\n", b"$+1\r\na\r\n", b"*2\r\n:1\r\n!\r\n"])
async def test_a_connection_in_doubt_is_never_used_again(
    node: FakeNode, links: list[Link], lie: bytes
) -> None:
    """A reply that nobody asked for, or that is none, closes; the next command is right again."""
    link = await Link(node.port).opened()
    links.append(link)
    node.answers["GET"] = lie
    link.client.send((b"GET", b"k"))
    await wait_for(lambda: link.owner.losses, "the loss")
    assert link.owner.losses[0].kind == "protocol"
    node.answers.clear()
    await wait_for(lambda: link.connection.ready, "the next connection")
    assert len(node.connections) == 2
    assert await link.another().ask(b"SET", b"k", b"v") == b"OK"


async def test_a_silent_node_is_given_up_at_the_deadline(node: FakeNode, links: list[Link]) -> None:
    """The connection closes when its oldest command is overdue, and what it owes is orphaned."""
    link = await Link(node.port, timeout=0.1).opened()
    links.append(link)
    node.answers["GET"] = SILENCE
    watch = Stopwatch()
    link.client.send((b"GET", b"a"), (b"SET", b"b", b"v"))
    await wait_for(lambda: link.owner.losses, "the loss")
    assert watch.elapsed >= 0.099
    assert watch.spent <= 0.15
    assert link.owner.losses[0].kind == "timeout"
    assert [(o.kind, o.sent, o.repeatable) for o in link.owner.orphans] == [
        ("lost", True, True), ("lost", True, False),
    ]  # fmt: skip
    await wait_for(lambda: link.connection.ready, "the next connection")


async def test_a_large_reply_may_come_slowly(node: FakeNode, links: list[Link]) -> None:
    """A value takes longer than the deadline as long as it comes; others' commands are served."""
    link = await Link(node.port, timeout=0.5).opened()
    links.append(link)
    part = b"x" * 100_000

    def slowly(connection: FakeConnection, words: list[bytes]) -> Answer:
        connection.put(b"$800000\r\n")
        for _ in range(8):
            connection.put(Answer(part, 0.1))
        return Answer(b"\r\n")

    node.answers["GET"] = slowly
    watch = Stopwatch()
    link.client.send((b"GET", b"large"))
    await wait_for(lambda: link.upstream.pending and watch.elapsed > 0.6, "most of it")
    another = link.another()
    another.send((b"SET", b"k", b"v"))
    assert await link.client.take(1) == [part * 8]
    assert watch.elapsed >= 0.799
    assert await another.take(1) == [b"OK"]
    assert (link.owner.losses, link.owner.orphans) == ([], [])


async def test_what_is_overdue_behind_others_keeps_its_place(
    node: FakeNode, other: FakeNode, links: list[Link]
) -> None:
    """A resubmitted command is held to its old deadline, and its late reply goes to nobody."""
    other.answers["GET"] = b"-MOVED 1 127.0.0.1:1\r\n"
    first = await Link(other.port, timeout=0.1).opened()
    second = await Link(node.port, timeout=1.0).opened()
    links += [first, second]
    node.answers["GET"] = lambda c, words: Answer(
        b"$1\r\n%b\r\n" % words[1], 0.25 if words[1] == b"1" else 0.0
    )
    second.client.send((b"GET", b"1"), (b"GET", b"2"), (b"GET", b"3"))
    first.client.send((b"GET", b"x"))
    await wait_for(lambda: first.owner.orphans, "the redirect")
    second.connection.resubmit(first.owner.orphans[0], False)
    second.another().send((b"GET", b"4"))
    last = second.another()
    last.send((b"GET", b"5"))
    await wait_for(lambda: second.owner.orphans, "the overdue command")
    (overdue,) = second.owner.orphans
    assert overdue.kind == "overdue"
    overdue.answer(b"-LATE\r\n", 0.0)
    assert str(*await first.client.take(1)) == "LATE"
    assert await second.client.take(3) == [b"1", b"2", b"3"]
    assert await last.take(1) == [b"5"]
    assert second.owner.losses == []


class Recorder(asyncio.Transport):
    """A transport that only writes down."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


async def greeted(link: Link) -> Recorder:
    transport = Recorder()
    link.connection.opened(transport)
    link.connection.receive(memoryview(b"+OK\r\n+PONG\r\n"))
    transport.writes.clear()
    return transport


async def test_one_write_for_one_turn_of_the_loop(links: list[Link]) -> None:
    """What many clients say in one turn of the loop leaves in one write, in their order."""
    link = Link(1)
    links.append(link)
    transport = await greeted(link)
    clients = [link.another() for _ in range(50)]
    for number, client in enumerate(clients):
        client.send((b"GET", b"%d" % number), (b"GET", b"x"))
    assert transport.writes == []
    await asyncio.sleep(0)
    (data,) = transport.writes
    assert data.count(b"GET") == 100
    assert [data.index(b"\r\n%d\r\n*2" % n) for n in range(50)] == sorted(
        data.index(b"\r\n%d\r\n*2" % n) for n in range(50)
    )


async def test_what_meets_a_closing_socket_was_not_sent(links: list[Link]) -> None:
    """A write behind the node's goodbye did not happen, so it may be sent again."""
    link = Link(1)
    links.append(link)
    transport = await greeted(link)
    transport.closing = True
    link.client.send((b"INCR", b"k"))
    await asyncio.sleep(0)
    assert transport.writes == []
    link.connection.lost(Loss("reset", ""))
    assert [(orphan.kind, orphan.sent) for orphan in link.owner.orphans] == [("lost", False)]


async def test_late_news_of_an_old_socket_reaches_nobody(node: FakeNode, links: list[Link]) -> None:
    """The loop's last words about a socket that was given up do not harm its successor."""
    link = await Link(node.port).opened()
    links.append(link)
    old = link.connection._line
    assert old is not None
    link.connection.abort(Loss("protocol", "doubt"))
    await wait_for(lambda: link.connection.ready, "the next connection")
    old.connection_lost(None)
    old.connection_lost(ConnectionResetError())
    old.buffer_updated(3)
    stray = Recorder()
    old.connection_made(stray)
    assert stray.closing
    assert link.connection.ready
    assert link.owner.losses == [Loss("protocol", "doubt")]
    assert await link.client.ask(b"SET", b"k", b"v") == b"OK"


async def test_each_failure_is_told_once(node: FakeNode, links: list[Link]) -> None:
    """A socket that opens and is reset in the same breath counts as one failed attempt."""
    node.greeting = Answer(b"", close="reset")
    link = Link(node.port)
    links.append(link)
    link.connection.open()
    await wait_for(lambda: len(node.connections) == 3, "the third attempt")
    assert len(link.owner.losses) in (2, 3)


async def test_a_retired_connection_is_answered_and_closed(
    node: FakeNode, links: list[Link]
) -> None:
    """What a leaving node was sent counts; then the connection closes and stays closed."""
    link = await Link(node.port).opened()
    links.append(link)
    node.answers["GET"] = Answer(b"$1\r\nv\r\n", 0.05)
    link.client.send((b"GET", b"a"), (b"INCR", b"n"))
    link.connection.retire()
    assert not link.upstream.available
    assert await link.client.take(2) == [b"v", 1]
    await wait_for(lambda: not node.connections[0].open, "the end")
    assert not link.connection.ready
    link.connection.open()
    assert link.connection._line is None
    assert (link.owner.orphans, link.owner.losses) == ([], [])


async def test_a_retired_connection_keeps_its_deadline(node: FakeNode, links: list[Link]) -> None:
    """A leaving node that does not answer is waited for no longer than any other."""
    link = await Link(node.port, timeout=0.1).opened()
    links.append(link)
    node.answers["GET"] = SILENCE
    link.client.send((b"GET", b"a"))
    link.connection.retire()
    await wait_for(lambda: link.owner.orphans, "the orphan", 0.3)
    await wait_for(lambda: not node.connections[0].open, "the end")
    assert link.owner.losses == []


@pytest.mark.parametrize("when", ["never opened", "opening", "greeting", "ready", "waiting"])
async def test_stop_leaves_nothing_behind(node: FakeNode, links: list[Link], when: str) -> None:
    """At whatever moment it is stopped, it answers, closes and has no timer or task left."""
    link = Link(node.port)
    links.append(link)
    if when == "waiting":
        await node.stop()
        link.connection.open()
        await wait_for(lambda: link.owner.losses, "the loss")
    elif when != "never opened":
        node.answers["GET"] = SILENCE
        if when == "greeting":
            node.answers["PING"] = b""
        link.client.send((b"GET", b"k"))
        await asyncio.sleep(0)
        if when != "opening":
            await wait_for(lambda: node.commands, "the handshake")
        if when == "ready":
            await wait_for(lambda: node.received("GET"), "the command")
    link.connection.stop()
    connection = link.connection
    assert (connection._line, connection._transport, connection._opening) == (None, None, None)
    assert (connection._retry, connection._deadline, connection._greet_by) == (None, None, None)
    assert len(link.owner.orphans) == (when not in ("never opened", "waiting"))
    await wait_for(lambda: not any(c.open for c in node.connections), "the end")
    connection.flush(0.0)
    assert connection._line is None


async def test_an_idle_connection_that_is_closed_opens_again(
    node: FakeNode, links: list[Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that closes idle clients finds us back before anybody has to wait."""
    monkeypatch.setattr("proxy.upstream.connection.STEADY", 0.0)
    link = await Link(node.port).opened()
    links.append(link)
    node.connections[0].close()
    await wait_for(lambda: link.owner.ups == 2, "the next connection", 1.0)
    assert [loss.kind for loss in link.owner.losses] == ["reset"]
    assert link.upstream.available


def test_the_greeting_is_read_byte_by_byte() -> None:
    """The answers to the handshake are understood however they are cut."""
    endpoint = Endpoint("h", 1, None, None, None, None, NODE_ID, 1.0)
    greeting = Greeting(endpoint, 3)
    answers = b"%1\r\n$5\r\nproto\r\n:3\r\n-NOPERM no\r\n=44\r\ntxt:" + NODE_ID.encode() + b"\r\n"
    done = [greeting.receive(answers[i : i + 1]) for i in range(len(answers))]
    assert done == [False] * (len(answers) - 1) + [True]


@contextlib.asynccontextmanager
async def secured(authority: trustme.CA, *names: str) -> AsyncIterator[FakeNode]:
    """A fake node behind TLS."""
    node = FakeNode()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    server = await asyncio.get_running_loop().create_server(
        lambda: FakeConnection(node), "127.0.0.1", 0, ssl=context
    )
    node.port = server.sockets[0].getsockname()[1]
    yield node
    server.close()
    await node.stop()


@pytest.mark.parametrize(
    ("names", "server_name", "fine"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["redis.internal"], "redis.internal", True),
        (["redis.internal"], "127.0.0.1", False),
        (["elsewhere.internal"], "redis.internal", False),
    ],
)
async def test_the_name_in_the_certificate(
    links: list[Link], names: list[str], server_name: str, fine: bool
) -> None:
    """A node is spoken to only when its certificate carries the name that was asked for."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with secured(authority, *names) as node:
        link = Link(node.port, tls=context, server_name=server_name)
        links.append(link)
        link.connection.open()
        await wait_for(lambda: link.connection.ready or link.owner.losses, "an outcome")
        assert link.connection.ready is fine
        if fine:
            assert await link.client.ask(b"SET", b"k", b"v") == b"OK"
        else:
            assert link.owner.losses[0].kind == "tls"
            assert node.commands == []
        link.connection.stop()


async def test_an_unknown_authority(links: list[Link]) -> None:
    """A certificate that nobody vouches for ends the attempt."""
    async with secured(trustme.CA(), "127.0.0.1") as node:
        link = Link(node.port, tls=ssl.create_default_context(), server_name="127.0.0.1")
        links.append(link)
        link.connection.open()
        await wait_for(lambda: link.owner.losses, "the loss")
        assert link.owner.losses[0].kind == "tls"
        link.connection.stop()
