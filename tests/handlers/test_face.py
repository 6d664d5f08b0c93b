"""CLUSTER, on the listener that shows a cluster and on the others."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from proxy import errors, wire
from proxy.commands import COMMANDS
from proxy.embedded.process import release_port, reserve_port
from proxy.handlers.face import HANDLERS
from tests.handlers.desk import Client, Desk
from tests.handlers.servers import PROGRAMS, START_TIMEOUT, program_of, running
from tests.handlers.servers import Client as RealClient


def _clustered(desk: Desk | None = None, protocol: bytes = b"2") -> Client:
    client = (desk or Desk()).connect()
    client.session.clustered = True
    client.ask(b"HELLO", protocol)
    return client


def _words(name: bytes, arity: int) -> list[bytes]:
    words = name.split(b"|")
    return words + [b"1"] * (abs(arity) - len(words))


@pytest.mark.parametrize("name", HANDLERS)
async def test_without_the_listener_there_is_no_cluster(name: bytes) -> None:
    """Every sub-command says so in the words by which clients know a server that stands alone."""
    (row,) = (row for row in COMMANDS if row.name == name)
    assert Desk().connect().ask(*_words(name, row.arity)) == errors.CLUSTER_DISABLED


async def test_one_node_owns_every_slot() -> None:
    """SLOTS, SHARDS and NODES tell of the same node, where the client came in."""
    client = _clustered(protocol=b"3")
    number = client.value(b"CLUSTER", b"MYID")
    assert client.value(b"CLUSTER", b"SLOTS") == [[0, 16383, [b"127.0.0.1", 6379, number, {}]]]
    (shard,) = client.value(b"CLUSTER", b"SHARDS")
    assert shard[b"slots"] == [0, 16383]
    (node,) = shard[b"nodes"]
    assert (node[b"id"], node[b"ip"], node[b"port"]) == (number, b"127.0.0.1", 6379)
    line = client.value(b"CLUSTER", b"NODES")
    assert line == number + b" 127.0.0.1:6379@0 myself,master - 0 0 1 connected 0-16383\n"
    assert client.value(b"CLUSTER", b"MYSHARDID") != number
    assert len(number) == 40


async def test_the_announced_address_is_told() -> None:
    """Behind a port mapping, clients hear the address that they can reach."""
    desk = Desk()
    listen = replace(desk.server.config.listen, announced=("redis.example", 7000))
    desk.server.config = replace(desk.server.config, listen=listen)
    client = _clustered(desk)
    assert client.value(b"CLUSTER", b"SLOTS")[0][2][:2] == [b"redis.example", 7000]
    assert b" redis.example:7000@0 " in client.value(b"CLUSTER", b"NODES")


async def test_hello_and_info_say_cluster() -> None:
    """Clients that look at the mode find what CLUSTER tells."""
    client = _clustered()
    hello = client.value(b"HELLO")
    assert hello[hello.index(b"mode") + 1] == b"cluster"
    assert b"redis_mode:cluster\r\n" in client.value(b"INFO", b"server")
    assert b"cluster_enabled:1\r\n" in client.value(b"INFO", b"cluster")
    assert client.value(b"CONFIG", b"GET", b"cluster-enabled") == [b"cluster-enabled", b"yes"]
    assert b"cluster_state:ok\r\n" in client.value(b"CLUSTER", b"INFO")


async def test_the_state_is_that_of_the_default_cluster() -> None:
    """While the nodes that keys go to by default are away, the state is fail."""
    desk = Desk()
    desk.server.cluster_statistics = lambda: tuple(
        replace(cluster, available=False) for cluster in Desk().server.cluster_statistics()
    )
    assert b"cluster_state:fail\r\n" in _clustered(desk).value(b"CLUSTER", b"INFO")


async def test_slots_are_those_of_the_clients_own_names() -> None:
    """KEYSLOT hashes a key as every client does."""
    client = _clustered()
    for key in (b"foo", b"{tag}x", b""):
        assert client.value(b"CLUSTER", b"KEYSLOT", key) == wire.key_slot(key)


async def test_nobody_else_is_there() -> None:
    """There are no replicas, no links and no reports, and other nodes are unknown."""
    client = _clustered()
    number = client.value(b"CLUSTER", b"MYID")
    assert client.value(b"CLUSTER", b"REPLICAS", number) == []
    assert client.value(b"CLUSTER", b"SLAVES", number) == []
    assert client.value(b"CLUSTER", b"COUNT-FAILURE-REPORTS", number) == 0
    assert client.value(b"CLUSTER", b"LINKS") == []
    assert client.ask(b"CLUSTER", b"REPLICAS", b"x") == errors.unknown_node(b"x")


@pytest.mark.parametrize("words", [b"ADDSLOTS 1", b"MEET h 1", b"FAILOVER", b"GETKEYSINSLOT 1 1"])
async def test_what_changes_a_cluster_is_refused(words: bytes) -> None:
    """It is no sub-command here, and HELP does not name it."""
    client = _clustered()
    word = words.split()[0]
    refusal = errors.unknown_subcommand(b"CLUSTER", word)
    assert client.ask(b"CLUSTER", *words.split()) == refusal
    lines = client.value(b"CLUSTER", b"HELP")
    assert b"SLOTS" in lines
    assert word not in lines


async def test_commands_about_one_node_are_accepted() -> None:
    """READONLY, READWRITE and ASKING change nothing and are no error."""
    client = _clustered()
    for word in (b"READONLY", b"READWRITE", b"ASKING"):
        assert client.ask(word) == b"+OK\r\n"


@pytest.fixture(scope="module", params=PROGRAMS)
def lone_node(request: pytest.FixtureRequest) -> Iterator[RealClient]:
    """A real cluster of one node that owns every slot."""
    ports = [reserve_port(), reserve_port()]
    flags = ["--cluster-enabled", "yes", "--port", str(ports[0]), "--cluster-port", str(ports[1])]
    with running(program_of(request), *flags) as path:
        client = RealClient(path)
        assert client.ask(b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383") == b"OK"
        deadline = time.monotonic() + START_TIMEOUT
        while b"cluster_state:ok" not in _text(client.ask(b"CLUSTER", b"INFO")):
            assert time.monotonic() < deadline, "the cluster of one node is not ready"
            time.sleep(0.005)
        yield client
        client.close()
    for port in ports:
        release_port(port)


def _text(reply: object) -> bytes:
    assert isinstance(reply, bytes)
    return reply


def _lines(reply: object) -> set[bytes]:
    return {line.partition(b":")[0] for line in _text(reply).split()}


SAME = """
CLUSTER LINKS|CLUSTER KEYSLOT a|CLUSTER KEYSLOT|CLUSTER COUNTKEYSINSLOT 5|CLUSTER FOO|CLUSTER
CLUSTER COUNTKEYSINSLOT 16384|CLUSTER COUNTKEYSINSLOT -1|CLUSTER COUNTKEYSINSLOT x
CLUSTER COUNT-FAILURE-REPORTS nobody|CLUSTER REPLICAS nobody|CLUSTER SLAVES nobody
CLUSTER SLOTS x|CLUSTER NODES x|SELECT 0|READONLY|READWRITE|ASKING|CONFIG GET cluster-enabled
"""


@pytest.mark.integration
@pytest.mark.parametrize("protocol", [b"2", b"3"])
@pytest.mark.parametrize("command", SAME.strip().replace("\n", "|").split("|"))
async def test_same_bytes_as_a_node(lone_node: RealClient, command: str, protocol: bytes) -> None:
    """What is no name or address cannot be told from a node of a real cluster."""
    lone_node.ask(b"HELLO", protocol)
    words = command.encode().split()
    assert _clustered(protocol=protocol).ask(*words) == lone_node.ask_raw(*words)


def _shape(reply: object) -> object:
    """Return a reply with types in the place of values; keys of maps stay."""
    if isinstance(reply, dict):
        return {key: _shape(value) for key, value in reply.items()}
    if isinstance(reply, list):
        return [_shape(value) for value in reply]
    return type(reply)


@pytest.mark.integration
@pytest.mark.parametrize("protocol", [b"2", b"3"])
async def test_same_shape_as_a_node(lone_node: RealClient, protocol: bytes) -> None:
    """SLOTS, SHARDS, NODES, INFO and MYID are built as those of a real node."""
    client = _clustered(protocol=protocol)
    lone_node.ask(b"HELLO", protocol)
    assert _shape(client.value(b"CLUSTER", b"SLOTS")) == _shape(lone_node.ask(b"CLUSTER", b"SLOTS"))
    (theirs,) = _list(lone_node.ask(b"CLUSTER", b"SHARDS"))
    (ours,) = client.value(b"CLUSTER", b"SHARDS")
    # A later server names the shard behind its nodes.
    wanted = theirs[:4] if isinstance(theirs, list) else {**theirs}
    if isinstance(wanted, dict):
        wanted.pop(b"id", None)
    assert _shape(ours) == _shape(wanted)
    for word in (b"NODES", b"INFO", b"MYID"):
        assert client.ask(b"CLUSTER", word)[:1] == lone_node.ask_raw(b"CLUSTER", word)[:1]
    line, real = client.value(b"CLUSTER", b"NODES"), _text(lone_node.ask(b"CLUSTER", b"NODES"))
    assert len(line.split(b" ")) == len(real.split(b" "))
    assert line.split(b" ")[2:6] == real.split(b" ")[2:6]
    theirs = _lines(lone_node.ask(b"CLUSTER", b"INFO"))
    assert _lines(client.value(b"CLUSTER", b"INFO")) <= theirs


def _list(reply: object) -> list[Any]:
    assert isinstance(reply, list)
    return reply
