"""What is shown of a command: its beginning, and how much more there was."""

from proxy.handlers.glimpse import MOST_ENTRIES, Parts, SlowLog, words_of, words_shown
from tests.replies import pack
from tests.wire.stage import Stage


def test_short_commands_are_shown_whole() -> None:
    """Every word of a short command is shown as it is."""
    assert words_of(pack(b"SET", b"a", b"")) == [b"SET", b"a", b""]


def test_long_commands_are_counted() -> None:
    """Of many words 31 are shown, of a long word 128 bytes, and the rest is counted."""
    words = words_of(pack(b"MGET", *[b"k%d" % n for n in range(99)]))
    assert (len(words), words[30:]) == (32, [b"k29", b"... (69 more arguments)"])
    assert words_of(pack(b"SET", b"a", b"v" * 200))[2] == b"v" * 128 + b"... (72 more bytes)"


def test_a_frame_may_be_cut() -> None:
    """Of a frame that is cut anywhere, what is there is shown and what is missing is counted."""
    frame = pack(b"SET", b"key", b"v" * 200)
    for size in range(4, len(frame)):
        words = words_of(frame[:size])
        assert len(words) == 3 or words[-1].endswith(b"more arguments)")


def test_words_that_are_taken_apart_already() -> None:
    """Of words and their sizes the same is shown as of the frame that they come from."""
    for words in ([b"GET", b"a"], [b"SET", b"a", b"v" * 200], [b"DEL", *[b"k"] * 40]):
        sizes = [len(word) for word in words][:32]
        assert words_shown([word[:130] for word in words[:32]], sizes, len(words)) == words_of(
            pack(*words)
        )


def test_the_log_is_bounded() -> None:
    """The newest entries stay, numbered on."""

    class Client:
        name = b"worker"
        peer = "10.0.0.1:40001"
        user = "default"

    log = SlowLog()
    for number in range(MOST_ENTRIES + 2):
        log.note(Client(), [b"GET", b"%d" % number], Parts(1, 2, 3, 4), {})
    assert len(log.entries) == MOST_ENTRIES
    newest = log.entries[0]
    assert (newest.number, newest.microseconds) == (MOST_ENTRIES + 1, 10)
    assert (newest.words[1], newest.name) == (b"%d" % (MOST_ENTRIES + 1), b"worker")


def test_the_four_parts() -> None:
    """Each part ends where the next begins; what did not happen took no time."""
    stage = Stage()
    stage.batch.sketches.look(1.0, 0.0)
    seen: list[Parts] = []
    stage.batch.on_seen = lambda owner, traces: seen.extend(Parts.of(t, 2.0) for t in traces)
    stage.batch.clock = lambda: 1.25
    client = stage.client()
    client.receive_data(pack(b"GET", b"a"), 1.0)
    stage.upstreams[0].data_to_send(1.5)
    stage.upstreams[0].receive_data(b"$-1\r\n", 1.875)
    client.data_to_send()
    client.receive_data(pack(b"GET"), 1.0)
    client.data_to_send()
    assert seen == [Parts(250_000, 250_000, 375_000, 125_000), Parts(250_000, 0, 0, 750_000)]
