"""What one client has set, begun or waits for reaches no other client, however it leaves.

A client brings itself into a state and leaves. Then clients that have just come, and clients that
were there before on every shared connection, say the same words as on a proxy where nobody ever
did anything, and must get the same bytes.
"""

import asyncio
import contextlib
import itertools
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar, cluster_block
from tests.conftest import Clusters
from tests.faults import reset
from tests.integration.rig import Caller, descriptors, front_of, is_error, wait_for
from tests.replies import pack

pytestmark = pytest.mark.integration

POLICIES = """
defaults: {cluster: cache}
roles:
  reader: {commands: {deny: [SET, INCR, MULTI, CONFIG]}}
"""

USERS = {
    "default": {"nopass": True, "role": "default"},
    "reader": {"password": "secret", "role": "reader"},
}

# Two, so that there are clients that share the connection of the one that leaves and clients that
# do not. Two clients in a row have different ones.
CONNECTIONS = 2

# Nobody else has these values; none may ever be in a reply to another client.
SECRET = "of-another-client"


@dataclass(frozen=True)
class State:
    """How a client gets into a state; commands that end in no reply are not waited for."""

    commands: Sequence[str]
    replies: int
    blocks: bool = False  # the last command waits


STATES = {
    "auth": State(["AUTH reader secret"], 1),
    # Ten refusals a second is what one address may have: the rest waits, as it should.
    "auth refused": State(["AUTH reader wrong"], 1),
    "hello 2": State(["HELLO 2"], 1),
    "hello 3": State(["HELLO 3"], 1),
    "hello with everything": State([f"HELLO 3 AUTH reader secret SETNAME {SECRET}"], 1),
    "select": State(["SELECT 0", "SELECT 1"], 2),
    "setname": State([f"CLIENT SETNAME {SECRET}"], 1),
    "setinfo": State([f"CLIENT SETINFO LIB-NAME {SECRET}", f"CLIENT SETINFO LIB-VER {SECRET}"], 2),
    "reply off": State(["CLIENT REPLY OFF", "PING"], 0),
    "reply skip": State(["CLIENT REPLY SKIP"], 0),
    "no-evict": State(["CLIENT NO-EVICT ON"], 1),
    "no-touch": State(["CLIENT NO-TOUCH ON"], 1),
    "tracking": State(["CLIENT TRACKING ON", "CLIENT CACHING YES"], 2),
    "readonly": State(["READONLY"], 1),
    "readwrite": State(["READWRITE"], 1),
    "asking": State(["ASKING"], 1),
    "multi": State(["MULTI"], 1),
    "multi with commands": State(["MULTI", f"SET state:multi {SECRET}", "INCR state:multi"], 3),
    "multi spoiled": State(["MULTI", "GET", "NOSUCH"], 3),
    "watch": State(["WATCH {probe:0}:0 {probe:0}:1"], 1),
    "watch and multi": State(["WATCH {probe:0}:0", "MULTI", "GET {probe:0}:0"], 3),
    "watch and change": State(["WATCH {state}", f"SET {{state}} {SECRET}"], 2),
    "subscribe": State(["SUBSCRIBE state:news state:more"], 2),
    "psubscribe": State(["PSUBSCRIBE state:*"], 1),
    "ssubscribe": State(["SSUBSCRIBE state:shard"], 1),
    "monitor": State(["MONITOR"], 1),
    "blpop": State(["BLPOP state:queue 0"], 0, blocks=True),
    "xread": State(["XREAD BLOCK 0 STREAMS state:stream $"], 0, blocks=True),
    "wait": State(["SET state:wait 1", "WAIT 9 0"], 1),
    "waitaof": State(["SET state:wait 1", "WAITAOF 0 9 0"], 1),
    "pause": State(["CLIENT PAUSE 5 ALL"], 1),
    "pause of writes": State(["CLIENT PAUSE 5 WRITE"], 1),
    "scan": State(["SCAN 0 COUNT 1"], 1),
    "script": State(["SCRIPT LOAD return(1)", "SCRIPT DEBUG YES"], 2),
    "replication": State(["REPLCONF listening-port 1", "PSYNC ? -1"], 2),
}

WAYS = ("clean", "reset", "mid-command")

END = pack("ECHO", "this is the end")
LAST = b"$15\r\nthis is the end\r\n"

# What differs between two clients that are alike: number, addresses and age.
_INFO = re.compile(rb"[$=]\d+\r\n((?:txt:)?)id=\d+ addr=\S+ laddr=\S+ (.*?)age=\d+ ")
_NUMBER = re.compile(rb"(\$2\r\nid\r\n):\d+")
_KEY = re.compile(rb"\{probe:\d\}")


