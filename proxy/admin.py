"""The admin port: health for probes, metrics for a scrape, verbs for an operator, over HTTP.

The application starts one `Admin` and implements `Health`. The server runs in threads of its own
beside the event loop, so that a loop that hangs can be reported by something that does not.

Always true:
  * GET changes nothing; POST is for the machine itself and refused to browsers;
  * questions are asked in a thread and may only read; verbs run on the event loop;
  * connections, bytes and seconds of a visitor are limited, and a new visitor is always let in:
    when all places are taken, the oldest is closed.

What healthy means is decided by the application; here is only the heartbeat of the loop.
"""

import asyncio
import contextlib
import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final, Protocol

from proxy import inquiry, log
from proxy.errors import SidecacheError, StartError
from proxy.metrics import CONTENT_TYPE
from proxy.visit import TooMuch, Visit

# Probes, a scrape and a few people; each costs a thread.
MAX_VISITORS: Final = 32

# From accept to the last byte of the answer. Kubernetes gives a probe one or two seconds.
VISIT_SECONDS: Final = 5.0

# How long a visitor may go on sending what is not read any more, before its connection closes.
LINGER_SECONDS: Final = 1.0

# Between two accepts: a flood gets a few percent of the processor and a probe does not notice.
ACCEPT_PAUSE: Final = 0.002  # seconds

# Lets the loop have the interpreter lock between two pieces of a page. Yielding without a pause
# does not: the waiting thread needs some 50 µs to wake up.
PIECE_PAUSE: Final = 0.0002  # seconds

# How long a verb may take; a reload reads a thousand keyspaces, maybe with a tenth of a core.
VERB_SECONDS: Final = 4.0
RELOAD_SECONDS: Final = 60.0
REPORT_SECONDS: Final = 60.0  # compares up to ten thousand keys

HEARTBEAT_SECONDS: Final = 1.0  # nothing else wakes an idle process more often

# Longer than any pause of a healthy loop, shorter than three probes of ten seconds.
STALLED_SECONDS: Final = 10.0

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"

# What is seen of traffic, slow commands and keys, and of lost keys on their way back.
PAGES: Final = ("/slowlog", "/hotkeys", "/bigkeys", "/restore")

_INDEX: Final = """<!doctype html><title>sidecache</title><h1>sidecache</h1><ul>
<li><a href="/livez">/livez</a> the process works
<li><a href="/readyz">/readyz</a> it takes traffic, and in which mode
<li><a href="/startupz">/startupz</a> it has started
<li><a href="/metrics">/metrics</a> for Prometheus
<li>/-/explain?command=GET+key what would become of a command (from this machine)
<li><a href="/slowlog">/slowlog</a> commands that took long, and which part of it where
<li><a href="/hotkeys">/hotkeys</a> keys that are asked for most
<li><a href="/bigkeys">/bigkeys</a> keys with the largest requests and replies
<li><a href="/restore">/restore</a> how far lost keys are on their way back from PostgreSQL
<li>POST /-/restore?keyspace=NAME bring back what is lacking (from this machine)
<li>POST /-/drift?keyspace=NAME&amp;keys=1000 compare keys with their rows (from this machine)
<li>POST /-/access-log?sample=1% write a line about that share of the commands (from this machine)
<li>POST /-/drain finish what is accepted, then exit (from this machine)
<li>POST /-/reload read the policies again (from this machine)
</ul>
"""


class Health(inquiry.Explained, Protocol):
    """What the application knows. The four questions are asked from other threads: only read."""

    def livez(self) -> tuple[bool, str]:
        """Return whether the process works; never depends on a node or on PostgreSQL."""

    def readyz(self) -> tuple[bool, str]:
        """Return whether clients are served in any mode, and which; False while draining."""

    def startupz(self) -> tuple[bool, str]:
        """Return whether it listens and its configuration is in force."""

    def render_metrics(self) -> Iterable[bytes]:
        """Return the metrics page in pieces, each rendered when it is asked for."""

    def page(self, path: str) -> str:
        """Return what is seen of traffic as JSON, for a path of PAGES. Only reads."""

    def sample(self, query: str) -> str:
        """Change the share of commands that the access log has. Runs on the loop."""

    def restore(self, query: str) -> str:
        """Begin to bring keys back from PostgreSQL. Runs on the loop."""

    async def drift(self, query: str) -> str:
        """Compare keys with their rows, and say what differs. Runs on the loop."""

    def drain(self) -> None:
        """Begin to finish and exit. Runs on the loop."""

    async def reload(self) -> str:
        """Read the rules again and say what changed; raise when the old ones stay. On the loop."""


