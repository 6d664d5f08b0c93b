"""What is said on a link, byte by byte."""

import pytest

from proxy.upstream.link import CHANNEL, PATTERN, SHARD, Key, Link
from tests.replies import pack

TIMEOUT = 1.0
A, B = Key(CHANNEL, b"a"), Key(CHANNEL, b"b")


class Ears:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def message(self, link: Link, key: Key, channel: bytes, frame: bytes) -> None:
        self.heard.append(("message", key, channel, frame))

    def acked(self, link: Link, key: Key) -> None:
        self.heard.append(("acked", key))

    def refused(self, link: Link, key: Key, line: bytes) -> None:
        self.heard.append(("refused", key, line))

    def ended(self, link: Link, key: Key) -> None:
        self.heard.append(("ended", key))


def push(*words: bytes | int) -> bytes:
    parts = [
        b":%d\r\n" % w if isinstance(w, int) else b"$%d\r\n%b\r\n" % (len(w), w) for w in words
    ]
    return b">%d\r\n%b" % (len(parts), b"".join(parts))


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def link(ears: Ears) -> Link:
    link = Link("h:1", TIMEOUT, ears)
    link.greeted()
    return link


def hear(link: Link, data: bytes, now: float = 0.0) -> None:
    link.receive_data(memoryview(data), now)


def test_one_command_for_each_name(link: Link, ears: Ears) -> None:
    """Every channel is asked for by itself, and is there when the node says so."""
    for key in (A, Key(PATTERN, b"p*"), Key(SHARD, b"s")):
        link.begin(key)
    asked = ((b"subscribe", b"a"), (b"psubscribe", b"p*"), (b"ssubscribe", b"s"))
    assert link.data_to_send(0.0) == b"".join(pack(*words) for words in asked)
    assert not link.complete
    data = (
        push(b"subscribe", b"a", 1) + push(b"psubscribe", b"p*", 2) + push(b"ssubscribe", b"s", 1)
    )
    for byte in data:
        hear(link, bytes([byte]))
    assert ears.heard == [("acked", A), ("acked", (PATTERN, b"p*")), ("acked", (SHARD, b"s"))]
    assert link.complete
    assert not link.pending


def test_messages(link: Link, ears: Ears) -> None:
    """A message comes with what it was subscribed as, and as the bytes that the node sent."""
    frames = [
        push(b"message", b"a", b"1\r\n2"), push(b"pmessage", b"p*", b"pq", b""),
        push(b"smessage", b"s", b"x" * 5000),
    ]  # fmt: skip
    hear(link, b"".join(frames))
    assert ears.heard == [
        ("message", A, b"a", frames[0]),
        ("message", (PATTERN, b"p*"), b"pq", frames[1]),
        ("message", (SHARD, b"s"), b"s", frames[2]),
    ]


def test_only_the_last_word_about_a_channel_counts(link: Link, ears: Ears) -> None:
    """Subscribed, left and subscribed again: the first acknowledgement is not the second."""
    link.begin(A)
    link.end(A)
    link.begin(A)
    hear(link, push(b"subscribe", b"a", 1) + push(b"unsubscribe", b"a", 0))
    assert ears.heard == []
    hear(link, push(b"subscribe", b"a", 1))
    assert ears.heard == [("acked", A)]


def test_a_refusal_names_its_channel_by_its_place(link: Link, ears: Ears) -> None:
    """An error answers the oldest command, and the others go on."""
    link.begin(A)
    link.begin(B)
    hear(link, b"-NOPERM no\r\n" + push(b"subscribe", b"b", 1))
    assert ears.heard == [("refused", A, b"-NOPERM no\r\n"), ("acked", B)]
    assert link.complete


def test_the_node_ends_a_subscription(link: Link, ears: Ears) -> None:
    """A push that nobody asked for says that the slot has moved."""
    key = Key(SHARD, b"s")
    link.begin(key)
    hear(link, push(b"ssubscribe", b"s", 1) + push(b"sunsubscribe", b"s", 0))
    assert ears.heard == [("acked", key), ("ended", key)]
    assert link.empty


def test_a_new_connection_asks_for_everything_again(link: Link, ears: Ears) -> None:
    """What is wanted survives the connection; what was half said does not."""
    link.begin(A)
    link.begin(B)
    link.end(B)
    hear(link, push(b"subscribe", b"a", 1)[:-3])
    assert link.connection_lost() == []
    assert (link.pending, link.data_to_send(0.0)) == (0, b"")
    link.greeted()
    assert link.data_to_send(0.0) == pack(b"subscribe", b"a")
    hear(link, push(b"subscribe", b"a", 1))
    assert ears.heard == [("acked", A)]


def test_no_answer_has_a_deadline(link: Link) -> None:
    """A node that says nothing at all for the timeout is given up; one that answers is not."""
    link.begin(A)
    link.begin(B)
    link.data_to_send(10.0)
    assert link.next_deadline() == 11.0
    hear(link, push(b"subscribe", b"a", 1), 10.9)
    assert link.expire(11.5) == (False, [])
    assert link.expire(11.9) == (True, [])
    hear(link, push(b"subscribe", b"b", 1), 11.9)
    assert link.expire(100.0) == (False, [])


def test_a_quiet_link_is_probed(link: Link) -> None:
    """PING is asked when nothing else is, and its answer is a sign of life."""
    link.probe()
    link.probe()
    assert link.data_to_send(0.0) == pack(b"ping")
    hear(link, b"+PONG\r\n")
    assert (link.pending, link.fault) == (0, None)


@pytest.mark.parametrize(
    "data",
    [
        b"+OK\r\n", b"hello\r\n", push(b"subscribe", b"b", 1),
        b">3\r\n$7\r\nmessage\r\n$x\r\na\r\n", b"-ERR nobody asked\r\n",
    ],
)  # fmt: skip
def test_what_no_subscriber_hears_is_a_fault(link: Link, data: bytes) -> None:
    """Bytes that answer nothing end the connection, because the place in the stream is in doubt."""
    hear(link, data)
    assert link.fault is not None


def test_a_push_of_another_kind_means_nothing(link: Link) -> None:
    """Invalidations and whatever comes later are not ours."""
    hear(link, b">2\r\n$10\r\ninvalidate\r\n*0\r\n" + b">1\r\n$5\r\nother\r\n")
    assert link.fault is None
