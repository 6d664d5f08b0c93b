"""What a client asks the server about itself: INFO, CONFIG GET, ROLE, TIME, ACL, HELP and the rest.

The answers describe the proxy, in Redis' layout and with the fields that client libraries and
frameworks look for when they start; they need no node, so clients connect while Redis is down.
An unknown command ends here too, under the name b"".

Always true: a client reads about its own user only.
"""

import os
import resource
import secrets
import time
from collections.abc import Mapping

from proxy import commands, errors, resp, wire
from proxy.handlers import REDIS_VERSION, Handler, Server, Session, Statistics
from proxy.handlers.connection import integer
from proxy.handlers.glob import matches
from proxy.wire.rules import Path

# Redis' limit for ACL GENPASS, in bits.
MOST_GENPASS_BITS = 4096


def unknown(session: Session, request: wire.Request) -> bytes:
    """Answer a command that has no row, or a container with a word that has none."""
    words = request.arguments
    index = commands.INDEX.get(words[0].lower())
    if index is not None and commands.COMMANDS[index].path is Path.CONTAINER:
        return errors.unknown_subcommand(words[0], words[1] if len(words) > 1 else None)
    return errors.unknown_command(words[0], words[1:])


def info(session: Session, request: wire.Request) -> bytes:
    asked = [word.lower() for word in request.arguments[1:]]
    server, statistics = session.server, session.server.statistics()
    sections = {
        "server": _server_section(session, server),
        "clients": {
            "connected_clients": statistics.clients,
            "maxclients": server.config.limits.clients,
            "blocked_clients": 0,
        },
        "memory": _memory_section(statistics),
        "persistence": {"loading": 0, "rdb_last_save_time": int(server.started)},
        "stats": {
            "total_connections_received": statistics.connections_received,
            "total_commands_processed": statistics.commands_processed,
            "rejected_connections": statistics.connections_rejected,
        },
        "replication": {"role": "master", "connected_slaves": 0},
        "cpu": _cpu_section(),
        "cluster": {"cluster_enabled": 0},
        "keyspace": {"db0": "keys=0,expires=0,avg_ttl=0"},
        "sidecache": _sidecache_section(statistics),
    }
    whole = not asked or any(word in (b"default", b"all", b"everything") for word in asked)
    text = "\r\n".join(
        f"# {name.capitalize() if name not in _SPELLED else _SPELLED[name]}\r\n"
        + "".join(f"{key}:{value}\r\n" for key, value in fields.items())
        for name, fields in sections.items()
        if whole or name.encode() in asked
    )
    return resp.encode(resp.Verbatim(text), session.protocol)


_SPELLED: Mapping[str, str] = {"cpu": "CPU", "sidecache": "sidecache"}


def _server_section(session: Session, server: Server) -> Mapping[str, object]:
    uptime = max(0, int(time.time() - server.started))
    # A client on the unix socket has no port to be told, as in a Redis with `port 0`.
    port = session.local.rpartition(":")[2]
    return {
        "redis_version": REDIS_VERSION,
        "redis_mode": "standalone",
        "arch_bits": 64,
        "process_id": os.getpid(),
        "run_id": server.run_id,
        "tcp_port": port if port.isdigit() else 0,
        "server_time_usec": int(time.time() * 1_000_000),
        "uptime_in_seconds": uptime,
        "uptime_in_days": uptime // 86_400,
    }


def _memory_section(statistics: Statistics) -> Mapping[str, object]:
    # getrusage counts in KiB on Linux; the peak is what it has.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "used_memory": peak,
        "used_memory_peak": peak,
        "maxmemory": 0,
        "maxmemory_policy": statistics.maxmemory_policy,
    }


def _cpu_section() -> Mapping[str, object]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"used_cpu_sys": f"{usage.ru_stime:.6f}", "used_cpu_user": f"{usage.ru_utime:.6f}"}


def _sidecache_section(statistics: Statistics) -> Mapping[str, object]:
    fields: dict[str, object] = {"sidecache_version": statistics.version}
    for cluster in statistics.clusters:
        state = "up" if cluster.available else "down"
        fields[f"cluster_{cluster.name}"] = (
            f"state={state},nodes={cluster.nodes},maxmemory_policy={cluster.maxmemory_policy}"
        )
    return fields