class Heartbeat:
    """Notices a loop that hangs: the loop notes the time each second, others look how old it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._beat = clock()
        self.lag = 0.0  # seconds by which the last beat came too late

    def start(self) -> None:
        """Begin on the running loop."""
        self._beat = self._clock()
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_SECONDS, self._again)

    def _again(self) -> None:
        self.lag = max(0.0, self.age() - HEARTBEAT_SECONDS)
        self.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def age(self) -> float:
        return self._clock() - self._beat

    def livez(self) -> tuple[bool, str]:
        age = self.age()
        if age < STALLED_SECONDS:
            return True, "ok"
        return False, f"the event loop hangs since {age:.1f} s"


class _Handler(BaseHTTPRequestHandler):
    """One request of one visitor; the connection closes after it."""

    server: "_Server"
    server_version = "sidecache"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    # What an answer needs to know when it comes before the first line is read.
    command = ""
    requestline = ""
    request_version = protocol_version

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._deadline = time.monotonic() + VISIT_SECONDS
        self.rfile = io.BufferedReader(Visit(self.connection, self._deadline))

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the visitor left, or was too slow
            try:
                self.handle_one_request()
            except TooMuch:
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            except OSError:
                raise
            except Exception as error:
                log.event(log.ERROR, "admin_failed", error=error)
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)

    def finish(self) -> None:
        """Close in two steps: bytes that nobody has read would make the system drop the answer."""
        super().finish()
        deadline = min(self._deadline, time.monotonic() + LINGER_SECONDS)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(65536):
                    break

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in _VERBS or path in _SETTERS:
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "use POST\n", allow="POST")
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, _slowly(self.server.health.render_metrics()), CONTENT_TYPE)
        elif path == inquiry.PATH:
            self._explain()
        elif path == "/":
            self._answer(HTTPStatus.OK, _INDEX, "text/html; charset=utf-8")
        elif path in PAGES:
            self._answer(HTTPStatus.OK, self.server.health.page(path), _JSON)
        elif (question := _QUESTIONS.get(path)) is not None:
            well, text = question(self.server.health)
            status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{log.redact(text)}\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "no such page; / lists them\n")

    do_HEAD = do_GET

    def _explain(self) -> None:
        if (reason := self._refusal()) is not None:
            self._answer(HTTPStatus.FORBIDDEN, f"{reason}\n")
            return
        query = self.path.partition("?")[2]
        self._answer(*inquiry.answer(query, self.server.health, self.server.run))

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        if path not in _VERBS and path not in _SETTERS:
            known = path in {*_QUESTIONS, *PAGES, "/", "/metrics", inquiry.PATH}
            status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
            self._answer(status, "no such verb; / lists them\n", allow="GET, HEAD")
        elif (reason := self._refusal()) is not None:
            log.event(log.WARNING, "admin_refused", peer=self.client_address[0], reason=reason)
            self._answer(HTTPStatus.FORBIDDEN, f"{reason}\n")
        elif self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self._answer(HTTPStatus.BAD_REQUEST, "send no body\n")
        elif path in _SETTERS:
            setter, seconds = _SETTERS[path]
            self._deadline += seconds
            self._answer(*self.server.run(partial(setter, query), seconds))
        else:
            verb, seconds = _VERBS[path]
            self._deadline += seconds
            self._answer(*self.server.run(verb, seconds))

    def _refusal(self) -> str | None:
        """Return why this visitor may not change anything, or None."""
        if not inquiry.is_loopback(self.client_address[0]):
            return "only from this machine: use kubectl exec or port-forward"
        # A page in a browser on this machine could post here too. Browsers say where a request
        # comes from, and a name that was bent to 127.0.0.1 shows in Host; curl sends neither.
        if "Origin" in self.headers or "Sec-Fetch-Site" in self.headers:
            return "not from a browser"
        if not inquiry.names_this_machine(self.headers.get("Host", "localhost")):
            return "address this machine by number or as localhost"
        return None

    def _answer(
        self, status: HTTPStatus, body: str | bytes, content_type: str = _TEXT, allow: str = ""
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        # Whatever the first line said: an answer without a head would be one to HTTP/0.9.
        self.request_version = self.protocol_version
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'")
        self.send_header("Connection", "close")
        if allow:
            self.send_header("Allow", allow)
        self.connection.settimeout(max(0.001, self._deadline - time.monotonic()))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # The standard page repeats what the visitor sent.
        status = HTTPStatus(code)
        self._answer(status, f"{status.phrase}\n")

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: a line per probe would bury the others."""


