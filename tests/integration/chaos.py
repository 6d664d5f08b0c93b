"""What happens to servers and links while clients work: seeded, and written down.

Two lanes run side by side, one for nodes and one for links and PostgreSQL, so that troubles of both
kinds meet. Each trouble is over before the next of its lane begins.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxy.embedded.node import Node
from proxy.embedded.postgres import Postgres
from proxy.embedded.redis import Cluster
from tests.faults import NO_FAULTS, Faults, Relay
from tests.integration.rig import wait_for

SILENCE = Faults(blackhole=True)


@dataclass(frozen=True)
class Troubles:
    """How many there are of each kind in one run."""

    kills: int = 1  # of primaries, by SIGKILL
    freezes: int = 1  # of nodes, by SIGSTOP, for 0.5 to 3 s
    flushes: int = 1  # of primaries, by FLUSHALL
    cuts: int = 1  # of one sidecar from all nodes
    severs: int = 1  # of one sidecar from PostgreSQL
    restarts: int = 1  # of PostgreSQL, by a fast shutdown


@dataclass
class Wires:
    """What one sidecar's connections go through."""

    nodes: list[Relay]
    postgres: Relay


@dataclass
class Chaos:
    """The troubles of one run."""

    cluster: Cluster
    postgres: Postgres
    wires: Sequence[Wires]
    seed: int
    log: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dice = random.Random(f"chaos:{self.seed}")
        self.begun = time.monotonic()

    async def run(self, troubles: Troubles, progress: Callable[[], float]) -> None:
        """Go through all troubles while the work goes from 0 to 1."""
        nodes = ["kill"] * troubles.kills + ["freeze"] * troubles.freezes
        nodes += ["flush"] * troubles.flushes
        links = ["cut"] * troubles.cuts + ["sever"] * troubles.severs
        links += ["restart"] * troubles.restarts
        await asyncio.gather(self._lane(nodes, progress), self._lane(links, progress))

    async def _lane(self, names: list[str], progress: Callable[[], float]) -> None:
        self.dice.shuffle(names)
        actions: dict[str, Callable[[], Awaitable[str]]] = {
            "kill": self.kill, "freeze": self.freeze, "flush": self.flush,
            "cut": self.cut, "sever": self.sever, "restart": self.restart,
        }  # fmt: skip
        for number, name in enumerate(names):
            due = (number + 0.3) / len(names)
            while progress() < due:
                await asyncio.sleep(0.02)
            since = time.monotonic() - self.begun
            said = await actions[name]()
            self.counts[name] += 1
            self.log.append(f"{since:7.2f} s to {time.monotonic() - self.begun:7.2f} s  {said}")

    async def kill(self) -> str:
        """Kill a primary, and give it back before or after a replica has taken over."""
        node = await self._primary()
        node.kill()
        away = self.dice.choice((0.0, 0.3, 2.5))
        await asyncio.sleep(away)
        await node.restart()
        await self.cluster.wait_ready(60.0)
        return f"{node.name} killed, away for {away} s"

    async def freeze(self) -> str:
        """Stop a node, most often a primary, for a while."""
        node = await self._primary()
        if self.dice.random() < 0.2:
            node = self.dice.choice(self.cluster.nodes)
        seconds = self.dice.uniform(0.5, 3.0)
        node.pause()
        await asyncio.sleep(seconds)
        node.resume()
        await self.cluster.wait_ready(60.0)
        return f"{node.name} frozen for {seconds:.2f} s"

    async def flush(self) -> str:
        node = await self._primary()
        await node.ask("FLUSHALL")
        return f"{node.name} flushed"

    async def _primary(self) -> Node:
        await self.cluster.refresh()
        return self.dice.choice(self.cluster.primaries)

    async def cut(self) -> str:
        """Cut one sidecar off all nodes; the others see them as before."""
        number = self.dice.randrange(len(self.wires))
        said = await self._apart(self.wires[number].nodes)
        return f"sidecar {number} cut off Redis {said}"

    async def sever(self) -> str:
        """Cut one sidecar off PostgreSQL."""
        number = self.dice.randrange(len(self.wires))
        said = await self._apart([self.wires[number].postgres])
        return f"sidecar {number} cut off PostgreSQL {said}"

    async def _apart(self, relays: Sequence[Relay]) -> str:
        """Let nothing through for a while: silently, or with resets and refusals."""
        seconds, silently = self.dice.uniform(0.5, 3.0), self.dice.random() < 0.5
        for relay in relays:
            if silently:
                relay.apply(SILENCE, SILENCE)
            else:
                await relay.stop()
        await asyncio.sleep(seconds)
        for relay in relays:
            if silently:
                relay.cut()
                relay.apply(NO_FAULTS, NO_FAULTS)
            else:
                await relay.start()
        return f"{'silently' if silently else 'by resets'} for {seconds:.2f} s"

    async def restart(self) -> str:
        """End PostgreSQL as an operator does, and start it again."""
        away = self.dice.choice((0.0, 0.5, 1.5))
        pid = self.postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGINT)
        await wait_for(lambda: has_ended(pid), "the end of PostgreSQL", 30.0)
        self.postgres.kill()  # nothing is left to be killed: its parent takes note of the end
        await asyncio.sleep(away)
        await self.postgres.restart()
        return f"PostgreSQL restarted, away for {away} s"


def has_ended(pid: int) -> bool:
    """Return whether a child of ours has ended, and waits to be taken note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
