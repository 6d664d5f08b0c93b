"""Structured logging: one line per change of state, never one per request.

Every room logs through `event` or a `StateLog`; the application calls `configure` once. Lines are
JSON on a pipe or a file and readable text on a terminal. Records of libraries (asyncio, redis,
asyncpg, warnings) and errors that nobody caught take the same way.

Always true:
  * the caller never waits for the place where lines go: a thread of its own writes them;
  * at most LINES_PER_SECOND lines leave, whatever happens; the rest is counted in `dropped`;
  * a line is printable ASCII, so nothing that a client sends forges, splits or colours one;
  * a secret given to `conceal` appears in no line, plain or in a usual encoding.
"""

import atexit
import base64
import json
import logging
import math
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final, TextIO
from urllib.parse import quote

__all__ = [
    "DEBUG", "ERROR", "INFO", "WARNING", "Lines", "StateLog", "clean", "close", "conceal",
    "configure", "dropped", "event", "event_of", "redact",
]  # fmt: skip

# A line must stay readable in a terminal and cheap to index; an address, a name and the beginning
# of a message fit.
FIELD_CHARACTERS: Final = 256

# A traceback of a deep stack. It is the only longer field, and rare by the limits below.
TRACE_CHARACTERS: Final = 4096

# Half of what is promised (100 lines and 64 KiB per second), because a full bucket may be spent on
# top of what one second refills; of the bytes a little less, because one line may overdraw.
LINES_PER_SECOND: Final = 50.0
BYTES_PER_SECOND: Final = 28_000.0

# Of one event: a burst shows twenty nodes going down together, and one class in a loop leaves room
# for the others.
CLASS_BURST: Final = 20.0
CLASS_PER_SECOND: Final = 5.0

# Classes are names in the code and loggers of libraries, some fifty. More is somebody's mistake.
MAX_CLASSES: Final = 256

# Subjects of one StateLog: many times the nodes of two clusters, some 200 KiB.
MAX_SUBJECTS: Final = 1024

# Twenty seconds of lines at the full rate while nobody reads them, about 300 KiB.
QUEUE_LINES: Final = 1000

# Shorter ones are left alone: masking every `app` would tell the reader what was masked.
SECRET_CHARACTERS: Final = 6

CLOSE_TIMEOUT: Final = 1.0  # seconds for the last lines when the process ends

_events = logging.getLogger("sidecache")
# Up to the last @ of the authority: people forget to escape the one in their password.
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/]*@", re.IGNORECASE)
_SECRET_FIELD = re.compile(r"passw|secret|token|credential|private", re.IGNORECASE)
_MASK = "***"


class _Bucket:
    """A token bucket: capacity at once, then rate per second."""

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self._capacity = capacity
        self._rate = rate
        self._tokens = capacity
        self._filled = now

    def holds(self, cost: float, now: float) -> bool:
        refill = max(0.0, now - self._filled) * self._rate
        self._tokens = min(self._capacity, self._tokens + refill)
        self._filled = now
        return self._tokens >= cost

    def take(self, cost: float) -> None:
        self._tokens -= cost


class _Gate:
    """Decides which lines leave, and remembers per class how many did not."""

    def __init__(
        self,
        clock: Callable[[], float],
        burst: float = CLASS_BURST,
        per_second: float = CLASS_PER_SECOND,
    ) -> None:
        self._clock = clock
        self._class = burst, per_second
        self._lock = threading.Lock()
        self._lines = _Bucket(LINES_PER_SECOND, LINES_PER_SECOND, clock())
        self._bytes = _Bucket(BYTES_PER_SECOND, BYTES_PER_SECOND, clock())
        self._classes: dict[str, _Bucket] = {}
        self._missed: dict[str, int] = {}
        self.dropped = 0

    def admit(self, name: str) -> int:
        """Return how many lines of this class were dropped since its last one, or -1 to drop it."""
        with self._lock:
            now = self._clock()
            if name not in self._classes and len(self._classes) >= MAX_CLASSES:
                name = "other"
            bucket = self._classes.get(name)
            if bucket is None:
                bucket = self._classes[name] = _Bucket(*self._class, now)
            # All three are asked before one is charged: a refused line costs nothing.
            room = bucket.holds(1, now) and self._lines.holds(1, now) and self._bytes.holds(1, now)
            if not room:
                self._missed[name] = self._missed.get(name, 0) + 1
                self.dropped += 1
                return -1
            bucket.take(1)
            self._lines.take(1)
            return self._missed.pop(name, 0)

    def charge(self, size: int) -> None:
        # After the fact, because the size is known only when the line is written; the debt that
        # one long line makes is paid before the next one leaves.
        with self._lock:
            self._bytes.take(size)

    def lose(self) -> None:
        with self._lock:
            self.dropped += 1