_QUESTIONS: Final[dict[str, Callable[[Health], tuple[bool, str]]]] = {
    "/livez": lambda health: health.livez(),
    # A loop that hangs serves nobody, whatever the application's flags said when it stopped.
    "/readyz": lambda health: _both(health.livez(), health.readyz()),
    "/startupz": lambda health: _both(health.livez(), health.startupz()),
}


async def _sample(query: str, health: Health) -> str:
    return health.sample(query)


async def _restore(query: str, health: Health) -> str:
    return health.restore(query)


async def _drift(query: str, health: Health) -> str:
    return await health.drift(query)


# Verbs that take what they are about from the query.
_SETTERS: Final = {
    "/-/access-log": (_sample, VERB_SECONDS),
    "/-/restore": (_restore, VERB_SECONDS),
    "/-/drift": (_drift, REPORT_SECONDS),
}


async def _drain(health: Health) -> str:
    health.drain()
    return "draining"


_Verb = Callable[[Health], Coroutine[None, None, str]]

_VERBS: Final[dict[str, tuple[_Verb, float]]] = {
    "/-/drain": (_drain, VERB_SECONDS),
    "/-/reload": (lambda health: health.reload(), RELOAD_SECONDS),
}


def _both(first: tuple[bool, str], second: tuple[bool, str]) -> tuple[bool, str]:
    return second if first[0] else first


def _slowly(pieces: Iterable[bytes]) -> bytes:
    """Join the pieces of a page with a rest after each, in which the loop can work."""
    page = []
    for piece in pieces:
        page.append(piece)
        time.sleep(PIECE_PAUSE)
    return b"".join(page)


class _Server(ThreadingMixIn, TCPServer):
    """Not http.server's: that one asks the name service for our name and waits for the answer."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    timeout = HEARTBEAT_SECONDS  # how long `handle_request` waits for a visitor

    def __init__(self, address: tuple[str, int], health: Health) -> None:
        self.health = health
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._visitors: dict[socket.socket, None] = {}  # oldest first
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._visitors) >= MAX_VISITORS:
                self._dismiss(next(iter(self._visitors)))
            self._visitors[request] = None
        super().process_request(request, client_address)
        time.sleep(ACCEPT_PAUSE)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._visitors.pop(request, None)
        super().shutdown_request(request)

    def _dismiss(self, visitor: socket.socket) -> None:
        """Make a visitor's thread find its connection closed; the thread itself closes it."""
        self._visitors.pop(visitor, None)
        with contextlib.suppress(OSError):
            visitor.shutdown(socket.SHUT_RDWR)

    def dismiss_all(self) -> None:
        with self._lock:
            for visitor in list(self._visitors):
                self._dismiss(visitor)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.event(log.ERROR, "admin_failed", error=sys.exception())

    def run(self, verb: "_Verb", seconds: float) -> tuple[HTTPStatus, str]:
        """Let the loop do a verb; return what to answer."""
        future = asyncio.run_coroutine_threadsafe(verb(self.health), self._loop)
        try:
            return HTTPStatus.OK, f"{future.result(seconds)}\n"
        except TimeoutError:
            return HTTPStatus.GATEWAY_TIMEOUT, "not done yet: it may still happen\n"
        except SidecacheError as error:
            return HTTPStatus.UNPROCESSABLE_ENTITY, f"{log.redact(str(error))}\n"


class Admin:
    """The admin port of one proxy."""

    def __init__(self, host: str, port: int, health: Health) -> None:
        self._host = host
        self._port = port
        self._health = health
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve from here on. Called on the running loop, which is the one that does the verbs."""
        try:
            self._server = _Server((self._host, self._port), self._health)
        except OSError as error:
            raise StartError(
                f"cannot serve health and metrics on {self._host}:{self._port}: {error.strerror}; "
                "choose another address with `admin:` in sidecache.yaml or SIDECACHE_ADMIN"
            ) from error
        self._thread = threading.Thread(
            target=self._serve, args=(self._server,), name="admin", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Return where it listens; the port is real also when 0 was asked for."""
        if self._server is None:
            return self._host, self._port
        return self._host, self._server.server_address[1]

    def _serve(self, server: _Server) -> None:
        while not self._stopping.is_set():
            server.handle_request()

    def stop(self) -> None:
        """Close the port and every visit."""
        self._stopping.set()
        if self._server is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            # Wakes the thread at once on Linux; elsewhere it looks up within a second.
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(2 * HEARTBEAT_SECONDS)
        self._server.dismiss_all()
        self._server.server_close()
