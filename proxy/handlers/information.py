"""INFO: the state of this process, in Redis' layout and with the fields that others look for.

Client libraries read it to know whether the server is ready, job queues whether keys may be
evicted, monitoring to draw its curves. Of what the proxy cannot know without asking nodes there is
no field rather than a zero; only what some library cannot start without is always there.

Always true: no node is asked, so clients connect while Redis is down. Figures of commands are of
those that a node answered, from the last byte of the request to the last byte of the reply.
"""

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from proxy import resp, wire
from proxy.handlers import REDIS_VERSION, Applied, Handler, Session, Statistics

Fields = Mapping[str, object]

# Percentiles that Redis shows unless it is configured otherwise.
PERCENTILES = (50.0, 99.0, 99.9)


def info(session: Session, request: wire.Request) -> bytes:
    asked = {word.lower() for word in request.arguments[1:]} or {b"default"}
    whole = bool(asked & {b"all", b"everything"})
    shown = [
        name
        for name in _SECTIONS
        if whole or name.encode() in asked or (b"default" in asked and name not in _NOT_BY_DEFAULT)
    ]
    statistics = session.server.statistics()
    text = "\r\n".join(_section(session, statistics, name) for name in shown)
    return resp.encode(resp.Verbatim(text), session.protocol)


def _section(session: Session, statistics: Statistics, name: str) -> str:
    fields = _SECTIONS[name](session, statistics)
    lines = "".join(f"{key}:{value}\r\n" for key, value in fields.items())
    return f"# {_SPELLED.get(name, name.capitalize())}\r\n{lines}"


def _server(session: Session, statistics: Statistics) -> Fields:
    server = session.server
    uptime = max(0, int(time.time() - server.started))
    # A client on the unix socket has no port to be told, as in a Redis with `port 0`.
    port = session.local.rpartition(":")[2]
    return {
        "redis_version": REDIS_VERSION,
        "redis_mode": "cluster" if session.clustered else "standalone",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "arch_bits": 64,
        "process_id": os.getpid(),
        "run_id": server.run_id,
        "tcp_port": port if port.isdigit() else 0,
        "server_time_usec": time.time_ns() // 1000,
        "uptime_in_seconds": uptime,
        "uptime_in_days": uptime // 86_400,
    }


def _clients(session: Session, statistics: Statistics) -> Fields:
    server = session.server
    held = [kind for other in server.sessions.values() for kind in other.holdings]
    return {
        "connected_clients": statistics.clients,
        "cluster_connections": 0,
        "maxclients": server.config.limits.clients,
        "blocked_clients": held.count("blocked"),
        "tracking_clients": 0,
        "pubsub_clients": held.count("subscriptions"),
        "watching_clients": held.count("watch"),
    }


def _memory(session: Session, statistics: Statistics) -> Fields:
    used = resident()
    peak = max(used, most_resident())
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    # The proxy limits what clients may cost, not itself; data and its limit are the nodes'.
    sizes = {
        "used_memory": used,
        "used_memory_rss": used,
        "used_memory_peak": peak,
        "total_system_memory": total,
        "maxmemory": 0,
    }
    fields: dict[str, object] = {}
    for name, size in sizes.items():
        fields[name] = size
        fields[f"{name}_human"] = human(size)
    fields["maxmemory_policy"] = statistics.maxmemory_policy
    fields["mem_fragmentation_ratio"] = "1.00"
    fields["mem_allocator"] = "libc"
    return fields


_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def most_resident() -> int:
    """Return the bytes of memory that the process has had at most."""
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Return the bytes of memory that the process has; without /proc, those it has had at most."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return most_resident()


def human(size: int) -> str:
    """Return a size as Redis writes it for people."""
    if size < 1024:
        return f"{size}B"
    for power, unit in enumerate("KMGTP", 1):
        if size < 1024 ** (power + 1):
            return f"{size / 1024**power:.2f}{unit}"
    return f"{size}B"


def _persistence(session: Session, statistics: Statistics) -> Fields:
    return {
        "loading": 0,
        "async_loading": 0,
        "rdb_changes_since_last_save": 0,
        "rdb_bgsave_in_progress": 0,
        "rdb_last_save_time": int(session.server.started),
        "rdb_last_bgsave_status": "ok",
        "aof_enabled": 0,
        "aof_rewrite_in_progress": 0,
        "aof_last_bgrewrite_status": "ok",
        "aof_last_write_status": "ok",
    }


def _stats(session: Session, statistics: Statistics) -> Fields:
    topics = session.server.pools.broker.topics
    return {
        "total_connections_received": statistics.connections_received,
        "total_commands_processed": statistics.commands_processed,
        "rejected_connections": statistics.connections_rejected,
        "pubsub_channels": len(topics["channel"]),
        "pubsub_patterns": len(topics["pattern"]),
        "pubsubshard_channels": len(topics["shard"]),
        "total_error_replies": statistics.errors + statistics.refusals,
    }


