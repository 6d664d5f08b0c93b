"""What an operator sees of traffic: the access log, the slow log, hot keys and big keys.

Made by `server`; `wire` tells it of commands that were sampled or slow, and counts keys itself; the
admin port shows what it knows. The keys of one process have one hash in all reports.

A line of the access log, and of /slowlog, is a JSON object:
  time; user and client, its number as in CLIENT LIST; command, its words as `handlers.masks` tells
  them, and lengths, the bytes of placeholders that are shorter than that, by their place; name,
  keyspace, keys; in and out, bytes; outcome, of `wire.OUTCOMES`, and error, the code of an error
  reply; node, where one answered; policy_us, queue_us, upstream_us, write_us: see `glimpse.Parts`.
Always true: every line is printable ASCII and within the limits of `log`; names of keys and values
are told only where the configuration says so, secrets never; nothing here is done for a command
that was neither sampled nor slow, and for one that was slow little, until somebody reads of it.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TextIO
from urllib.parse import parse_qs

from proxy import log, wire
from proxy.commands import COMMANDS
from proxy.config import AccessLog, Config
from proxy.errors import ConfigError, StartError
from proxy.handlers import masks
from proxy.handlers.glimpse import Client as Named
from proxy.handlers.glimpse import Parts, SlowLog, words_shown
from proxy.keys import client_name
from proxy.metrics import Metrics
from proxy.units import parse_percentage
from proxy.wire.rules import Keyspace

# Half of what was seen of keys counts after this: an hour's habit gives way within minutes.
HALF_LIFE: Final = 60.0  # seconds

# Of the hottest keys; the sketch knows ten times as many, so that these are right.
SHOWN: Final = 100

# Commands that wait on purpose, where a handler runs them: Redis notes the running of them only.
WAITING: Final = {row.name for row in COMMANDS if "blocking" in row.flags} | {b"wait"}


class Client(Named, Protocol):
    """Who sent a command."""

    @property
    def id(self) -> int: ...


class Seen(NamedTuple):
    """A command and what became of it, without the rules that it was judged by."""

    when: float  # Unix time of its last byte
    user: str
    client: int
    command: masks.Command
    row: str
    keyspace: str
    size: int
    reply_size: int
    outcome: str
    error: bytes
    node: str
    parts: Parts

    @classmethod
    def of(cls, client: Client, trace: wire.Trace, written: float) -> "Seen":
        command = _command(trace)
        return cls(
            time.time() - (written - trace.received), client.user, client.id, command,
            command.name.decode() or "unknown",
            _name_of(trace.keyspace, trace.ruleset.keyspaces),
            trace.size, trace.reply_size, wire.OUTCOMES[trace.outcome], trace.error or b"",
            trace.node.endpoint.address if trace.node is not None else "",
            Parts.of(trace, written),
        )  # fmt: skip


class Sight:
    """What is seen of the traffic of a process."""

    def __init__(
        self, config: Config, router: wire.Router, batch: wire.Batch, metrics: Metrics
    ) -> None:
        self.slowlog = SlowLog(config.slow_log.entries)
        self._config = config
        self._access = config.access_log
        self._batch = batch
        self._spaces = router.ruleset.keyspaces
        self._lines_written = metrics.access_lines
        self._lines: log.Lines | None = None
        self._file: TextIO | None = None
        self._started = self._aged = time.monotonic()
        self._weight = 0.0  # seconds that count in the counts of keys, at the last ageing
        self.sketches = wire.Sketches(
            os.urandom(16), len(self._spaces), config.hot_keys.keys == "plain"
        )
        batch.sketches = self.sketches
        batch.slow_after = config.slow_log.slower_than
        batch.clock = time.monotonic
        batch.on_seen = self.see
        self.sample(config.access_log.sample)

    def sample(self, share: float) -> None:
        """Write about this share of the commands from here on. Raises StartError."""
        if share and self._lines is None:
            self._file = _opened(self._access.file)
            self._lines = log.Lines(self._file or sys.stdout, self._lose)
        self.sketches.look(share, self._config.hot_keys.sample)

    def resample(self, query: str) -> str:
        """Do the same as a query of the admin port asks, sample=1%; return what is in force."""
        wanted = parse_qs(query)
        try:
            if list(wanted) != ["sample"]:
                raise ValueError("expects sample=, such as sample=1%")
            self.sample(parse_percentage(wanted["sample"][0]))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        share = self.sketches.shares[0]
        log.event(log.INFO, "access_log_changed", sample=share)
        return f"{share * 100:g}% of the commands"

    def follow(self, access: AccessLog) -> Callable[[], None] | None:
        """Take other settings of the access log; return what ends the file of before, slowly.

        Where nothing is different, which None says, a share that the admin port has set stays.
        Raises StartError where the file cannot be opened; then all stays as it was.
        """
        if access == self._access:
            return None
        former = self._access, self._lines, self._file
        try:
            self._access, self._lines, self._file = access, None, None
            self.sample(access.sample)
        except StartError:
            self._access, self._lines, self._file = former
            raise
        return partial(_close, former[1], former[2])

    def _lose(self) -> None:
        self._lines_written.count("dropped")

    def close(self) -> None:
        """Write the last lines."""
        _close(self._lines, self._file)

    # What the data plane tells.

    def see(self, client: Client, traces: Sequence[wire.Trace]) -> None:
        """Hear of commands whose replies are being written to their client, or never will be."""
        written = time.monotonic()
        for trace in traces:
            name = trace.ruleset.commands[trace.row].name if trace.row >= 0 else b""
            slow = trace.replied - trace.received >= self._batch.slow_after
            if slow and not (trace.handled and name in WAITING):
                self._note_slow(client, trace, written)
            if trace.sampled and self._lines is not None and self._lines.admit():
                access = self._access
                seen = Seen.of(client, trace, written)
                self._lines.write(self._told(seen, access.keys, access.values))
                self._lines_written.count("written")

    def _note_slow(self, client: Client, trace: wire.Trace, written: float) -> None:
        seen = Seen.of(client, trace, written)
        command = seen.command
        words = words_shown(command.words, command.sizes, command.total)
        if masks.is_secret(command.name):
            words = [words[0], b"(redacted)"]
        told = partial(self._told, seen, self._config.slow_log.keys, "hidden")
        self.slowlog.note(client, words, seen.parts, told)
        log.event_of(log.INFO, "slow_command", partial(_slow_line, told))

    def _told(self, seen: Seen, keys: str, values: str) -> dict[str, object]:
        told = masks.tell(
            seen.command, log.clean if keys == "plain" else self.hash_of, values == "plain"
        )
        document: dict[str, object] = {
            "time": _moment(seen.when),
            "user": log.clean(seen.user),
            "client": seen.client,
            "command": told.words,
            "lengths": told.lengths,
            "name": seen.row,
            "keyspace": seen.keyspace,
            "keys": told.keys,
            "in": seen.size,
            "out": seen.reply_size,
            "outcome": seen.outcome,
            "error": log.clean(seen.error) if seen.error else "",
            "node": seen.node,
        }
        document |= {f"{name}_us": value for name, value in seen.parts._asdict().items()}
        return {name: value for name, value in document.items() if value not in ("", {}, [])}

    def hash_of(self, key: bytes) -> str:
        """Return what stands for a key in reports of this process."""
        return f"#{self.sketches.name_hash(key):016x}"

    # What is done by the second.

    def age(self) -> None:
        """Let what was seen of keys long ago count less; called now and then."""
        now = time.monotonic()
        if now - self._aged >= HALF_LIFE:
            self._weight = (self._weight + now - self._aged) / 2
            self._aged = now
            self.sketches.halve()

    def adopt(self, ruleset: wire.Ruleset) -> None:
        """Follow rules that have changed: what is known of a keyspace stays with its name."""
        places = {space.name: place for place, space in enumerate(ruleset.keyspaces)}
        moves = [places.get(space.name, -1) for space in self._spaces]
        self.sketches.adopt(moves, len(ruleset.keyspaces))
        self._spaces = ruleset.keyspaces

    # What the admin port shows. Asked from its threads: only reads.

    def page(self, path: str) -> str:
        """Return /slowlog, /hotkeys or /bigkeys."""
        pages = {"/slowlog": self.slow_page, "/hotkeys": self.hot_page, "/bigkeys": self.big_page}
        return pages[path]()

    def slow_page(self) -> str:
        """Return the slow log, a JSON object per line, the newest first."""
        return _json_lines(
            {"number": entry.number, **entry.told()} for entry in list(self.slowlog.entries)
        )

    def hot_page(self) -> str:
        """Return the keys that are asked for most, as JSON.

        The true rate lies within `error` of `per_second` 19 times in 20: the sketch may have taken
        the looks at another key for this one's, and a share of the commands has the luck of a draw.
        """
        share = self.sketches.shares[1]
        seconds = self._weight + time.monotonic() - self._aged
        scale = 1 / (share * seconds) if share and seconds > 0 else 0.0
        keys = [
            {
                "key": self._key(hash_, name),
                "keyspace": _name_of(space, self._spaces),
                "per_second": round((looks - error / 2) * scale, 3),
                "error": round((error / 2 + 2 * math.sqrt(looks)) * scale, 3),
            }
            for hash_, space, name, looks, error in self.sketches.hot_keys(SHOWN)
        ]
        return _json_lines([self._head() | {"sample": share, "keys": keys}])

    def big_page(self) -> str:
        """Return the largest requests and replies seen, by key, as JSON."""
        now = time.monotonic()
        keys = [
            {
                "key": self._key(hash_, name),
                "keyspace": _name_of(space, self._spaces),
                "bytes": size,
                "of": "reply" if replied else "request",
                "seconds_ago": round(now - when, 1),
            }
            for hash_, space, name, size, replied, when in self.sketches.big_keys()
        ]
        return _json_lines([self._head() | {"keys": keys}])

    def _head(self) -> dict[str, object]:
        return {"since": _moment(time.time() - (time.monotonic() - self._started))}

    def _key(self, hash_: int, name: bytes | None) -> str:
        return f"#{hash_:016x}" if name is None else log.clean(name)


def _close(lines: log.Lines | None, file: TextIO | None) -> None:
    """Write the last lines of an access log."""
    if lines is not None:
        lines.close()
    if file is not None:
        with contextlib.suppress(OSError):  # a disk that is still full
            file.close()


def _command(trace: wire.Trace) -> masks.Command:
    """Return what was asked, with the names of keys that the client knows."""
    words = trace.words
    if trace.renamed:
        words = list(words)
        for at in trace.keys:
            words[at] = client_name(trace.ruleset, words[at]) or words[at]
    name = trace.ruleset.commands[trace.row].name if trace.row >= 0 else b""
    return masks.Command(name, words, trace.sizes, trace.total, trace.keys)


def _name_of(keyspace: int, spaces: Sequence[Keyspace]) -> str:
    """Return the name of a keyspace as in metrics; its number may be of rules that are gone."""
    return spaces[keyspace].name if 0 <= keyspace < len(spaces) else "none"


def _slow_line(told: Callable[[], dict[str, Any]]) -> dict[str, object]:
    """Return the facts of a slow command that its line in the log has."""
    document = told()
    shown = {name: fact for name, fact in document.items() if not isinstance(fact, list | dict)}
    del shown["time"]
    return shown | {"command": " ".join(document["command"])}


def _json_lines(documents: Iterable[dict[str, object]]) -> str:
    return "".join(f"{json.dumps(document, ensure_ascii=True)}\n" for document in documents)


def _moment(when: float) -> str:
    """Return a time as the log writes it."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
    return f"{text}.{int(when % 1 * 1000):03d}Z"


def _opened(path: Path | None) -> TextIO | None:
    """Return a file that lines are added to, which may be cut while it is open; None for none."""
    if path is None:
        return None
    try:
        # Whoever may read it sees names of keys, where these are told.
        return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640), "w")
    except OSError as error:
        raise StartError(
            f"cannot write the access log to {path}: {error.strerror}; "
            "choose another file with access_log: in sidecache.yaml"
        ) from error