class _Secrets:
    """What must not be written, in the encodings in which libraries and people show it."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, secret: str) -> None:
        if len(secret) < SECRET_CHARACTERS:
            return
        raw = secret.encode("utf-8", "surrogateescape")
        self._forms |= {
            secret,
            quote(secret, safe="", errors="surrogateescape"),
            repr(secret)[1:-1],
            json.dumps(secret)[1:-1],
            base64.b64encode(raw).decode().rstrip("="),
            base64.urlsafe_b64encode(raw).decode().rstrip("="),
            raw.hex(),
        }
        # Longest first, so that a secret that begins like another is masked as a whole.
        ordered = sorted(self._forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered)), re.IGNORECASE)

    def mask(self, text: str) -> str:
        text = _USERINFO.sub(rf"\1:{_MASK}@", text)
        return text if self._pattern is None else self._pattern.sub(_MASK, text)


_secrets = _Secrets()


def conceal(secret: str | bytes) -> None:
    """Never write this secret. Configuration calls it for every password and key it reads."""
    _secrets.add(secret.decode("utf-8", "surrogateescape") if isinstance(secret, bytes) else secret)


def redact(text: str) -> str:
    """Return the text with concealed secrets and passwords in URLs masked."""
    return _secrets.mask(text)


def clean(value: object, limit: int = FIELD_CHARACTERS) -> str:
    """Return a value as printable ASCII of at most limit characters."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    # Masked before it is cut, or the cut would leave the first half of a secret. The first cut
    # only bounds the work; a secret that it halves lies far behind the second one.
    text = _secrets.mask(text[: 16 * limit])[:limit]
    # Escapes all but printable ASCII, and the backslash too, so that the result is unambiguous.
    return text.encode("unicode_escape").decode("ascii")[:limit]


def _field(name: str, value: object) -> str | int | float | bool | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON knows neither NaN nor infinity
    if value is None or isinstance(value, bool | int | float):
        return value
    return _MASK if _SECRET_FIELD.search(name) else clean(value)


def _document(record: logging.LogRecord) -> dict[str, object]:
    """Return what a line says, in the order in which it is said."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    document: dict[str, object] = {
        "time": f"{moment}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
    }
    fields: dict[str, object] | None = getattr(record, "fields", None)
    if fields is None:
        document |= {"event": clean(record.name), "message": clean(record.getMessage())}
    else:
        document["event"] = clean(record.msg)
        for name, value in fields.items():
            document.setdefault(clean(name), _field(name, value))
    if suppressed := getattr(record, "suppressed", 0):
        document["suppressed"] = suppressed
    if record.exc_info and record.exc_info[1] is not None:
        lines = "".join(traceback.format_exception(record.exc_info[1]))
        # The end of a traceback says what happened, so that is what the cut keeps.
        document["trace"] = clean(lines[-TRACE_CHARACTERS:], TRACE_CHARACTERS)
    return document


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_document(record), ensure_ascii=True)


class _TextFormatter(logging.Formatter):
    """For a person at a terminal: time of day, level, event, then name=value."""

    def format(self, record: logging.LogRecord) -> str:
        document = _document(record)
        moment, level, name = (str(document.pop(key)) for key in ("time", "level", "event"))
        trace = str(document.pop("trace", ""))
        words = [moment[11:23], f"{level:7}", name]
        for key, value in document.items():
            text = str(value)
            words.append(f"{key}={json.dumps(text) if ' ' in text or not text else text}")
        # Line breaks come back only here, indented, where no program takes lines apart.
        return " ".join(words) + "".join(f"\n    {line}" for line in trace.split("\\n") if line)


class _Tail:
    """A thread that writes lines, so that a full pipe or disk stops nobody else."""

    def __init__(self, stream: TextIO, lose: Callable[[], None]) -> None:
        self._stream = stream
        self._lose = lose
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Have a line written. Raises queue.Full."""
        self._lines.put_nowait(line)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                # Disk full, reader gone, stream closed: the next line may find it well again.
                self._lose()

    def finish(self, timeout: float) -> None:
        """Write what is queued, then end the thread; give up after timeout seconds."""
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)


