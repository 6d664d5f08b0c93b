"""Log lines: what they say, what they never say, and how many there may be."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from proxy import log
from tests.quiet import without_collector


class Clock:
    """A clock that stands still until it is moved, or takes a step at every look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 100.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    log.close()


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    log.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(step: float = 1.0, *, human: bool = False) -> io.StringIO:
    """Configure into a string; by default no line is refused, because a second passes for each."""
    stream = io.StringIO()
    log.configure(stream, human=human, clock=Clock(step))
    return stream


def test_a_line_is_one_object_with_time_level_event_and_fields() -> None:
    """A line is a JSON object that says when, how bad, what, and the facts."""
    stream = configured()
    log.event(log.WARNING, "node_down", cluster="locks", node="127.0.0.1:7000", tries=3, ratio=0.5)
    (line,) = lines_of(stream)
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "warning",
        "event": "node_down",
        "cluster": "locks",
        "node": "127.0.0.1:7000",
        "tries": 3,
        "ratio": 0.5,
    }


def test_a_terminal_gets_text() -> None:
    """On a terminal a line reads time, level, event, name=value."""
    stream = configured(human=True)
    log.event(log.INFO, "ready", address="127.0.0.1:6379", note="two words")
    log.close()
    assert stream.getvalue().split(maxsplit=3)[1:] == [
        "info",
        "ready",
        'address=127.0.0.1:6379 note="two words"\n',
    ]


def test_the_level_holds_back_details() -> None:
    """Debug lines appear only when asked for."""
    stream = configured()
    log.event(log.DEBUG, "detail")
    log.event(log.INFO, "fact")
    assert [line["event"] for line in lines_of(stream)] == ["fact"]


def hostile_events() -> None:
    """Log 2,000 times what a client might send as name and key."""
    chance = random.Random(7)
    for n in range(1000):
        raw = chance.randbytes(chance.randrange(600))
        log.event(log.INFO, "seen", key=raw, name=raw.decode("latin-1"), n=n)
        odd = "".join(chr(chance.choice((0, 10, 13, 27, 127, 0x85, 0x202E, 0x2028))) for _ in "ab")
        log.event(log.INFO, "seen", key=odd + '"}\n{"level":"error"', n=n)


def test_hostile_text_cannot_forge_a_line() -> None:
    """Whatever bytes a client sends, each event is one line of printable ASCII that parses."""
    stream = configured()
    hostile_events()
    dropped = log.dropped()
    log.close()
    text = stream.getvalue()
    assert all(character == "\n" or " " <= character <= "~" for character in text)
    found = [json.loads(line) for line in text.splitlines()]
    assert all(line["event"] == "seen" and line["level"] == "info" for line in found)
    # What a reader unpacks and prints is as harmless as the line.
    assert all(line["key"].isprintable() for line in found)
    assert all(len(line["key"]) <= log.FIELD_CHARACTERS for line in found)
    assert len(found) + dropped == 2000


def test_hostile_text_cannot_forge_what_a_terminal_shows() -> None:
    """On a terminal, too, an event is one line, without colours, bells or reversed writing."""
    stream = configured(human=True)
    hostile_events()
    dropped = log.dropped()
    log.close()
    lines = stream.getvalue().split("\n")
    assert all(" " <= character <= "~" for line in lines for character in line)
    assert len(lines) - 1 + dropped == 2000


def test_numbers_that_json_does_not_know_still_parse() -> None:
    """Infinity and NaN are written as text."""
    stream = configured()
    log.event(log.INFO, "odd", first=float("inf"), second=float("nan"))
    assert "Infinity" not in stream.getvalue()
    assert [(line["first"], line["second"]) for line in lines_of(stream)] == [("inf", "nan")]


SECRET = 'p@ss "wörd"/\\+€ 123'


@pytest.mark.parametrize(
    "form",
    [
        str,
        repr,
        json.dumps,
        lambda s: quote(s, safe=""),
        lambda s: base64.b64encode(s.encode()).decode(),
        lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
        lambda s: s.encode().hex(),
    ],
)
@pytest.mark.parametrize("human", [True, False])
def test_a_secret_is_never_written(form: Callable[[str], str], human: bool) -> None:
    """A concealed secret shows in no field, message or traceback, in no usual encoding."""
    stream = configured(human=human)
    log.conceal(SECRET)
    shown = form(SECRET)
    assert shown.strip("\"'=") not in log.redact(f"before {shown} after")
    log.event(log.INFO, "told", text=f"before {shown} after", long="x" * 250 + shown)
    logging.getLogger("redis").warning("cannot log in with %s", shown)
    try:
        raise ValueError(shown)
    except ValueError as error:
        log.event(log.ERROR, "failed", error=error)
    log.close()
    text = stream.getvalue()
    escaped = shown.encode("unicode_escape").decode()
    for face in (shown, escaped, json.dumps(escaped)[1:-1], shown.strip("\"'=")):
        assert face not in text
    assert text.count("***") >= 3


def test_fields_and_urls_that_hold_secrets_are_masked_unasked() -> None:
    """A field named like a secret and the password of a URL are masked even when unknown."""
    stream = configured()
    log.event(log.INFO, "odd", password="hunter2", url="redis://user:hun@ter2@127.0.0.1:7000/0")
    (line,) = lines_of(stream)
    assert line["password"] == "***"
    assert line["url"] == "redis://user:***@127.0.0.1:7000/0"


def test_a_short_secret_does_not_mangle_every_line() -> None:
    """A secret of a few letters is left alone: masking it everywhere would give it away."""
    log.conceal("app")
    assert log.redact("user app of application") == "user app of application"


