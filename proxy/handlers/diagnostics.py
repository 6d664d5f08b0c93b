"""MEMORY and LATENCY: what there is to say about the process itself.

MEMORY USAGE is about a key and goes to its node; the rest of MEMORY is about the process that is
asked, and so are LATENCY's events, of which the proxy records none: its latencies are in INFO, in
LATENCY HISTOGRAM and in the metrics. Nodes are asked directly.
"""

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.information import human, most_resident, resident

DOCTOR = (
    "This is a proxy: it holds no keys. Its process has {used} of memory, at most it had {peak}. "
    "Ask the nodes about their data.\n"
)
LATENCY_DOCTOR = (
    "This is a proxy: it records no latency events. INFO latencystats has the latencies of "
    "commands by their names, the metrics those of clusters. Ask the nodes about their events.\n"
)
# What a server answers whose allocator keeps no statistics, as that of Python does not.
NO_STATISTICS = "Stats not supported for the current allocator"


def memory_doctor(session: Session, request: wire.Request) -> bytes:
    used = resident()
    text = DOCTOR.format(used=human(used), peak=human(max(used, most_resident())))
    return resp.encode(resp.Verbatim(text), session.protocol)


def memory_stats(session: Session, request: wire.Request) -> bytes:
    used = resident()
    peak = max(used, most_resident())
    unread = sum(other.downstream.output_bytes for other in session.server.sessions.values())
    fields: dict[str, object] = {
        "peak.allocated": peak,
        "total.allocated": used,
        "clients.slaves": 0,
        "clients.normal": unread,
        "keys.count": 0,
        "keys.bytes-per-key": 0,
        "dataset.bytes": 0,
        "dataset.percentage": 0.0,
        "peak.percentage": 100.0 * used / peak if peak else 0.0,
    }
    return resp.encode(fields, session.protocol)


def malloc_stats(session: Session, request: wire.Request) -> bytes:
    return resp.encode(NO_STATISTICS, session.protocol)


def purge(session: Session, request: wire.Request) -> bytes:
    """Answer OK, as servers do whose allocator has nothing to give back on demand."""
    return resp.OK


def latency_empty(session: Session, request: wire.Request) -> bytes:
    return resp.array([])


def latency_reset(session: Session, request: wire.Request) -> bytes:
    return resp.integer(0)


def latency_doctor(session: Session, request: wire.Request) -> bytes:
    return resp.encode(resp.Verbatim(LATENCY_DOCTOR), session.protocol)


def latency_graph(session: Session, request: wire.Request) -> bytes:
    return errors.no_samples(request.arguments[2])


HANDLERS: dict[bytes, Handler] = {
    b"memory|doctor": memory_doctor,
    b"memory|stats": memory_stats,
    b"memory|malloc-stats": malloc_stats,
    b"memory|purge": purge,
    b"latency|latest": latency_empty,
    b"latency|history": latency_empty,
    b"latency|reset": latency_reset,
    b"latency|doctor": latency_doctor,
    b"latency|graph": latency_graph,
}