class Lines:
    """Lines of a file of their own, one JSON object each, within the limits of the log.

    What is dropped is counted by `lost`, called from any thread.
    """

    def __init__(
        self,
        stream: TextIO,
        lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gate = _Gate(clock, LINES_PER_SECOND, LINES_PER_SECOND)
        self._lost = lost
        self._tail = _Tail(stream, lost)

    def admit(self) -> bool:
        """Return whether a line may be written now; asked before it is made."""
        admitted = self._gate.admit("line") >= 0
        if not admitted:
            self._lost()
        return admitted

    def write(self, document: dict[str, object]) -> None:
        line = json.dumps(document, ensure_ascii=True) + "\n"
        self._gate.charge(len(line))
        try:
            self._tail.put(line)
        except queue.Full:
            self._lost()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        self._tail.finish(timeout)


class _Writer(logging.Handler):
    """Has lines of the process written."""

    def __init__(self, stream: TextIO, gate: _Gate) -> None:
        super().__init__()
        self._gate = gate
        self._tail = _Tail(stream, gate.lose)

    @property
    def dropped(self) -> int:
        return self._gate.dropped

    def admit(self, name: str) -> int:
        return self._gate.admit(name)

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "fields"):  # a library's; ours are admitted by `event`
            suppressed = self._gate.admit(record.name)
            if suppressed < 0:
                return
            record.__dict__["suppressed"] = suppressed
        try:
            line = self.format(record) + "\n"
            self._gate.charge(len(line))
            self._tail.put(line)
        except Exception:
            # A full queue, or a value whose text cannot be had. Saying so would be another line.
            self._gate.lose()

    def finish(self, timeout: float) -> None:
        self._tail.finish(timeout)


_writer: _Writer | None = None


def configure(
    stream: TextIO | None = None,
    *,
    human: bool | None = None,
    level: int = INFO,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send every line of the process to stream (standard error), as text when it is a terminal."""
    global _writer
    close()
    target = sys.stderr if stream is None else stream
    readable = target.isatty() if human is None else human
    _writer = _Writer(target, _Gate(clock))
    _writer.setFormatter(_TextFormatter() if readable else _JSONFormatter())
    root = logging.getLogger()
    root.addHandler(_writer)
    # Libraries speak when something is wrong; we speak at the level that is asked for.
    root.setLevel(WARNING)
    _events.setLevel(level)
    logging.captureWarnings(True)
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_failed
    atexit.register(close)


def close(timeout: float = CLOSE_TIMEOUT) -> None:
    """Write the last lines and put everything back as Python has it. May be called twice."""
    global _writer
    writer, _writer = _writer, None
    if writer is None:
        return
    logging.getLogger().removeHandler(writer)
    logging.captureWarnings(False)
    sys.unraisablehook = sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    atexit.unregister(close)
    writer.finish(timeout)


def dropped() -> int:
    """Return how many lines were dropped since `configure`."""
    return 0 if _writer is None else _writer.dropped


def event(level: int, name: str, /, **fields: object) -> None:
    """Log one line: name is the class of the event, constant in the code; fields are its facts.

    A field `error` that is an exception is written with its traceback, as `trace`.
    """
    event_of(level, name, lambda: fields)


def event_of(level: int, name: str, facts: Callable[[], Mapping[str, object]]) -> None:
    """Do the same, where the fields cost something: they are asked for if the line leaves."""
    if not _events.isEnabledFor(level):
        return
    # Asked before a record is made, so that a storm costs a look at three buckets per event.
    suppressed = 0 if _writer is None else _writer.admit(name)
    if suppressed >= 0:
        fields = facts()
        error = fields.get("error")
        trace = error if isinstance(error, BaseException) else None
        _events.log(level, name, exc_info=trace, extra={"fields": fields, "suppressed": suppressed})


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    # Compiled code that may not raise reports here, and would write to standard error by itself.
    event(ERROR, "unraisable", error=args.exc_value, place=repr(args.object))


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    thread = "unknown" if args.thread is None else args.thread.name
    event(ERROR, "thread_failed", error=args.exc_value, thread=thread)


class StateLog:
    """Remembers the state of each subject and logs a line only when it becomes another.

    A subject is a node, a cluster, the origin: something that configuration or topology names.
    Those that changed longest ago are forgotten beyond MAX_SUBJECTS, because addresses come and go.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states: dict[str, tuple[str, float]] = {}

    def change(self, level: int, subject: str, state: str, name: str, /, **fields: object) -> bool:
        """Log the event name when subject was in another state, and say whether it was."""
        now = self._clock()
        before = self._states.get(subject)
        if before is not None and before[0] == state:
            return False
        self._states.pop(subject, None)
        self._states[subject] = (state, now)
        if len(self._states) > MAX_SUBJECTS:
            del self._states[next(iter(self._states))]
        if before is not None:
            fields |= {"was": before[0], "lasted": round(now - before[1], 3)}
        event(level, name, **fields)
        return True

    def state(self, subject: str) -> str | None:
        return None if (known := self._states.get(subject)) is None else known[0]
