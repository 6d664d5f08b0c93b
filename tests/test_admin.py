"""The admin port as kubelet, Prometheus, an operator, a browser and an attacker meet it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from proxy import admin, inquiry, log, visit
from proxy.admin import Admin, Heartbeat
from proxy.errors import ConfigError, PolicyError, StartError
from proxy.explain import Explainer
from proxy.policy.model import EMPTY
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Proxy:
    """A proxy without clients: the smallest thing that the admin port can ask."""

    clock: Clock = field(default_factory=Clock)
    ready: tuple[bool, str] = (True, "normal: locks=up cache=up")
    started: tuple[bool, str] = (True, "listening")
    mistake: Exception | None = None
    reloads: int = 0
    draining: bool = False
    called_in: list[threading.Thread] = field(default_factory=list)
    pieces: tuple[bytes, ...] = (b"# HELP a b\n", b"# TYPE a gauge\n", b"a 1\n")

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(self.clock)

    def livez(self) -> tuple[bool, str]:
        return self.heartbeat.livez()

    def readyz(self) -> tuple[bool, str]:
        return (False, "draining") if self.draining else self.ready

    def startupz(self) -> tuple[bool, str]:
        return self.started

    def render_metrics(self) -> Iterator[bytes]:
        if self.mistake is not None:
            raise self.mistake
        yield from self.pieces

    def page(self, path: str) -> str:
        return json.dumps({"page": path})

    def sample(self, query: str) -> str:
        self.called_in.append(threading.current_thread())
        if self.mistake is not None:
            raise self.mistake
        return query

    def restore(self, query: str) -> str:
        return f"restoring {query}"

    async def drift(self, query: str) -> str:
        return f"compared {query}"

    def drain(self) -> None:
        self.called_in.append(threading.current_thread())
        self.draining = True

    async def reload(self) -> str:
        self.called_in.append(threading.current_thread())
        if self.mistake is not None:
            raise self.mistake
        self.reloads += 1
        return "3 keyspaces changed"

    def explainer(self) -> Explainer:
        return Explainer(EMPTY, ("cache",), lambda cluster, slot: f"node:{slot}")


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
async def port(proxy: Proxy) -> AsyncIterator[int]:
    server = Admin("127.0.0.1", 0, proxy)
    server.start()
    yield server.address[1]
    server.stop()


def fetch(
    port: int, method: str, path: str, headers: dict[str, str] | None = None, body: str = ""
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


async def ask(
    port: int,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: str = "",
) -> tuple[int, str]:
    status, text, _ = await asyncio.to_thread(fetch, port, method, path, headers, body)
    return status, text


async def test_healthy(proxy: Proxy, port: int) -> None:
    """A proxy that serves answers 200 to all three probes and says in which mode it is."""
    assert await ask(port, "/livez") == (200, "ok\n")
    assert await ask(port, "/readyz") == (200, "normal: locks=up cache=up\n")
    assert await ask(port, "/startupz") == (200, "listening\n")
    assert await ask(port, "/readyz?verbose") == (200, "normal: locks=up cache=up\n")


async def test_degraded_is_ready(proxy: Proxy, port: int) -> None:
    """With a cluster down the proxy lives and is ready as long as it serves in some mode."""
    proxy.ready = (True, "degraded: locks=down cache=up")
    assert await ask(port, "/readyz") == (200, "degraded: locks=down cache=up\n")
    assert (await ask(port, "/livez"))[0] == 200


async def test_starting(proxy: Proxy, port: int) -> None:
    """Before it listens the proxy lives, has not started and is not ready."""
    proxy.ready = proxy.started = (False, "starting")
    assert await ask(port, "/startupz") == (503, "starting\n")
    assert await ask(port, "/readyz") == (503, "starting\n")
    assert (await ask(port, "/livez"))[0] == 200


async def test_draining(proxy: Proxy, port: int) -> None:
    """POST /-/drain begins the drain: alive, not ready."""
    assert await ask(port, "/-/drain", "POST") == (200, "draining\n")
    assert proxy.draining
    assert await ask(port, "/readyz") == (503, "draining\n")
    assert (await ask(port, "/livez"))[0] == 200


async def test_a_loop_that_hangs_is_reported(proxy: Proxy, port: int) -> None:
    """While the event loop does not run, probes are answered and say so; ready is nobody then."""
    proxy.clock.now += admin.STALLED_SECONDS + 2
    # Not awaited: this very call keeps the loop from running.
    assert fetch(port, "GET", "/livez")[:2] == (503, "the event loop hangs since 12.0 s\n")
    assert fetch(port, "GET", "/readyz")[0] == 503


async def test_a_heartbeat_comes_from_the_loop(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running loop keeps the heartbeat young and notes how late it came."""
    monkeypatch.setattr(admin, "HEARTBEAT_SECONDS", 0.01)
    heartbeat = proxy.heartbeat
    heartbeat.start()
    proxy.clock.now += 5.0
    async with asyncio.timeout(5):
        while not heartbeat.lag:
            await asyncio.sleep(0)
    assert heartbeat.lag == pytest.approx(4.99)
    assert heartbeat.age() == 0
    heartbeat.stop()