def probe(number: int) -> list[bytes]:
    """Return what a client says, burst by burst; every number has keys of its own."""
    one, two, three = (f"{{probe:{number}}}:{key}" for key in range(3))
    other = f"probe:{number}:elsewhere"
    bursts = [
        [
            f"GET {one}", f"SET {one} 1", f"INCR {one}", f"GET {one}", f"SET {other} v EX 100",
            f"GET {other}", f"HSET {two} f v", f"HGETALL {two}", f"LPOP {three}",
            f"MGET {one} {other} {three}", f"EXISTS {one} {other}", "GET", "PING",
        ],
        ["MULTI", f"INCR {one}", f"GET {one}", "EXEC", "EXEC", "DISCARD", "UNWATCH"],
        [
            f"WATCH {one}", "MULTI", f"SET {one} 7", f"HGETALL {two}", "EXEC",
            f"RPUSH {three} a", f"BLPOP {three} 1", "WAIT 0 0", "SELECT 0", "COMMAND COUNT",
        ],
        ["CLIENT INFO", "CLIENT GETNAME", "HELLO"],
        [f"DEL {one} {two} {three}", f"DEL {other}", "PING last"],
    ]  # fmt: skip
    return [b"".join(pack(*words.split()) for words in burst) + END for burst in bursts]


async def raw_replies(caller: Caller, bursts: Sequence[bytes]) -> bytes:
    """Return the bytes that answer, without what tells this client from others."""
    whole = bytearray()
    for burst in bursts:
        caller.writer.write(burst)
        part = bytearray()
        while not part.endswith(LAST):
            data = await asyncio.wait_for(caller.reader.read(65536), 10.0)
            assert data, f"closed after {bytes(whole + part)!r}"
            part += data
        whole += part
    return _KEY.sub(b"", _NUMBER.sub(rb"\1", _INFO.sub(rb"\1\2", bytes(whole))))


