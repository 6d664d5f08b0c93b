"""What the nodes of each cluster evict when they are full: their own `maxmemory_policy`.

The application makes one `Eviction`; INFO and CONFIG GET show what it knows. Job queues read it and
warn where their keys may be evicted, so nothing is claimed that no node has said.

Always true: each primary is asked once a minute, and soon after it has become one; a node that
does not say it, because it may not be asked, is down or answers something else, is `unknown`.
"""

import asyncio
import math

from proxy import wire
from proxy.upstream.aside import ask_aside
from proxy.upstream.pool import ClusterPool, Node, Pools

# CONFIG GET would say it too, but fewer users of nodes may send that.
QUESTION = wire.pack([b"INFO", b"memory"])

UNKNOWN = "unknown"
NEVER = "noeviction"

# Seconds for which an answer is taken for true: an operator changes this with CONFIG SET, seldom.
AGE = 60.0

# How often it is looked whether somebody is to be asked, in seconds; more often while a primary has
# not been asked yet, as clients connect as soon as the port is open, and ask then.
PERIOD = 1.0
SOON = 0.05


class Eviction:
    """The answers of all primaries."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._said: dict[Node, str] = {}
        self._asked: dict[Node, float] = {}
        self._loop = asyncio.get_running_loop()

    def said(self, cluster: ClusterPool) -> str:
        """Return the policy of a cluster; where nodes differ, one by which keys may be lost."""
        policies = {self._said.get(node, UNKNOWN) for node in cluster.primaries()} or {UNKNOWN}
        return min(policies, key=lambda policy: (policy == NEVER, policy == UNKNOWN, policy))

    async def watch(self) -> None:
        """Ask whoever has not been asked for a while."""
        while True:
            primaries = [node for each in self._pools.clusters for node in each.primaries()]
            self._said = {node: self._said[node] for node in primaries if node in self._said}
            self._asked = {node: self._asked[node] for node in primaries if node in self._asked}
            now = self._loop.time()
            due = [node for node in primaries if now >= self._asked.get(node, -math.inf) + AGE]
            await asyncio.gather(*map(self._ask, due))
            asked = primaries and len(self._asked) == len(primaries)
            await asyncio.sleep(PERIOD if asked else SOON)

    async def _ask(self, node: Node) -> None:
        connection = next((each for each in node.all() if each.ready), None)
        if connection is None:
            return
        self._asked[node] = self._loop.time()
        # Aside: what nobody has asked for must not stand among the commands of clients.
        self._said[node] = policy_in(await ask_aside(connection.endpoint, QUESTION, 2))


def policy_in(reply: bytes) -> str:
    """Return the policy in a reply to INFO."""
    for line in reply.splitlines():
        name, _, value = line.partition(b":")
        if name == b"maxmemory_policy" and value.isascii():
            return value.decode()
    return UNKNOWN
