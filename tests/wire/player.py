"""Plays one conversation: real wire objects, a clock that is moved by hand, and a short topology.

The language is described in tests/test_conversations.py.
"""

import re
from collections import deque
from typing import Any

from proxy import errors, wire
from proxy.commands import ROWS
from proxy.wire.rules import Ageing, Duty, Keyspace, Limits, Reason, Segment
from proxy.wire.rules import Path as Route
from tests.wire import model
from tests.wire.stage import Stage, keyspace, role, ruleset

SETTINGS = ("nodes", "clients", "keyspace", "deny", "slow", "local", "limits", "stranger")


def reply_bytes(text: str) -> bytes:
    """Return a reply as it is written in a conversation."""
    text_bytes = unescaped(text)
    if text.startswith('"'):
        return b"$%d\r\n%b\r\n" % (len(text_bytes) - 2, text_bytes[1:-1])
    return text_bytes + b"\r\n"


def unescaped(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


def pattern_of(text: str) -> list[bytes | Segment]:
    """Return `user:{id}` as literals and segments; {id:int} has a type."""
    parts: list[bytes | Segment] = []
    for part in re.split(r"(\{[^}]*\})", text):
        if part.startswith("{"):
            name, _, kind = part[1:-1].partition(":")
            parts.append(Segment(name, kind or "text"))
        elif part:
            parts.append(part.encode())
    return parts


def backed(text: str) -> dict[str, Any]:
    """Return the fields of a keyspace behind which PostgreSQL stands: stale/window, in ms."""
    stale, _, window = text.partition("/")
    duties = bytes(
        Duty.ORIGIN * (row.looks_up or row.write or row.name.endswith(b"ttl")) for row in ROWS
    )
    return {"duties": duties, "ageing": Ageing(int(window), int(stale)), "detours": True}


class Settings:
    """The lines of a conversation that stand before anybody speaks."""

    def __init__(self, lines: list[list[str]]) -> None:
        self.nodes = ["A"]
        self.clients = ["client"]
        self.spaces: list[Keyspace] = []
        self.denied: list[bytes] = []
        self.slow: set[bytes] = set()
        self.local: set[bytes] = set()
        self.limits = Limits()
        self.strangers: list[str] = []
        for word, *rest in lines:
            getattr(self, f"_{word}")(*rest)

    def _nodes(self, *names: str) -> None:
        self.nodes = list(names)

    def _clients(self, *names: str) -> None:
        self.clients = list(names)

    def _stranger(self, name: str) -> None:
        self.strangers.append(name)

    def _deny(self, *commands: str) -> None:
        self.denied += [command.lower().encode() for command in commands]

    def _slow(self, command: str) -> None:
        self.slow.add(command.lower().encode())

    def _local(self, command: str) -> None:
        self.local.add(command.lower().encode())

    def _limits(self, *texts: str) -> None:
        pairs = (text.split("=") for text in texts)
        self.limits = self.limits._replace(**{name: int(value) for name, value in pairs})

    def _keyspace(self, name: str, pattern: str, *options: str) -> None:
        parts = pattern_of(pattern)
        changes: dict[str, Any] = {}
        for option in options:
            word, _, value = option.partition("=")
            if word == "tag":
                names = [getattr(part, "name", None) for part in parts]
                literal = value.startswith("'")
                changes["hash_tag"] = value.strip("'").encode() if literal else names.index(value)
            elif word == "cluster":
                changes["cluster"] = int(value)
            elif word == "origin":
                changes |= backed(value)
            else:
                changes["denied"] = bytes(row.name == value.lower().encode() for row in ROWS)
        self.spaces.append(keyspace(name, parts, **changes))

    def rules(self) -> wire.Ruleset:
        handled = self.slow | self.local
        # A row that is a barrier stays one.
        commands = [
            row._replace(path=Route.LOCAL)
            if row.name in handled and row.path is not Route.BARRIER
            else row
            for row in ROWS
        ]
        return ruleset(
            commands=commands, keyspaces=self.spaces, roles=(role(self.limits, self.denied),)
        )


class Client:
    """One client, what it has received, and its questions to handlers."""

    def __init__(self, downstream: wire.Downstream, player: "Player") -> None:
        self.wire = downstream
        self.inbox = bytearray()
        self.player = player

    def send(self, data: bytes) -> None:
        request = self.wire.receive_data(data, self.player.now)
        while request is not None:
            if request.name in self.player.settings.slow:
                self.wire.hold()
            self.player.asked.append((self, request))
            request = self.wire.receive_data(b"", self.player.now)

    def flush(self) -> None:
        for request in self.wire.take_deferred():
            self.player.asked.append((self, request))
        self.inbox += self.wire.data_to_send()
        if self.wire.resumable:
            self.send(b"")


class Player:
    """One conversation under way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = 1.0
        self.stage = Stage(settings.rules(), len(settings.nodes))
        self.nodes = dict(zip(settings.nodes, self.stage.upstreams, strict=True))
        self.received = {name: bytearray() for name in self.nodes}
        self.clients: dict[str, Client] = {}
        for name in settings.clients:
            known = None if name in settings.strangers else "default"
            downstream = self.stage.client(known)
            self.clients[name] = downstream.owner = Client(downstream, self)
        self.asked: deque[tuple[Client, wire.Request]] = deque()
        self.answering: deque[tuple[Client, wire.Request]] = deque()
        self.parts = bytearray()
        self.parked: list[wire.Orphan] = []

    def settle(self) -> None:
        """Run loop iterations until nobody has anything to say."""
        while True:
            ready = self.stage.batch.take_ready()
            for downstream in ready:
                if downstream.owner is not None:
                    downstream.owner.flush()
            touched = self.stage.batch.take_touched()
            for name, node in self.nodes.items():
                if node in touched and node.available:
                    self.received[name] += node.data_to_send(self.now)
            if not ready and not touched:
                return

    # What a topology does with commands that must go elsewhere, in short.

    def place(self, orphans: list[wire.Orphan] | None) -> None:
        for orphan in orphans or ():
            if not orphan.wanted:
                continue
            target = orphan.address.partition(":")[0]
            if orphan.detours and orphan.kind not in ("moved", "ask"):
                orphan.answer(errors.CLUSTERDOWN, self.now)
            elif orphan.kind in ("moved", "ask") and target in self.nodes:
                if orphan.kind == "moved":
                    self.give_slot(orphan.redirect_slot, target)
                orphan.resubmit(self.nodes[target], orphan.kind == "ask")
            elif orphan.kind in ("lost", "overdue") and orphan.sent and not orphan.repeatable:
                orphan.answer(errors.UNKNOWN_OUTCOME, self.now)
            elif orphan.kind == "overdue":
                orphan.answer(errors.TIMEOUT, self.now)
            else:
                orphan.park()
                self.parked.append(orphan)

    def unpark(self) -> None:
        parked, self.parked = self.parked, []
        for orphan in parked:
            owner = self.stage.owners[orphan.slot]
            if self.now >= orphan.deadline:
                orphan.answer(orphan.reply or errors.TIMEOUT, self.now)
            elif owner >= 0 and self.stage.upstreams[owner].available:
                orphan.resubmit(self.stage.upstreams[owner], False)
            else:
                self.parked.append(orphan)

    def give_slot(self, slot: int, name: str | None) -> None:
        owner = -1 if name is None else list(self.nodes).index(name)
        self.stage.owners[slot] = owner
        self.stage.router.slots = self.stage.slot_map()

    # The lines.

    def play(self, words: list[str], text: str) -> None:
        who, verb = words[0], words[1] if len(words) > 1 else ""
        if who == "slots":
            slot = model.key_slot(words[2].encode())
            self.give_slot(slot, words[-1] if verb == "move" else None)
        elif who == "time":
            self.pass_time(float(verb))
        elif who == "part":
            take(self.parts, reply_bytes(text), who)
        elif who == "handler":
            self.handler(verb, text)
        elif who in self.clients:
            self.client(self.clients[who], verb, text)
        else:
            self.node(who, verb, text)
        self.settle()

    def client(self, client: Client, verb: str, text: str) -> None:
        if verb == "<<" or (verb == "<" and text):
            take(client.inbox, unescaped(text) if verb == "<<" else reply_bytes(text), "client")
        elif verb == "<":
            assert not client.inbox, f"it has received {bytes(client.inbox)!r}"
        elif verb == "is":
            check(client.wire, text)
        elif verb == "gone":
            client.wire.connection_lost()
        elif verb == "hears":
            client.wire.push(reply_bytes(text))
        elif verb == "finishes":
            client.wire.finish()
        elif verb in ("pauses", "reads"):
            client.wire.paused = verb == "pauses"
            if verb == "reads":
                client.flush()
        else:
            raw = verb == ">>"
            client.send(unescaped(text) if raw else model.frame(model.inline_words(text.encode())))

    def node(self, who: str, verb: str, text: str) -> None:
        node, received = self.nodes[who], self.received[who]
        if verb == "<" and text:
            take(received, model.frame(model.inline_words(text.encode())), who)
        elif verb == "<":
            assert not received, f"it has received {bytes(received)!r}"
        elif verb == "is":
            check(node, text)
        elif verb in ("away", "back"):
            node.available = verb == "back"
        elif verb == "lost":
            received.clear()
            self.place(node.connection_lost())
        else:
            data = unescaped(text) if verb == ">>" else reply_bytes(text)
            self.place(node.receive_data(data, self.now))

    def handler(self, verb: str, text: str) -> None:
        if verb == "<" and not text:
            assert not self.asked, f"it was asked {self.asked[0][1].arguments}"
        elif verb == "<":
            assert self.asked, "it was not asked anything"
            client, request = self.asked.popleft()
            reason, _, command = text.partition(" ")
            if request.reason:
                assert Reason[reason] == request.reason
            assert request.arguments == model.inline_words(
                (command if request.reason else text).encode()
            )
            if request.reason != Reason.STALE:
                self.answering.append((client, request))
        elif verb == "submits":
            client, request = self.answering[0]
            words = model.inline_words(text.encode())
            location = client.wire.locate(words[1], request.row)
            assert isinstance(location, wire.Location)
            command = model.frame([words[0], location.name, *words[2:]])
            client.wire.submit(location, command, request.row, self.now, self.parts.extend)
        elif verb == "sends":
            client, request = self.answering[0]
            commands = [model.inline_words(word.encode()) for word in text.split(";")]
            location = client.wire.locate(commands[0][1], request.row)
            assert isinstance(location, wire.Location)
            frames = b"".join(map(model.frame, [[b"MULTI"], *commands, [b"EXEC"]]))
            replies = len(commands) + 2
            client.wire.submit_unit(location, frames, replies, self.now, self.parts.extend)
        else:
            client, request = self.answering.popleft()
            client.wire.answer(request, unescaped(text) if verb == ">>" else reply_bytes(text))
            if request.name in self.settings.slow:
                client.wire.release()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for name, node in self.nodes.items():
            stuck, overdue = node.expire(self.now)
            self.place(overdue)
            if stuck:
                self.received[name].clear()
                self.place(node.connection_lost())
        self.unpark()

    def finish(self) -> None:
        for name, received in self.received.items():
            assert not received, f"{name} has received {bytes(received)!r}"
        for name, client in self.clients.items():
            assert not client.inbox, f"{name} has received {bytes(client.inbox)!r}"
            assert not client.wire.pending, f"{name} waits for {client.wire.pending} replies"
        assert not self.asked, "a handler was asked"
        assert not self.parts, "a part was answered"


def take(inbox: bytearray, expected: bytes, who: str) -> None:
    found = bytes(inbox[: len(expected)])
    assert found == expected, f"{who} has received {bytes(inbox)!r}"
    del inbox[: len(expected)]


def check(side: Any, text: str) -> None:
    """Hold a side against `blocked,!closing,pending=3`."""
    for claim in text.split(","):
        name, _, value = claim.strip().lstrip("!").partition("=")
        found = getattr(side, name)
        if value:
            assert found == int(value), f"{name} is {found}"
        else:
            assert bool(found) != claim.strip().startswith("!"), f"{name} is {found}"