def _replication(session: Session, statistics: Statistics) -> Fields:
    return {
        "role": "master",
        "connected_slaves": 0,
        "master_failover_state": "no-failover",
        "master_replid": session.server.run_id,
        "master_repl_offset": 0,
    }


def _cpu(session: Session, statistics: Statistics) -> Fields:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "used_cpu_sys": f"{own.ru_stime:.6f}",
        "used_cpu_user": f"{own.ru_utime:.6f}",
        "used_cpu_sys_children": f"{children.ru_stime:.6f}",
        "used_cpu_user_children": f"{children.ru_utime:.6f}",
    }


def _modules(session: Session, statistics: Statistics) -> Fields:
    return {}


def _commandstats(session: Session, statistics: Statistics) -> Fields:
    """Return calls and times by command; what is refused is counted by family, in the metrics."""
    fields: dict[str, object] = {}
    rows = session.server.router.ruleset.commands
    for row, failed, seconds, counts in session.server.latencies.commands():
        calls, spent = sum(counts), round(seconds * 1e6)
        fields[f"cmdstat_{rows[row].name.decode()}"] = (
            f"calls={calls},usec={spent},usec_per_call={spent / calls:.2f},"
            f"rejected_calls=0,failed_calls={failed}"
        )
    return fields


def _latencystats(session: Session, statistics: Statistics) -> Fields:
    fields: dict[str, object] = {}
    rows = session.server.router.ruleset.commands
    for row, _, _, counts in session.server.latencies.commands():
        shown = ",".join(f"p{p:g}={percentile(counts, p):.3f}" for p in PERCENTILES)
        fields[f"latency_percentiles_usec_{rows[row].name.decode()}"] = shown
    return fields


def percentile(counts: list[int], percent: float) -> float:
    """Return the time in microseconds that so many percent did not exceed; counts as in Latencies.

    It is the upper bound of a bucket, so up to twice the true value, never below it.
    """
    left = sum(counts) * percent / 100
    for bucket, count in enumerate(counts):
        left -= count
        if left <= 0:
            return float(2**bucket)
    return float(2 ** len(counts))


def _errorstats(session: Session, statistics: Statistics) -> Fields:
    """Return errors by who made them: the proxy passes on codes without reading them."""
    counted = {"NODE": statistics.errors, "REFUSED": statistics.refusals}
    return {f"errorstat_{name}": f"count={count}" for name, count in counted.items() if count}


def _cluster(session: Session, statistics: Statistics) -> Fields:
    return {"cluster_enabled": int(session.clustered)}


def _keyspace(session: Session, statistics: Statistics) -> Fields:
    # How many keys there are only nodes know: DBSIZE asks them.
    return {}


def _sidecache(session: Session, statistics: Statistics) -> Fields:
    rules = statistics.rules
    fields: dict[str, object] = {
        "sidecache_version": statistics.version,
        "rules": rules.mark,
        "rules_since": int(rules.since),
        "rules_last_reload": "refused" if rules.mistakes else "ok",
        "rules_mistakes": len(rules.mistakes),
    }
    for cluster in statistics.clusters:
        fields[f"cluster_{cluster.name}"] = (
            f"state={cluster.state},nodes={cluster.nodes},maxmemory_policy={cluster.maxmemory_policy}"
        )
    if statistics.postgres:
        fields["postgres"] = f"state={statistics.postgres}"
    if statistics.behind:
        fields["behind"] = f"state={statistics.behind}"
    for cluster in statistics.clusters:
        if cluster.invalidation is not None:
            fields[f"invalidation_{cluster.name}"] = _applied(cluster.invalidation)
    return fields


def _applied(of: Applied) -> str:
    return (
        f"leading={int(of.leading)},lag={of.lag:.3f},owed={of.owed},position={of.position},"
        f"changes={of.changes},replays={of.replays}"
    )


_SECTIONS: Mapping[str, Callable[[Session, Statistics], Fields]] = {
    "server": _server,
    "clients": _clients,
    "memory": _memory,
    "persistence": _persistence,
    "stats": _stats,
    "replication": _replication,
    "cpu": _cpu,
    "modules": _modules,
    "commandstats": _commandstats,
    "errorstats": _errorstats,
    "latencystats": _latencystats,
    "cluster": _cluster,
    "keyspace": _keyspace,
    "sidecache": _sidecache,
}

_NOT_BY_DEFAULT = {"commandstats", "latencystats"}
_SPELLED: Mapping[str, str] = {"cpu": "CPU", "sidecache": "sidecache"}

HANDLERS: dict[bytes, Handler] = {b"info": info}
