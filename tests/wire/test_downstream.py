"""The client's end judges, routes and orders as the reference says, whatever comes when."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import errors, wire
from proxy.commands import COMMANDS, INDEX, ROWS, Row
from proxy.wire.rules import KeyKind, Path, Reason
from tests.rounds import in_rounds
from tests.wire import model, streams
from tests.wire.player import backed, pattern_of
from tests.wire.stage import SLOTS, Stage, keyspace, ruleset

NODES = 3
KEYS = [b"a", b"b", b"c", b"{b}1", b"{b}2", b"{b}3"]
OPTIONS = [
    b"STORE", b"storedist", b"BY", b"GET", b"LIMIT", b"COUNT", b"BLOCK", b"STREAMS", b"GROUP",
    b"NOACK", b"MATCH", b"ASC", b"DB", b"AND", b"m", b"0", b"1", b"2", b"3", b"01", b"-1", b" 1",
    b"x y", b"", b"$", b"999999999999",
]  # fmt: skip

# Every row as a Request, so that what the data plane takes for keys can be seen.
SEEN = ruleset(
    commands=[row if row.path is Path.CONTAINER else row._replace(path=Path.LOCAL) for row in ROWS]
)
# Plain calls of these would be rare among random words.
STREAMS = [
    [b"COUNT", b"1", b"STREAMS", b"b", b"0"],
    [b"block", b"0", b"streams", b"b", b"{b}1", b"$", b"$"],
    [b"GROUP", b"g", b"c", b"NOACK", b"STREAMS", b"b", b"{b}1", b"0", b"0"],
]


def call(row: Row, chance: random.Random) -> list[bytes]:
    """Return a call of a command with as many words as it may have, keys and options at random."""
    named = row.name.split(b"|")
    few = max(abs(row.arity) - len(named), 0)
    count = few if row.arity > 0 else few + chance.randrange(7)
    tail = [chance.choice(chance.choice([KEYS, KEYS, OPTIONS])) for _ in range(count)]
    if row.keys.kind is KeyKind.STREAMS and chance.random() < 0.6:
        tail = chance.choice([*STREAMS, [*tail, *STREAMS[0]]])
    return [*named, *tail]


def test_keys_are_where_the_reference_sees_them() -> None:
    """For every row, with any arguments, keys are found in the same places or are uncertain."""
    client = Stage(SEEN).client()
    for row in COMMANDS:
        chance = random.Random(row.name)
        plain = row.keys.kind in (KeyKind.NONE, KeyKind.RANGE)
        for _ in range(20 if plain else 1000):
            words = call(row, chance)
            request = client.receive_data(model.frame(words), 1.0)
            if row.path is Path.CONTAINER or not row.arity_fits(len(words)):
                assert request is None or request.row == -1 or row.path is Path.CONTAINER
                found = expected = []
            else:
                assert request is not None
                assert request.name == row.name
                found, expected = request.keys, keys_of(row, words) or []
            if request is not None:
                client.answer(request, b"+OK\r\n")
            assert found == expected, words


def keys_of(row: Row, words: list[bytes]) -> list[int] | None:
    """Return where the keys are; a key without its value makes them uncertain too."""
    paired = row.keys.kind is KeyKind.RANGE and row.keys.step > 1
    if paired and (len(words) - row.keys.first) % row.keys.step:
        return None
    return model.find_keys(row, words)


def row_of(words: list[bytes]) -> Row | None:
    name = words[0].lower()
    row = COMMANDS[INDEX[name]] if name in INDEX and b"|" not in name else None
    if row is not None and row.path is Path.CONTAINER and len(words) > 1:
        name += b"|" + words[1].lower()
        row = COMMANDS[INDEX[name]] if name in INDEX else None
    return row


def blocks(words: list[bytes]) -> bool:
    """Return whether an XREAD with certain keys has the option BLOCK."""
    values = {b"COUNT": 1, b"GROUP": 2}
    at = 1
    while words[at].upper() not in (b"STREAMS", b"BLOCK"):
        at += 1 + values.get(words[at].upper(), 0)
    return words[at].upper() == b"BLOCK"


def verdict(words: list[bytes]) -> tuple[str, int]:
    """Return what is to become of a command: "forward" to a node, "request" or "error"."""
    row = row_of(words)
    if row is None:
        return "request", -1
    if not row.arity_fits(len(words)) or row.path is Path.REFUSED:
        return "error", -1
    if row.path not in (Path.FORWARD, Path.SPLIT):
        return "request", -1
    keys = keys_of(row, words)
    if not keys:
        return "error", -1
    if row.keys.kind is KeyKind.STREAMS and blocks(words):
        return "request", -1
    slots = {model.key_slot(words[at]) for at in keys}
    if len(slots) > 1:
        return ("request" if row.path is Path.SPLIT else "error"), -1
    return "forward", slots.pop() * NODES // SLOTS


BUSY = [
    b"get", b"set", b"mget", b"mset", b"del", b"rename", b"ping", b"hello", b"zunion", b"xread",
    b"xreadgroup", b"georadius", b"georadiusbymember", b"object|encoding", b"client|id", b"lmpop",
    b"keys", b"zunionstore", b"eval", b"copy", b"sort", b"msetnx", b"lcs", b"client",
]  # fmt: skip
calls = st.builds(
    lambda name, seed: call(COMMANDS[INDEX[name]], random.Random(seed)),
    st.sampled_from(BUSY),
    st.integers(0, 2**32),
)
pipelines = st.lists(
    calls | st.sampled_from([[b"nonsense", b"x"], [b"object|freq", b"x", b"b"]]),
    min_size=1,
    max_size=30,
)


class Play:
    """A client's pipeline against nodes and handlers that answer with the command itself."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 1.0
        self.stage = Stage(nodes=NODES)
        self.client = self.stage.client()
        self.sent = [b""] * NODES  # what each node has received
        self.owed = [b""] * NODES  # what each node has still to say
        self.out = b""
        self.questions: list[wire.Request] = []

    def feed(self, data: bytes) -> None:
        request = self.client.receive_data(data, self.now)
        while request is not None:
            self.questions.append(request)
            request = self.client.receive_data(b"", self.now)

    def step(self) -> bool:
        """Let somebody who has something to say say some of it; False when nobody has."""
        able: list[Any] = []
        nodes = self.stage.upstreams
        able += [lambda n=n: self.receive(n) for n in range(NODES) if nodes[n].unsent_bytes]
        able += [lambda n=n: self.speak(n) for n in range(NODES) if self.owed[n]]
        able += [self.handle] if self.questions else []
        able += [lambda: self.feed(b"")] if self.client.resumable else []
        if able:
            self.chance.choice(able)()
        self.out += self.client.data_to_send()
        self.stage.batch.take_ready()
        self.stage.batch.take_touched()
        return bool(able)

    def receive(self, n: int) -> None:
        data = self.stage.upstreams[n].data_to_send(1.0)
        self.sent[n] += data
        for words in model.requests(data)[0]:
            self.owed[n] += echo(model.frame(words))

    def speak(self, n: int) -> None:
        size = self.chance.randint(1, len(self.owed[n]))
        data, self.owed[n] = self.owed[n][:size], self.owed[n][size:]
        assert self.stage.upstreams[n].receive_data(data, 1.0) is None

    def handle(self) -> None:
        request = self.questions.pop(self.chance.randrange(len(self.questions)))
        self.client.answer(request, echo(request.command))


