"""CLUSTER: to clients of the cluster listener, one node that owns all slots.

Clients that speak only to Redis Cluster connect to `listen.cluster` and find a cluster of a single
node, which is this process; where keys really live stays the proxy's business, so they are never
redirected. On every other listener there is no cluster, in Redis' own words.

Always true: the answers need no node, and nobody can change a cluster that is not there. A handler
refuses what changes one, because only it knows by which listener the client came.
"""

import hashlib
from collections.abc import Mapping

from proxy import commands, errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.connection import integer
from proxy.handlers.local import container_help
from proxy.wire.rules import Path

SLOTS = 16_384


def node_id(session: Session, kind: str = "node") -> str:
    """Return the 40 hexadecimal digits that name our node, or its shard, while the process runs."""
    return hashlib.sha256(f"{kind} {session.server.run_id}".encode()).hexdigest()[:40]


def address(session: Session) -> tuple[str, int]:
    """Return where the client is told that the node is: as announced, or as it came."""
    announced = session.server.config.listen.announced
    if announced is not None:
        return announced
    host, _, port = session.local.rpartition(":")
    return host.strip("[]"), int(port)


def slots(session: Session, request: wire.Request) -> bytes:
    # The empty map is where a node names further addresses of its own.
    return resp.encode(
        [[0, SLOTS - 1, [*address(session), node_id(session), {}]]], session.protocol
    )


def shards(session: Session, request: wire.Request) -> bytes:
    host, port = address(session)
    node: Mapping[str, object] = {
        "id": node_id(session),
        "port": port,
        "ip": host,
        "endpoint": host,
        "role": "master",
        "replication-offset": 0,
        "health": "online",
    }
    return resp.encode([{"slots": [0, SLOTS - 1], "nodes": [node]}], session.protocol)


def nodes(session: Session, request: wire.Request) -> bytes:
    host, port = address(session)
    # No bus: nodes of a real cluster have nothing to say to this one.
    text = f"{node_id(session)} {host}:{port}@0 myself,master - 0 0 1 connected 0-{SLOTS - 1}\n"
    return resp.encode(resp.Verbatim(text), session.protocol)


def info(session: Session, request: wire.Request) -> bytes:
    server = session.server
    cluster = server.statistics().clusters[server.router.ruleset.default_cluster]
    fields = {
        "cluster_state": "ok" if cluster.available else "fail",
        "cluster_slots_assigned": SLOTS,
        "cluster_slots_ok": SLOTS,
        "cluster_slots_pfail": 0,
        "cluster_slots_fail": 0,
        "cluster_known_nodes": 1,
        "cluster_size": 1,
        "cluster_current_epoch": 1,
        "cluster_my_epoch": 1,
        "cluster_stats_messages_sent": 0,
        "cluster_stats_messages_received": 0,
        "total_cluster_links_buffer_limit_exceeded": 0,
    }
    text = "".join(f"{name}:{value}\r\n" for name, value in fields.items())
    return resp.encode(resp.Verbatim(text), session.protocol)


def myid(session: Session, request: wire.Request) -> bytes:
    return resp.encode(node_id(session), session.protocol)


def myshardid(session: Session, request: wire.Request) -> bytes:
    return resp.encode(node_id(session, "shard"), session.protocol)


def keyslot(session: Session, request: wire.Request) -> bytes:
    return resp.integer(wire.key_slot(request.arguments[2]))


def countkeysinslot(session: Session, request: wire.Request) -> bytes:
    """Answer 0: keys of other tenants are not counted, and nodes know some by other slots."""
    number = integer(request.arguments[2])
    if number is None:
        return errors.NOT_AN_INTEGER
    return resp.integer(0) if 0 <= number < SLOTS else errors.INVALID_SLOT


def replicas(session: Session, request: wire.Request) -> bytes:
    return _of_node(session, request, resp.array([]))


def count_failure_reports(session: Session, request: wire.Request) -> bytes:
    return _of_node(session, request, resp.integer(0))


def _of_node(session: Session, request: wire.Request, reply: bytes) -> bytes:
    name = request.arguments[2]
    return reply if name == node_id(session).encode() else errors.unknown_node(name)


def links(session: Session, request: wire.Request) -> bytes:
    return resp.array([])


def refused(session: Session, request: wire.Request) -> bytes:
    return errors.unknown_subcommand(*request.arguments[:2])


def _clustered(answer: Handler) -> Handler:
    """Return a handler that answers to clients of the cluster listener only."""
    return lambda session, request: (
        answer(session, request) if session.clustered else errors.CLUSTER_DISABLED
    )


_ANSWERS: Mapping[bytes, Handler] = {
    b"cluster|count-failure-reports": count_failure_reports,
    b"cluster|countkeysinslot": countkeysinslot,
    b"cluster|help": container_help,
    b"cluster|info": info,
    b"cluster|keyslot": keyslot,
    b"cluster|links": links,
    b"cluster|myid": myid,
    b"cluster|myshardid": myshardid,
    b"cluster|nodes": nodes,
    b"cluster|replicas": replicas,
    b"cluster|shards": shards,
    b"cluster|slaves": replicas,
    b"cluster|slots": slots,
}

HANDLERS: dict[bytes, Handler] = {
    row.name: _clustered(_ANSWERS.get(row.name, refused))
    for row in commands.COMMANDS
    if row.container == b"cluster" and row.path is not Path.CONTAINER
}
