"""What a client asks the server about itself: CONFIG GET, ROLE, TIME, HELP and the rest.

The answers describe the proxy, in Redis' layout and with the fields that client libraries and
frameworks look for when they start; they need no node, so clients connect while Redis is down.
An unknown command ends here too, under the name b"".
"""

import time
from collections.abc import Mapping

from proxy import commands, errors, resp, wire
from proxy.handlers import REDIS_VERSION, Handler, Session
from proxy.handlers.glob import matches
from proxy.wire.rules import Path


def unknown(session: Session, request: wire.Request) -> bytes:
    """Answer a command that has no row, or a container with a word that has none."""
    words = request.arguments
    ruleset = session.server.router.ruleset
    index = ruleset.find_command(words[0])
    if index >= 0 and ruleset.commands[index].path is Path.CONTAINER:
        return errors.unknown_subcommand(words[0], words[1] if len(words) > 1 else None)
    return errors.unknown_command(words[0], words[1:])


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
        "databases": str(max(session.server.config.databases, default=0) + 1),
        "maxmemory": "0",
        "maxmemory-policy": session.server.statistics().maxmemory_policy,
        "maxclients": str(limits.clients),
        "cluster-enabled": "yes" if session.clustered else "no",
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


def resetstat(session: Session, request: wire.Request) -> bytes:
    session.server.reset_statistics()
    return resp.OK


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
    b"config|get": config_get,
    b"config|resetstat": resetstat,
    b"role": role,
    b"time": server_time,
    b"lastsave": lastsave,
    b"lolwut": lolwut,
    b"module|list": module_list,
    **{
        row.name: container_help
        for row in commands.COMMANDS
        # That of CLUSTER is for clients who see a cluster.
        if row.name.endswith(b"|help") and row.offered and row.container != b"cluster"
    },
}
