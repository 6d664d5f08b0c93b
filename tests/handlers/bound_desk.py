"""A desk with a keyspace whose keys go with the connection that wrote them."""

import asyncio
import hashlib

from proxy import errors, wire
from proxy.commands import FAMILIES, ROWS
from proxy.effects import BINDING
from proxy.handlers.bonds import UNBIND
from proxy.wire import rules
from tests.handlers.desk import Client, Desk, Node

KEY = b"ws:1"


def unbinding(value: bytes) -> list[bytes]:
    """Return the errand that takes the key away while it has a value."""
    return [b"UNBIND", KEY, hashlib.sha1(value, usedforsecurity=False).hexdigest().encode()]


class BoundDesk(Desk):
    """A desk whose keys `ws:…` go with the connection that wrote them."""

    def __init__(self) -> None:
        super().__init__()
        router = self.server.router
        own = rules.Keyspace(
            name="ws", pattern=(b"ws:", rules.Segment("id", "text")), cluster=0, hash_tag=None,
            characters=None, max_key_bytes=512, denied=bytes(len(ROWS)), key_error=b"-POLICY\r\n",
            denied_error=b"-NOPERM\r\n", bound=True,
            duties=bytes(rules.Duty.ORIGIN * (row.name in BINDING) for row in ROWS),
        )  # fmt: skip
        router.ruleset = wire.Ruleset(
            commands=ROWS, keyspaces=[own], roles=router.ruleset.roles, families=[*FAMILIES],
            errors=errors.DATA_PLANE, default_cluster=0, reject_unmatched=False, max_key_bytes=1024,
        )  # fmt: skip

    @property
    def home(self) -> Node:
        """The node of ws:1."""
        return self.node(0 if wire.key_slot(KEY) < 8192 else 1)

    def wrote(self, client: Client, reply: bytes, *words: bytes) -> None:
        """Let a client write, and the node answer."""
        client.send(*words)
        assert self.home.commands() == [[*words]]
        self.home.answer(reply)
        self.settle()
        assert client.take() == reply

    async def errands(self) -> list[list[bytes]]:
        """Return all that is asked for a client that has gone, each answered as done."""
        found = []
        while self.server.tasks:
            await asyncio.wait(self.server.tasks, timeout=0.001)
            self.settle()
            for words in self.home.commands():
                known = words[1] == UNBIND.digest
                found.append([b"UNBIND", *words[3:]] if known else words)
                self.home.answer(b":1\r\n")
        return found


def close(client: Client) -> None:
    client.session.connection_lost(None)
