"""Many subscribers behind one proxy: whether every message arrives, in order, and how late.

    python benchmarks/pubsub.py                               10,000 subscribers, 5,000 messages/s
    python benchmarks/pubsub.py --subscribers 500 --channels 50 --rate 500 --seconds 2
    python benchmarks/pubsub.py --store                       keeps the figures in results/

Behind us are three cluster primaries. Each subscriber listens to one channel; the messages go round
the channels, each with its number and the time of its writing, and each is delivered to every
subscriber of its channel. Subscribers are read in a process of their own with plain epoll, because
an event loop would be the slowest part of the whole. A message that is missing, doubled or out of
order is counted. The lateness is from when a message was due to the subscriber's read.
"""

import argparse
import dataclasses
import json
import multiprocessing
import resource
import select
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.endtoend import machine  # noqa: E402
from benchmarks.stage import Stage, Target  # noqa: E402

# Number and time of a message, and the whole push of it: all of one length, so that a reader needs
# no parser.
PAYLOAD = b"%012d%020d"
PUSH_BYTES = len(b"*3\r\n$7\r\nmessage\r\n$8\r\nch:00000\r\n$32\r\n" + PAYLOAD % (0, 0) + b"\r\n")

# How long the last messages may take, and a subscription.
PATIENCE = 30.0  # seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is done."""

    port: int
    subscribers: int
    channels: int
    rate: int  # messages per second, over all channels
    seconds: float

    @property
    def messages(self) -> int:
        """Return how many are published: as many on each channel."""
        return max(1, int(self.rate * self.seconds) // self.channels) * self.channels

    @property
    def deliveries(self) -> int:
        each = self.messages // self.channels
        return each * self.subscribers


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """What all subscribers have got together."""

    delivered: int
    wrong: int  # not the next one of their channel
    closed: int  # subscribers that lost their connection
    p50_ms: float
    p99_ms: float
    most_ms: float


def channel(number: int) -> bytes:
    return b"ch:%05d" % number


class Ears:
    """All subscribers, in one thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.rests: dict[int, bytes] = {}
        self.next: dict[int, int] = {}
        self.late: list[int] = []  # nanoseconds
        self.wrong = self.closed = 0

    def subscribe(self) -> None:
        """Connect and subscribe everybody."""
        for number in range(self.plan.subscribers):
            name = channel(number % self.plan.channels)
            link = socket.create_connection(("127.0.0.1", self.plan.port), PATIENCE)
            link.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(name), name))
            self.sockets[link.fileno()] = link
        for descriptor, link in self.sockets.items():
            answer = b""
            while not answer.endswith(b":1\r\n"):
                more = link.recv(4096)
                if not more:
                    raise ConnectionError(f"a subscriber was turned away: {answer!r}")
                answer += more
            link.setblocking(False)
            self.poll.register(descriptor, select.EPOLLIN)
            self.rests[descriptor], self.next[descriptor] = b"", 0

    def listen(self, until: float) -> None:
        """Read until everything is there, or for so long."""
        while len(self.late) < self.plan.deliveries and time.monotonic() < until:
            for descriptor, _ in self.poll.poll(0.1, 4096):
                data = self.sockets[descriptor].recv(65536)
                if not data:
                    self.closed += 1
                    self.poll.unregister(descriptor)
                else:
                    self.take(descriptor, self.rests[descriptor] + data)

    def take(self, descriptor: int, data: bytes) -> None:
        now = time.monotonic_ns()
        whole = len(data) - len(data) % PUSH_BYTES
        for end in range(PUSH_BYTES, whole + 1, PUSH_BYTES):
            number = int(data[end - 34 : end - 22])
            if number != self.next[descriptor]:
                self.wrong += 1
            self.next[descriptor] = number + 1
            self.late.append(now - int(data[end - 22 : end - 2]))
        self.rests[descriptor] = data[whole:]

    def heard(self) -> Heard:
        late = sorted(self.late) or [0]
        p50, p99, most = (
            late[min(int(len(late) * q), len(late) - 1)] / 1e6 for q in (0.5, 0.99, 1)
        )
        return Heard(
            len(self.late), self.wrong, self.closed, round(p50, 2), round(p99, 2), round(most, 2)
        )


def listen(plan: Plan, pipe: Connection) -> None:
    """Be the process of the subscribers."""
    ears = Ears(plan)
    ears.subscribe()
    pipe.send("subscribed")
    ears.listen(time.monotonic() + plan.seconds + PATIENCE)
    pipe.send(ears.heard())


def publish(plan: Plan) -> float:
    """Publish everything, each message when it is due; return the seconds that it took."""
    link = socket.create_connection(("127.0.0.1", plan.port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start = time.monotonic()
    sent = answered = 0
    while answered < plan.messages:
        due = min(plan.messages, int((time.monotonic() - start) * plan.rate) + 1)
        batch = []
        for number in range(sent, due):
            stamp = int((start + number / plan.rate) * 1e9)
            payload = PAYLOAD % (number // plan.channels, stamp)
            name = channel(number % plan.channels)
            batch.append(b"*3\r\n$7\r\nPUBLISH\r\n$8\r\n%b\r\n$32\r\n%b\r\n" % (name, payload))
        link.sendall(b"".join(batch))
        sent = due
        while answered < sent:
            replies = link.recv(65536)
            if not replies or b"-" in replies:
                raise ConnectionError(f"a message was refused: {replies!r}")
            answered += replies.count(b"\n")
        time.sleep(0.001)
    link.close()
    return time.monotonic() - start


def run(plan: Plan, target: Target) -> dict[str, Any]:
    """Play a plan against a running proxy and return the figures."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=listen, args=(plan, there))
    process.start()
    try:
        if not here.poll(PATIENCE) or here.recv() != "subscribed":
            raise ConnectionError("the subscribers are not subscribed")
        before = target.cpu_seconds()
        took = publish(plan)
        if not here.poll(PATIENCE + 10):
            raise ConnectionError("the subscribers do not end")
        heard: Heard = here.recv()
        spent = target.cpu_seconds() - before
    finally:
        process.terminate()
        process.join()
    figures = dataclasses.asdict(plan) | dataclasses.asdict(heard)
    del figures["port"]
    return figures | {
        "messages": plan.messages,
        "deliveries": plan.deliveries,
        "missing": plan.deliveries - heard.delivered,
        "published_per_second": round(plan.messages / took),
        "delivered_per_second": round(heard.delivered / took),
        "cpu_us_per_delivery": round(spent / max(heard.delivered, 1) * 1e6, 2),
        "proxy_cpu_share": round(spent / took, 2),
        "proxy_resident_mb": round(target.resident_bytes() / 1e6),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--subscribers", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=5000, help="messages per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/pubsub.json")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Stage() as stage:
        target = stage.sidecache(
            {"cache": stage.cluster(3)}, limits={"clients": options.subscribers + 10}
        )
        plan = Plan(
            target.port, options.subscribers, options.channels, options.rate, options.seconds
        )
        figures = run(plan, target)
    figures = {"machine": machine(), **figures}
    text = json.dumps(figures, indent=1)
    print(text)
    if options.store:
        (ROOT / "benchmarks" / "results" / "pubsub.json").write_text(text + "\n")
    return 1 if figures["missing"] or figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