@pytest.mark.parametrize("classes", [1, 100, 100_000])
def test_a_storm_of_events_is_cut_to_the_promised_rate(classes: int) -> None:
    """A storm leaves at most 100 lines and 64 KiB in any second, and the rest is counted."""
    stream = io.StringIO()
    clock = Clock()
    log.configure(stream, human=False, clock=clock)
    total, per_second = 0, []
    for second in range(5):
        for n in range(1000):
            clock.now = 100.0 + second + n / 2000
            log.event(
                log.ERROR,
                f"storm{total % classes}",
                second=second,
                text="\\" * 999,
                more="\\" * 999,
            )
            total += 1
    dropped = log.dropped()
    log.close()
    text = stream.getvalue().splitlines()
    for second in range(5):
        of_second = [line for line in text if json.loads(line)["second"] == second]
        per_second.append(len(of_second))
        assert sum(len(line) + 1 for line in of_second) <= 65_536
    assert max(per_second) <= 100
    assert min(per_second) >= 1
    assert len(text) + dropped == total


def test_a_class_in_a_loop_leaves_room_for_others() -> None:
    """While one event storms, the first line of another still leaves."""
    stream = io.StringIO()
    log.configure(stream, human=False, clock=Clock())
    for _ in range(10_000):
        log.event(log.ERROR, "storm")
    log.event(log.ERROR, "node_down")
    assert [line["event"] for line in lines_of(stream)][-1] == "node_down"


def test_the_line_after_a_storm_says_how_many_were_dropped() -> None:
    """The next line of a class carries the number of its lines that were not written."""
    stream = io.StringIO()
    clock = Clock()
    log.configure(stream, human=False, clock=clock)
    for _ in range(1000):
        log.event(log.ERROR, "storm")
    clock.now += 10
    log.event(log.ERROR, "storm")
    found = lines_of(stream)
    assert found[-1]["suppressed"] == 1000 - (len(found) - 1)


def test_the_logger_of_asyncio_is_limited_too() -> None:
    """Errors that asyncio reports by itself are lines like ours, under the same limits."""
    stream = io.StringIO()
    log.configure(stream, human=False, clock=Clock())
    loop = asyncio.new_event_loop()
    for _ in range(1000):
        loop.call_exception_handler({"message": "socket.accept() out of system resource"})
    loop.close()
    found = lines_of(stream)
    assert {line["event"] for line in found} == {"asyncio"}
    assert 1 <= len(found) <= 100


def test_warnings_threads_and_unraisable_errors_become_lines() -> None:
    """What Python would print to standard error by itself is a line as well."""

    class Broken:
        def __del__(self) -> None:
            raise RuntimeError("cannot be raised")

    stream = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    Broken()
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    found = {str(line["event"]): line for line in lines_of(stream)}
    assert set(found) == {"py.warnings", "unraisable", "thread_failed"}
    assert "ZeroDivisionError" in str(found["thread_failed"]["trace"])
    assert "cannot be raised" in str(found["unraisable"]["trace"])


def test_a_reader_that_stopped_delays_nobody() -> None:
    """When nobody takes the lines from a full pipe, logging returns at once and counts the loss."""
    reading, writing = os.pipe()
    pipe = open(writing, "w", encoding="ascii")  # noqa: SIM115 (closing it fails)
    try:
        log.configure(pipe, human=False, clock=Clock(step=0.1))
        slowest = 0.0
        with without_collector():
            for n in range(2000):
                begun = time.thread_time()
                log.event(log.ERROR, f"class{n % 100}", text="x" * 300)
                slowest = max(slowest, time.thread_time() - begun)
        assert log.dropped() > 0
        assert slowest < 0.05
    finally:
        os.close(reading)
        log.close()
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


class Full(io.StringIO):
    """A volume that is full for the first three lines."""

    refused = 0

    def write(self, text: str) -> int:
        if self.refused < 3:
            self.refused += 1
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_is_survived() -> None:
    """Lines that cannot be written are counted, and the next ones are written again."""
    stream = Full()
    log.configure(stream, human=False, clock=Clock(step=1.0))
    for n in range(5):
        log.event(log.INFO, "fact", n=n)
    found = lines_of(stream)
    assert [line["n"] for line in found] == [3, 4]


def test_the_last_lines_of_a_process_are_written() -> None:
    """A process that ends right after an event has written it."""
    program = "from proxy import log; log.configure(); log.event(log.INFO, 'bye', n=1)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(done.stderr)["event"] == "bye"


def test_only_a_change_of_state_is_logged() -> None:
    """The same state again is silent; another one says what was before and how long it lasted."""
    stream = configured()
    clock = Clock()
    states = log.StateLog(clock)
    assert states.change(log.WARNING, "n1", "down", "node_down", node="n1", reason="timeout")
    for _ in range(1000):
        assert not states.change(log.WARNING, "n1", "down", "node_down", node="n1")
    clock.now += 2.5
    assert states.change(log.INFO, "n1", "up", "node_up", node="n1")
    assert states.state("n1") == "up"
    down, up = lines_of(stream)
    assert (down["event"], down["reason"]) == ("node_down", "timeout")
    assert (up["event"], up["was"], up["lasted"]) == ("node_up", "down", 2.5)


def test_states_of_what_is_gone_are_forgotten() -> None:
    """Addresses that come and go do not pile up: what changed longest ago is unknown again."""
    stream = configured()
    states = log.StateLog()
    for n in range(2 * log.MAX_SUBJECTS):
        states.change(log.INFO, f"node {n}", "up", "node_up")
        states.change(log.INFO, "steady", str(n % 2), "node_up")
    assert states.state("node 0") is None
    assert states.state(f"node {2 * log.MAX_SUBJECTS - 1}") == "up"
    assert states.state("steady") == "1"
    assert lines_of(stream)