async def test_metrics_are_served_whole(proxy: Proxy, port: int) -> None:
    """A scrape gets all pieces with the type that Prometheus expects."""
    status, text, headers = await asyncio.to_thread(fetch, port, "GET", "/metrics")
    assert (status, text) == (200, "# HELP a b\n# TYPE a gauge\na 1\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Length"] == str(len(text))


@pytest.mark.parametrize("path", ["/slowlog", "/hotkeys", "/bigkeys"])
async def test_pages_of_traffic(port: int, path: str) -> None:
    """What is seen of traffic is read as JSON, and not written."""
    status, text, headers = await asyncio.to_thread(fetch, port, "GET", path)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text) == {"page": path}
    assert (await ask(port, path, "POST"))[0] == 405


async def test_a_setting_comes_with_the_query(proxy: Proxy, port: int) -> None:
    """The share of the access log is set on the loop, by POST alone; a mistake is told."""
    assert await ask(port, "/-/access-log?sample=1%", "POST") == (200, "sample=1%\n")
    assert proxy.called_in == [threading.main_thread()]
    assert (await ask(port, "/-/access-log?sample=1%"))[0] == 405
    proxy.mistake = ConfigError("expects a percentage")
    assert await ask(port, "/-/access-log?x", "POST") == (422, "expects a percentage\n")


async def test_verbs_about_copies_take_a_query(port: int) -> None:
    """What was lost and what differs are asked about by POST, and how far it is by GET."""
    assert await ask(port, "/-/restore?keyspace=a", "POST") == (200, "restoring keyspace=a\n")
    assert await ask(port, "/-/drift?keys=5", "POST") == (200, "compared keys=5\n")
    assert await ask(port, "/restore") == (200, '{"page": "/restore"}')
    assert (await ask(port, "/-/restore"))[0] == 405


async def test_the_index_lists_every_path(port: int) -> None:
    """The first page names each path there is."""
    status, text = await ask(port, "/")
    assert status == 200
    paths = ["/livez", "/readyz", "/startupz", "/metrics", "/slowlog", "/hotkeys", "/bigkeys"]
    for path in (*paths, "/-/access-log", "/-/drain", "/-/reload"):
        assert path in text


async def test_verbs_run_on_the_loop(proxy: Proxy, port: int) -> None:
    """Drain and reload run in the loop's thread, so they may touch what the loop owns."""
    assert await ask(port, "/-/reload", "POST") == (200, "3 keyspaces changed\n")
    await ask(port, "/-/drain", "POST")
    assert proxy.called_in == [threading.current_thread()] * 2


async def test_a_reload_with_mistakes_says_which(proxy: Proxy, port: int) -> None:
    """A reload that fails answers 422 with the mistake."""
    proxy.mistake = PolicyError("seats.yaml:3:5: unknown field 'tll', did you mean 'ttl'?")
    assert await ask(port, "/-/reload", "POST") == (422, f"{proxy.mistake}\n")


