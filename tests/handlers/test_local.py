"""What a client asks the server about itself."""

import time

import pytest

from tests.handlers.desk import Desk

# What client libraries and frameworks look for in INFO when they start.
LOOKED_FOR = {
    b"redis_version:7.0.15", b"redis_mode:standalone", b"loading:0", b"role:master",
    b"connected_slaves:0", b"maxmemory_policy:allkeys-lfu", b"cluster_enabled:0",
    b"tcp_port:6379", b"db0:keys=0,expires=0,avg_ttl=0", b"# Server", b"# CPU", b"# sidecache",
    b"cluster_cache:state=up,nodes=2,maxmemory_policy=allkeys-lfu",
    b"cluster_locks:state=down,nodes=2,maxmemory_policy=noeviction", b"connected_clients:1",
}  # fmt: skip


@pytest.mark.parametrize("words", [b"INFO", b"INFO all", b"INFO EVERYTHING", b"INFO x default"])
async def test_info_has_what_clients_look_for(words: bytes) -> None:
    """Every field that some library reads at its start is there."""
    text = Desk().connect().value(*words.split())
    lines = set(text.split(b"\r\n"))
    assert lines >= LOOKED_FOR
    assert any(line.startswith(b"run_id:") and len(line) == 47 for line in lines)


async def test_info_of_sections() -> None:
    """Sections that are named are shown, in the server's order, with a blank line between."""
    text = Desk().connect().value(b"INFO", b"cluster", b"nosuch", b"REPLICATION")
    assert text == (
        b"# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n"
        b"# Cluster\r\ncluster_enabled:0\r\n"
    )


async def test_texts_for_people_are_verbatim_in_resp3() -> None:
    """INFO, CLIENT LIST and LOLWUT tell a RESP3 client that they are text."""
    client = Desk().connect()
    client.ask(b"HELLO", b"3")
    for words in (b"INFO", b"CLIENT LIST", b"CLIENT INFO", b"LOLWUT"):
        reply = client.ask(*words.split())
        assert reply[:1] == b"="
        assert b"\r\ntxt:" in reply[:20]


async def test_config_get_takes_patterns() -> None:
    """Each setting that fits one of the patterns is answered once; an unknown one is not."""
    client = Desk().connect()
    client.ask(b"HELLO", b"3")
    found = client.value(b"CONFIG", b"GET", b"maxmem*", b"maxmemory", b"nosuch", b"SAVE")
    assert found == {b"maxmemory": b"0", b"maxmemory-policy": b"allkeys-lfu", b"save": b""}
    found = client.value(b"CONFIG", b"GET", b"*")
    for name in (b"appendonly", b"databases", b"timeout", b"slave-read-only",
                 b"notify-keyspace-events", b"proto-max-bulk-len",
                 b"client-output-buffer-limit"):  # fmt: skip
        assert name in found


async def test_time_is_the_clocks() -> None:
    """TIME gives seconds and microseconds of the wall clock."""
    seconds, microseconds = map(int, Desk().connect().value(b"TIME"))
    assert abs(time.time() - seconds - microseconds / 1e6) < 5


async def test_lastsave_is_the_start() -> None:
    """A proxy saves nothing; it says since when it runs."""
    desk = Desk()
    assert desk.connect().value(b"LASTSAVE") == int(desk.server.started)


async def test_no_modules() -> None:
    """There are no modules, which libraries ask to know whether JSON or search is there."""
    assert Desk().connect().ask(b"MODULE", b"LIST") == b"*0\r\n"


@pytest.mark.parametrize(("bits", "digits"), [(b"1", 1), (b"5", 2), (b"256", 64), (b"4096", 1024)])
async def test_passwords_are_as_long_as_asked(bits: bytes, digits: int) -> None:
    """GENPASS gives four bits a digit, rounded up, and never the same twice."""
    client = Desk().connect()
    first = client.value(b"ACL", b"GENPASS", bits)
    assert len(first) == digits
    assert bits == b"1" or bits == b"5" or first != client.value(b"ACL", b"GENPASS", bits)


async def test_categories() -> None:
    """CAT names the categories, and the commands of one."""
    client = Desk().connect()
    assert {b"read", b"write", b"dangerous"} <= set(client.value(b"ACL", b"CAT"))
    assert b"geoadd" in client.value(b"ACL", b"CAT", b"geo")


async def test_help_lists_what_is_offered() -> None:
    """HELP of a container names its sub-commands, without those that are refused."""
    lines = Desk().connect().value(b"CLIENT", b"HELP")
    assert b"ID" in lines
    assert b"PAUSE" not in lines


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([b"FOO", b"a", b"b"], b"'FOO', with args beginning with: 'a' 'b' "),
        ([b"F\r\n+OK"], b"'F\\x0d\\x0a+OK', with args beginning with: "),
        ([b"x" * 500, b"y"], b"'" + b"x" * 128 + b"', with args beginning with: 'y' "),
    ],
)
async def test_unknown_commands_are_quoted_safely(words: list[bytes], line: bytes) -> None:
    """The name is escaped and cut: no client can forge a reply with it."""
    assert Desk().connect().ask(*words) == b"-ERR unknown command " + line + b"\r\n"


async def test_a_long_argument_list_is_cut() -> None:
    """As in Redis, arguments are quoted until 128 bytes are full."""
    reply = Desk().connect().ask(b"FOO", *[b"y" * 50] * 20)
    assert len(reply) < 250