def config_get(session: Session, request: wire.Request) -> bytes:
    patterns = request.arguments[2:]
    known = _settings(session)
    found = {
        name: value
        for name, value in known.items()
        if any(matches(pattern, name.encode()) for pattern in patterns)
    }
    return resp.encode(found, session.protocol)


def _settings(session: Session) -> Mapping[str, str]:
    """Return the settings that frameworks read when they start, as they hold for the proxy."""
    limits = session.server.config.limits
    soft = f"{limits.output_bytes} {limits.output_bytes} {int(limits.output_seconds)}"
    return {
        "databases": "1",
        "maxmemory": "0",
        "maxmemory-policy": session.server.statistics().maxmemory_policy,
        "maxclients": str(limits.clients),
        "timeout": str(int(limits.idle)),
        "save": "",
        "appendonly": "no",
        "replica-read-only": "yes",
        "slave-read-only": "yes",
        "notify-keyspace-events": "",
        "proto-max-bulk-len": str(_argument_limit(session)),
        "client-output-buffer-limit": f"normal {soft} slave 0 0 0 pubsub {soft}",
    }


def _argument_limit(session: Session) -> int:
    """Return how many bytes one argument of this client may have."""
    roles = session.server.router.ruleset.roles
    return roles[session.downstream.role].limits.argument_bytes


def role(session: Session, request: wire.Request) -> bytes:
    return resp.encode(["master", 0, []], session.protocol)


def server_time(session: Session, request: wire.Request) -> bytes:
    """TIME of the proxy's own clock, so that it has an answer while Redis is down."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return resp.encode([str(seconds), str(microseconds)], session.protocol)


def lastsave(session: Session, request: wire.Request) -> bytes:
    return resp.integer(int(session.server.started))


def lolwut(session: Session, request: wire.Request) -> bytes:
    text = f"sidecache, in front of Redis ver. {REDIS_VERSION}\n"
    return resp.encode(resp.Verbatim(text), session.protocol)


def module_list(session: Session, request: wire.Request) -> bytes:
    return resp.encode([], session.protocol)


def whoami(session: Session, request: wire.Request) -> bytes:
    return resp.encode(session.user, session.protocol)


def users(session: Session, request: wire.Request) -> bytes:
    return resp.encode([session.user], session.protocol)


def categories(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    if not words:
        return resp.encode(sorted(commands.CATEGORIES), session.protocol)
    if len(words) > 1:
        return errors.SYNTAX
    # Where Redis lists a container's name it means all its sub-commands; ours are all named.
    found = commands.CATEGORIES.get(words[0].lower().decode("latin-1"))
    if found is None:
        return errors.unknown_category(words[0])
    return resp.encode(sorted(found), session.protocol)


def genpass(session: Session, request: wire.Request) -> bytes:
    words = request.arguments[2:]
    if len(words) > 1:
        return errors.wrong_arity(b"acl|genpass")
    bits = integer(words[0]) if words else 256
    if bits is None:
        return errors.NOT_AN_INTEGER
    if not 0 < bits <= MOST_GENPASS_BITS:
        return errors.GENPASS_BITS
    digits = (bits + 3) // 4
    return resp.encode(secrets.token_hex((digits + 1) // 2)[:digits], session.protocol)


def container_help(session: Session, request: wire.Request) -> bytes:
    """HELP of any container: the sub-commands that are offered."""
    container = request.name.partition(b"|")[0]
    lines = [f"{container.decode().upper()} <subcommand> [<arg> [value] [opt] ...]. "
             "Subcommands are:"]  # fmt: skip
    lines += [
        row.name.partition(b"|")[2].decode().upper()
        for row in commands.COMMANDS
        if row.name.startswith(container + b"|") and row.offered
    ]
    return resp.encode([resp.Simple(line) for line in lines], session.protocol)


HANDLERS: dict[bytes, Handler] = {
    b"": unknown,
    b"info": info,
    b"config|get": config_get,
    b"role": role,
    b"time": server_time,
    b"lastsave": lastsave,
    b"lolwut": lolwut,
    b"module|list": module_list,
    b"acl|whoami": whoami,
    b"acl|users": users,
    b"acl|cat": categories,
    b"acl|genpass": genpass,
    **{
        row.name: container_help
        for row in commands.COMMANDS
        if row.name.endswith(b"|help") and row.offered
    },
}