async def test_a_surprise_inside_is_not_told_outside(proxy: Proxy, port: int) -> None:
    """An unforeseen error answers 500 without its text, which goes to the log."""
    proxy.mistake = RuntimeError("internal detail")
    for path, method in (("/metrics", "GET"), ("/-/reload", "POST")):
        assert await ask(port, path, method) == (500, "Internal Server Error\n")


async def test_a_secret_in_an_error_is_masked(proxy: Proxy, port: int) -> None:
    """A password in an error text does not leave through the admin port."""
    log.conceal("correct-horse")
    proxy.ready = (True, "degraded: redis://app:abc@10.0.0.1 said correct-horse is wrong")
    assert await ask(port, "/readyz") == (
        200,
        "degraded: redis://app:***@10.0.0.1 said *** is wrong\n",
    )


@pytest.mark.parametrize("path", ["/-/drain", "/-/reload"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_only_post_changes_anything(proxy: Proxy, port: int, path: str, method: str) -> None:
    """No other method does what a verb does."""
    status, _ = await ask(port, path, method)
    assert status in (405, 501)
    assert not proxy.called_in


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/-/", 404),
        ("POST", "/nothing", 404),
        ("POST", "/metrics", 405),
        ("POST", "/livez", 405),
    ],
)
async def test_other_paths_are_refused(port: int, method: str, path: str, status: int) -> None:
    """What does not exist is 404, what exists and takes no POST is 405."""
    assert (await ask(port, path, method))[0] == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example:9121"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
    ],
)
async def test_browsers_cannot_change_anything(
    proxy: Proxy, port: int, headers: dict[str, str]
) -> None:
    """A page in a browser on this machine, or a name bent to it, gets 403."""
    assert (await ask(port, "/-/drain", "POST", headers))[0] == 403
    assert not proxy.draining


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:9121", "127.0.0.1:9121"])
async def test_an_operator_on_this_machine_may(proxy: Proxy, port: int, host: str) -> None:
    """Plain curl to this machine, by number or as localhost, works."""
    assert (await ask(port, "/-/drain", "POST", {"Host": host}))[0] == 200


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_what_counts_as_this_machine(address: str, inside: bool) -> None:
    """Only loopback is this machine, also when it is written as IPv6."""
    assert inquiry.is_loopback(address) is inside


