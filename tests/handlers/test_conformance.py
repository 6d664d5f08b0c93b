"""Every command of real servers, sent to ourselves: it is treated as its row says."""

import asyncio

import pytest

from proxy import errors
from proxy.commands import COMMANDS, INDEX, Row
from proxy.embedded.sidecar import Sidecar
from proxy.wire.rules import Path
from tests.handlers.desk import Client, Desk
from tests.handlers.servers import PROGRAMS, program_of, running
from tests.handlers.servers import Client as RealClient
from tests.integration.rig import Caller

pytestmark = pytest.mark.integration

# What answers nothing but a closed connection, or needs another state of it.
ENDINGS = {b"quit", b"reset", b"client|reply"}


# Redis ends the transaction for a wrong EXEC; here it goes on, spoiled, so the line is another.
OTHER_WORDS = {b"exec"}


@pytest.fixture(scope="module", params=PROGRAMS)
def live(request: pytest.FixtureRequest) -> dict[bytes, tuple[int, bytes]]:
    """Arity of every command and sub-command that a server lists, and its line for a wrong one."""
    with running(program_of(request)) as path:
        client = RealClient(path)
        listed = client.ask(b"COMMAND")
        assert isinstance(listed, list)
        entries = [item for entry in listed for item in (entry, *entry[9])]
        found = {}
        for name, arity, *_ in entries:
            words = _wrong(name, arity)
            # A container without a word has no arity of its own to break, as COMMAND shows.
            line = client.ask_raw(*words) if words else b""
            found[name] = (arity, line)
        client.close()
    return found


def _words(name: bytes, count: int) -> list[bytes]:
    """Return so many words of a command, which mean nothing behind its name."""
    words = name.split(b"|")
    return words + [b"1"] * (count - len(words))


def _wrong(name: bytes, arity: int) -> list[bytes]:
    """Return words that are one too few, or one too many where there are no fewer."""
    fewest = len(name.split(b"|"))
    if abs(arity) > fewest:
        return _words(name, abs(arity) - 1)
    return _words(name, arity + 1) if arity > 0 else []


def _row(name: bytes) -> Row:
    return COMMANDS[INDEX[name]]


async def test_wrong_numbers_of_words(live: dict[bytes, tuple[int, bytes]]) -> None:
    """Whatever the command, offered or not, too few or too many words get the server's own line."""
    differing = {}
    for name, (arity, line) in live.items():
        words = _wrong(name, arity)
        # Where versions differ, ours lets more through and the node decides.
        if words and not _row(name).arity_fits(len(words)) and name not in OTHER_WORDS:
            reply = Desk().connect().ask(*words)
            if reply != line:
                differing[name] = (reply, line)
    assert differing == {}


async def test_what_is_refused(live: dict[bytes, tuple[int, bytes]]) -> None:
    """A row that is not offered looks like one that does not exist, and reaches no node."""
    refused = [name for name in live if not _row(name).offered and not name.startswith(b"cluster|")]
    assert refused
    for name in refused:
        client = Desk().connect()
        reply = client.ask(*_words(name, abs(_row(name).arity)))
        container, bar, word = name.partition(b"|")
        if bar:
            assert reply == errors.unknown_subcommand(container, word)
        else:
            assert reply == errors.unknown_command(name)
        assert _sent(client) == 0


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.usefixtures("empty_clusters")
async def test_what_is_offered(
    live: dict[bytes, tuple[int, bytes]], proxy: Sidecar, protocol: int
) -> None:
    """A row that is offered is answered by a real proxy, even with words that mean nothing."""
    rows = [row for row in map(_row, live) if row.offered and row.path is not Path.CONTAINER]
    asked = [row for row in rows if row.name not in ENDINGS]
    gate = asyncio.Semaphore(20)

    async def ask(row: Row) -> str:
        async with gate:
            caller = await Caller.open(proxy.port)
            await caller.call("HELLO", protocol)
            reply = await caller.call(*_words(row.name, abs(row.arity)))
            caller.close()
        return str(reply) if isinstance(reply, Exception) else ""

    replies = await asyncio.gather(*map(ask, asked))
    unknown = ("ERR unknown command", "ERR unknown subcommand", errors.INTERNAL[1:-2].decode())
    found = zip(asked, replies, strict=True)
    assert [(row.name, line) for row, line in found if line.startswith(unknown)] == []


def _sent(client: Client) -> int:
    return sum(len(node.commands()) for pair in client.desk.nodes for node in pair)