def echo(command: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(command), command)


def play_pipeline(pipeline: list[list[bytes]], where: list[int], seed: int) -> None:
    data = b"".join(model.frame(words) for words in pipeline)
    play = Play(random.Random(seed))
    for piece in streams.cuts(data, where):
        play.feed(piece)
        for _ in range(play.chance.randrange(4)):
            play.step()
    while play.step():
        pass
    verdicts = [verdict(words) for words in pipeline]
    for n in range(NODES):
        expected = [words for words, (_, node) in zip(pipeline, verdicts, strict=True) if node == n]
        assert model.requests(play.sent[n])[0] == expected
    answers, fault = model.replies(play.out)
    assert (len(answers), fault) == (len(pipeline), False)
    for words, (what, _), answer in zip(pipeline, verdicts, answers, strict=True):
        assert answer[:1] == b"-" if what == "error" else answer == echo(model.frame(words))
    assert play.client.pending == 0


cut_places = st.lists(st.integers(0, 3000), max_size=8)
seeds = st.integers(0, 2**32)


@given(pipelines, cut_places, seeds)
@settings(max_examples=100, deadline=None)
def test_pipelines_are_routed_and_answered_in_order(
    pipeline: list[list[bytes]], where: list[int], seed: int
) -> None:
    """Each command reaches the node of its keys, and replies come in the client's order."""
    play_pipeline(pipeline, where, seed)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_pipelines() -> None:
    """The same for about half a million commands."""
    in_rounds(30_000, play_pipeline, pipelines, cut_places, seeds)


def test_a_request_is_answered_once() -> None:
    """A second answer to a Request is a mistake of the caller; one for a vanished client is not."""
    client = Stage(SEEN).client()
    request = client.receive_data(model.frame([b"GET", b"k"]), 1.0)
    other = client.receive_data(model.frame([b"GET", b"k"]), 1.0)
    assert request is not None
    assert other is not None
    client.answer(request, b"+OK\r\n")
    with pytest.raises(RuntimeError, match="once"):
        client.answer(request, b"+OK\r\n")
    client.connection_lost()
    client.answer(other, b"+OK\r\n")
    assert client.data_to_send() == b""