def contrast(expected: bytes, answer: bytes) -> str:
    """Return what stands where two answers part."""
    pairs = zip(expected, answer, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    near = slice(max(0, same - 30), same + 60)
    return f"{answer[near]!r} instead of {expected[near]!r}"


async def open_client(port: int, protocol: int) -> Caller:
    caller = await Caller.open(port)
    if protocol == 3:
        assert not is_error(await caller.call("HELLO", 3))
    return caller


@dataclass
class Bench:
    """A proxy, those who were connected before, and what everybody should be told."""

    sidecar: Sidecar
    expected: dict[int, bytes]
    residents: list[tuple[int, Caller]]
    random: random.Random
    runs: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    differences: list[str] = field(default_factory=list)

    async def run(self, name: str, *ways: str) -> None:
        """Let one client after the other come and go, and ask one of each kind of the others."""
        state = STATES[name]
        for way in ways:
            caller = await open_client(self.sidecar.port, self.random.choice((2, 3)))
            await self._enter(caller, state)
            await self._leave(caller, way)
            self.runs[way] += 1
        protocol = self.random.choice((2, 3))
        fresh = await open_client(self.sidecar.port, protocol)
        resident = self.random.choice(self.residents)
        witnesses = {"has just come": (protocol, fresh), "was there before": resident}
        answers = await asyncio.gather(
            *(raw_replies(other, probe(n)) for n, (_, other) in enumerate(witnesses.values()))
        )
        for (who, (protocol, _)), answer in zip(witnesses.items(), answers, strict=True):
            self.compared += 1
            if answer != self.expected[protocol]:
                told = contrast(self.expected[protocol], answer)
                self.differences.append(f"{name}, {ways}: RESP{protocol} that {who}: {told}")
        fresh.close()

    async def _enter(self, caller: Caller, state: State) -> None:
        caller.writer.write(b"".join(pack(*words.split()) for words in state.commands))
        if self.random.random() < 0.2:
            return  # it leaves while its commands are on their way
        for _ in range(state.replies):
            await caller.next()
        if state.blocks:
            await wait_for(lambda: self._figure("blocked_clients", 1), "the wait")

    async def _leave(self, caller: Caller, way: str) -> None:
        if way == "clean":
            caller.writer.write(pack("QUIT"))
        elif way == "mid-command":
            command = pack("SET", "state:cut", SECRET)
            caller.writer.write(command[: self.random.randrange(1, len(command))])
        else:
            caller.writer.write(pack("GET", "state:secret") * self.random.randrange(20))
        if way == "reset" or (way == "mid-command" and self.random.random() < 0.5):
            await asyncio.sleep(0)  # the loop writes what it was given
            reset(caller.writer.transport)
            Caller.opened.discard(caller)
            return
        with contextlib.suppress(OSError):
            caller.writer.write_eof()
        await caller.rest()
        caller.close()

    async def _figure(self, name: str, value: int) -> bool:
        text = (await self.residents[0][1].call("INFO", "clients")).decode()
        return f"{name}:{value}\r\n" in text

    async def settle(self) -> None:
        """Wait until the proxy holds nothing for anybody but those who are there."""
        await wait_for(lambda: self._figure("blocked_clients", 0), "the end of waits")
        await wait_for(
            lambda: self._figure("connected_clients", len(self.residents)), "the end of clients"
        )
        lines = (await self.residents[0][1].call("CLIENT", "LIST")).decode().splitlines()
        assert [line for line in lines if " flags=N " not in line or " multi=-1 " not in line] == []
        await wait_for(self._nothing_held, "that nothing is held")

    async def _nothing_held(self) -> bool:
        _, page = await self.sidecar.get("/metrics")
        names = ("sidecache_pins{", "sidecache_subscriptions{", "sidecache_node_in_flight{")
        lines = [line for line in page.splitlines() if line.startswith(names)]
        return bool(lines) and all(float(line.rpartition(" ")[2]) == 0 for line in lines)

    async def untouched(self) -> None:
        """Nobody takes what is pushed, hears what is published, or left something behind."""
        caller = self.residents[0][1]
        wanted = [
            (("RPUSH", "state:queue", "a"), 1), (("LLEN", "state:queue"), 1),
            (("DEL", "state:queue"), 1), (("PUBLISH", "state:news", "a"), 0),
            (("SPUBLISH", "state:shard", "a"), 0), (("PUBSUB", "NUMPAT"), 0),
            (("PUBSUB", "CHANNELS", "state:*"), []), (("EXISTS", "state:multi"), 0),
            (("GET", "state:secret"), SECRET.encode()), (("EXISTS", "state:cut"), 0),
        ]  # fmt: skip
        replies = await caller.pipeline([words for words, _ in wanted])
        assert replies == [reply for _, reply in wanted]


async def clients_of(clusters: Clusters) -> list[tuple[str, str]]:
    """Return the connections that nodes have: the node's name and its line, but for who asks."""
    return [
        (node.name, line)
        for node in (*clusters.locks.nodes, *clusters.cache.nodes)
        for line in (await node.ask("CLIENT", "LIST")).splitlines()
        if " cmd=client|list " not in line
    ]


def address(line: str) -> str:
    (found,) = re.findall(r" addr=(\S*)", line)
    return str(found)


async def upstream_clients(clusters: Clusters, others: Set[str]) -> Counter[str]:
    """Return how many connections nodes have by what is set on them, without those of others."""
    kept = re.compile(r" (?:name|flags|db|p?sub|ssub|watch|user|redir|resp)=\S*")
    return Counter(
        name + "".join(kept.findall(line))
        for name, line in await clients_of(clusters)
        if address(line) not in others
    )


def proxy_for(clusters: Clusters, folder: Path) -> Sidecar:
    folder.mkdir()
    policies = folder / "policies.yaml"
    policies.write_text(POLICIES)
    blocks = {
        name: {**cluster_block(cluster), "connections": CONNECTIONS}
        for name, cluster in (("locks", clusters.locks), ("cache", clusters.cache))
    }
    return front_of(blocks, folder, policies=str(policies), users=USERS)


async def answers_undisturbed(clusters: Clusters, folder: Path) -> dict[int, bytes]:
    """Return what each protocol's clients are told by a proxy where nobody did anything."""
    answers = {}
    async with proxy_for(clusters, folder) as sidecar:
        for protocol in (2, 3):
            caller = await open_client(sidecar.port, protocol)
            answers[protocol] = await raw_replies(caller, probe(0))
            caller.close()
    return answers


@contextlib.asynccontextmanager
async def bench(clusters: Clusters, folder: Path, seed: int) -> AsyncIterator[Bench]:
    """Yield a proxy in use; at the end all is as it was, its connections to nodes included."""
    print(f"\nseed {seed}")
    expected = await answers_undisturbed(clusters, folder / "undisturbed")
    # Proxies of other tests, whose connections come to an end meanwhile.
    others = {address(line) for _, line in await clients_of(clusters)}
    async with proxy_for(clusters, folder / "used") as sidecar:
        residents = [
            (protocol, await open_client(sidecar.port, protocol))
            for protocol in (2, 3)
            for _ in range(CONNECTIONS)
        ]
        for _, caller in residents:
            # Asks every primary, so that all shared connections are there from now on.
            assert not is_error(await caller.call("DBSIZE"))
        assert await residents[0][1].call("SET", "state:secret", SECRET) == b"OK"
        before, files = await upstream_clients(clusters, others), descriptors(sidecar.pid)
        made = Bench(sidecar, expected, residents, random.Random(seed))
        yield made
        await made.untouched()

        async def as_before() -> bool:
            return await upstream_clients(clusters, others) == before

        # Connections that single clients had are kept for seconds after a clean end.
        await wait_for(as_before, "that the proxy has the connections it had")
        assert descriptors(sidecar.pid) <= files


async def visit(made: Bench, runs: int, *leaving: Sequence[str]) -> None:
    """Visit every state so many times, with the clients of each of leaving before one look."""
    for name in STATES:
        for ways in leaving:
            for _ in range(runs):
                await made.run(name, *ways)
        await made.settle()
        print(f"{name}: {made.compared} comparisons, {len(made.differences)} differences")
    print(
        f"{len(STATES)} states, {sum(made.runs.values())} runs {dict(made.runs)}, "
        f"{made.compared} comparisons, {len(made.differences)} differences"
    )
    assert made.differences[:10] == []


async def test_no_state_reaches_another_client(empty_clusters: Clusters, tmp_path: Path) -> None:
    """Every state, left in every way: others are told what they are told without it."""
    async with bench(empty_clusters, tmp_path, random.randrange(1 << 32)) as made:
        await visit(made, 3, WAYS)