async def test_strangers_read_and_do_not_write(
    proxy: Proxy, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another machine probes answer and verbs are 403."""
    monkeypatch.setattr(inquiry, "is_loopback", lambda address: address != "127.0.0.1")
    assert (await ask(port, "/readyz"))[0] == 200
    assert (await ask(port, "/-/drain", "POST"))[0] == 403
    assert not proxy.draining


def say(port: int, data: bytes) -> bytes:
    """Return all that the port answers to raw bytes until it closes."""
    with socket.create_connection(("127.0.0.1", port), 10) as visitor:
        answer = b""
        with contextlib.suppress(OSError):
            visitor.sendall(data)
            visitor.shutdown(socket.SHUT_WR)
            while part := visitor.recv(65536):
                answer += part
        return answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\n\r\n",
        b"POST /-/drain HTTP/1.1\r\nHost: [\r\n\r\n",
        b"GET /<script> HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nlong: " + b"x" * 100_000 + b"\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ],
)
async def test_odd_bytes_are_refused_and_not_repeated(port: int, data: bytes) -> None:
    """What is no request gets an error without a word of its own in it, and the port goes on."""
    answer = await asyncio.to_thread(say, port, data)
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert b"script" not in answer
    assert b"xxx" not in answer
    assert (await ask(port, "/livez"))[0] == 200


async def test_a_verb_takes_no_body(proxy: Proxy, port: int) -> None:
    """A POST with a body is refused unread."""
    assert (await ask(port, "/-/drain", "POST", body="x" * 100))[0] == 400
    chunked = b"POST /-/drain HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 400 " in (await asyncio.to_thread(say, port, chunked)).splitlines()[0]
    assert not proxy.draining


async def test_a_slow_visitor_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor that sends a byte now and then is closed at the deadline of the whole visit."""
    monkeypatch.setattr(admin, "VISIT_SECONDS", 0.3)

    def drip() -> int:
        sent = 0
        with socket.create_connection(("127.0.0.1", port), 10) as visitor:
            visitor.settimeout(0.05)
            for byte in b"GET / HTTP/1.1\r\n" + b"x" * 1000:
                try:
                    visitor.sendall(bytes([byte]))
                    sent += 1
                    if visitor.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        return sent

    assert await asyncio.to_thread(drip) < 100


async def test_a_silent_visitor_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor that says nothing more is closed at the deadline of the whole visit."""
    monkeypatch.setattr(admin, "VISIT_SECONDS", 0.2)

    def stay() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 3) as visitor:
            visitor.sendall(b"GET / HTTP/1.1\r\n")
            return visitor.recv(1)

    assert await asyncio.to_thread(stay) == b""


async def test_a_long_head_is_refused(port: int) -> None:
    """More than the budget for a head is answered with 431."""
    long = b"GET / HTTP/1.1\r\nlong: " + b"x" * visit.HEAD_BYTES
    assert (await asyncio.to_thread(say, port, long)).startswith(b"HTTP/1.1 431 ")


async def test_crowds_do_not_keep_a_probe_out(port: int) -> None:
    """With three times as many silent visitors as there are places, a probe is answered."""
    with contextlib.ExitStack() as crowd:
        for _ in range(3 * admin.MAX_VISITORS):
            crowd.enter_context(
                await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port), 10)
            )
        assert (await ask(port, "/livez"))[0] == 200

        def visitors() -> int:
            return sum("process_request_thread" in t.name for t in threading.enumerate())

        # Who has been shown out takes a moment to go.
        await wait_for(
            lambda: visitors() <= admin.MAX_VISITORS + 2, "no more than there are places"
        )


async def test_a_verb_does_not_wait_for_a_hanging_loop(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verb that the loop does not come to in time is answered with 504."""
    verb, _ = admin._VERBS["/-/reload"]
    monkeypatch.setitem(admin._VERBS, "/-/reload", (verb, 0.05))
    # Not awaited: this very call keeps the loop from running.
    assert fetch(port, "POST", "/-/reload")[0] == 504
    assert (await ask(port, "/livez"))[0] == 200


async def test_a_taken_port_is_explained(proxy: Proxy, port: int) -> None:
    """A port in use is an error that says where and what to do."""
    with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}: Address already in use; choose"):
        Admin("127.0.0.1", port, proxy).start()


async def test_stopping_closes_the_port_and_its_threads(proxy: Proxy) -> None:
    """After stop nothing listens, and no thread of the port is left."""
    server = Admin("127.0.0.1", 0, proxy)
    server.start()
    assert (await ask(server.address[1], "/livez"))[0] == 200
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        await ask(server.address[1], "/livez")
    assert "admin" not in {thread.name for thread in threading.enumerate()}


async def test_ipv6_is_served(proxy: Proxy) -> None:
    """The port can be given as IPv6."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = Admin("::1", 0, proxy)
    try:
        server.start()
    except StartError:
        pytest.skip("no IPv6 here")

    def visit() -> int:
        connection = http.client.HTTPConnection("::1", server.address[1], timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", "/-/drain")
            return connection.getresponse().status

    try:
        assert await asyncio.to_thread(visit) == 200
    finally:
        server.stop()


async def test_explain(port: int) -> None:
    """A command is explained to this machine, and not to a browser."""
    status, text = await ask(port, "/-/explain?command=GET+foo")
    assert status == 200
    assert "slot       12182 of cluster cache, node node:12182" in text
    assert (await ask(port, "/-/explain", headers={"Origin": "http://evil"}))[0] == 403