def test_new_rules_count_from_the_next_command() -> None:
    """A reload is adopted when nothing is pending, and a role that is gone makes a stranger."""
    stage = Stage()
    client = stage.client()
    client.receive_data(model.frame([b"GET", b"k"]), 1.0)
    stage.router.ruleset = ruleset(roles=())
    client.receive_data(model.frame([b"GET", b"k"]), 1.0)
    assert client.blocked
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"+OK\r\n", 1.0)
    assert client.resumable
    client.receive_data(b"", 1.0)
    assert client.data_to_send() == b"+OK\r\n-NOAUTH Authentication required.\r\n"


def test_a_silent_client_can_be_given_new_rules() -> None:
    """Who sends nothing takes new rules when asked to, and not while something is under way."""
    stage = Stage()
    client = stage.client()
    client.receive_data(model.frame([b"GET", b"k"]), 1.0)
    before = stage.router.ruleset
    stage.router.ruleset = ruleset()
    client.adopt()
    assert client.ruleset is before
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"+OK\r\n", 1.0)
    assert client.ruleset is before
    client.adopt()
    assert client.ruleset is stage.router.ruleset
    assert client.role == 0


def test_new_rules_spoil_what_is_captured() -> None:
    """A client that captures takes new rules as any other, and what it has captured is marked."""
    stage = Stage()
    client = stage.client()
    client.capture = True
    client.adopt()
    assert not client.spoiled
    stage.router.ruleset = ruleset()
    client.adopt()
    assert client.ruleset is stage.router.ruleset
    assert client.spoiled


@pytest.mark.parametrize("name", [b"CLIENT|SETNAME", b"config|get", b"OBJECT|ENCODING"])
def test_a_sub_command_is_two_words(name: bytes) -> None:
    """The name of its row, sent as one word, is no command."""
    client = Stage(SEEN).client()
    request = client.receive_data(model.frame([name, b"x", b"hello"]), 1.0)
    assert request is not None
    assert request.row == -1
    client.answer(request, b"-ERR\r\n")
    request = client.receive_data(model.frame([*name.split(b"|"), b"hello"]), 1.0)
    assert request is not None
    assert request.name == name.lower()


def test_an_idle_client_keeps_no_buffer() -> None:
    """What one large command needed is given back when it is taken and answered."""
    stage = Stage()
    client = stage.client()
    data = model.frame([b"SET", b"k", b"x" * 1_000_000])
    client.receive_data(data[:999_999], 1.0)
    assert client.held_bytes == 999_999
    client.receive_data(data[999_999:], 1.0)
    assert client.held_bytes == 0
    assert stage.upstreams[0].data_to_send(1.0) == data


def test_a_client_wakes_its_batch_once() -> None:
    """However many replies come in an iteration, a client is in the list once."""
    stage = Stage()
    client = stage.client()
    for _ in range(3):
        client.receive_data(model.frame([b"GET", b"k"]), 1.0)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"+1\r\n+2\r\n+3\r\n", 1.0)
    assert stage.batch.take_ready() == [client]
    assert stage.batch.take_touched() == stage.upstreams
    assert client.data_to_send() == b"+1\r\n+2\r\n+3\r\n"


def test_a_look_up_at_the_end_of_a_full_queue() -> None:
    """Where only the question of time has room, the look-up is refused and nobody is confused."""
    user = keyspace("user", pattern_of("user:{id}"), **backed("2000/5000"))
    stage = Stage(ruleset(keyspaces=[user]), 1)
    filler = stage.client()
    location = filler.locate(b"x", 0)
    assert isinstance(location, wire.Location)
    for _ in range(99_998):
        filler.submit(location, b"*1\r\n$4\r\nPING\r\n", -1, 1.0, lambda reply: None)
    look_up = model.frame([b"GET", b"user:1"])
    first, second, third = (stage.client() for _ in range(3))
    assert first.receive_data(look_up, 1.0) is None
    assert first.pending == 1
    (node,) = stage.upstreams
    assert node.pending == 100_000
    request = second.receive_data(look_up, 1.0)
    assert request is not None
    assert request.reason == Reason.AWAY
    node.data_to_send(1.0)
    node.receive_data(b"+PONG\r\n", 1.0)
    assert third.receive_data(look_up, 1.0) is None
    assert third.data_to_send() == errors.DATA_PLANE.overloaded


def test_names_of_the_proxys_own_are_refused() -> None:
    """Who could write leases, markers or counts could undo rules."""
    client = Stage(ruleset(), 1).client()
    client.receive_data(model.frame([b"SET", b"sidecache:none:{user:1}", b""]), 1.0)
    assert client.data_to_send() == errors.DATA_PLANE.reserved
    client.receive_data(model.frame([b"SET", b"sidecache", b""]), 1.0)
    assert client.pending == 1
