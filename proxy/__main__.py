"""The command line: `sidecache VERB` and `python -m proxy VERB`.

One function per verb. Each imports what it needs when it runs, so that `health` and `--version`
answer in the time of a bare interpreter, and a probe never pays for what `serve` needs.

Always true:
  * exit codes: 0 fine, 1 said no or failed, 2 wrong usage or an invalid configuration;
  * what an operator can mend is a sentence, or a list of all mistakes, and never a traceback;
  * what is asked for is on stdout, complaints are on stderr. What `check` finds is asked for.
"""

import argparse
import os
import shlex
import socket
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxy import errors, wire
from proxy.wire import rules

FINE, FAILED, INVALID = 0, 1, 2

# A probe of Kubernetes or Docker has a few seconds; an answer takes a millisecond.
HEALTH_TIMEOUT = 2.0  # seconds

# Where the admin port is when nobody says otherwise, as in the settings.
DEFAULT_ADMIN = "127.0.0.1:9121"

# Hash slots of a Redis Cluster.
SLOTS = 16384

# Flags that set a field of the configuration, as `environment` knows them.
SETTINGS = {
    "--listen": "address for clients, HOST:PORT",
    "--unix": "unix socket for clients, beside TCP or alone",
    "--admin": "address of health and metrics, HOST:PORT",
    "--policies": "folder or file with the rules",
    "--locks-url": "nodes of the cluster locks: URLs, apart by commas",
    "--cache-url": "nodes of the cluster cache; URLs with passwords rather go into a file, "
    "see SIDECACHE_CACHE_URL_FILE",
}

Flags = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. Wrong usage ends in SystemExit, as argparse does."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser(words).parse_args(words)
        code: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "proxy":
            raise
        return _complain(
            errors.StartError(
                f"the Python package {error.name} is missing; install sidecache with pip, which "
                "brings what it needs"
            )
        )
    except errors.SidecacheError as error:
        return _complain(error)
    return code


def _complain(error: errors.SidecacheError) -> int:
    """Print what is wrong: a sentence behind our name, several mistakes beneath it."""
    invalid = isinstance(error, errors.ConfigError | errors.PolicyError)
    text = str(error)
    if invalid and "\n" in text:
        text = f"{len(text.splitlines())} mistakes\n{text}"
    print(f"sidecache: {text}", file=sys.stderr)
    return INVALID if invalid else FAILED


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        print(f"sidecache {metadata.version('sidecache')}")
        parser.exit(FINE)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; only the verb in use is asked for flags that cost an import."""
    parser = argparse.ArgumentParser(
        prog="sidecache", description="A cache proxy that speaks the Redis protocol.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    serve = verb("serve", _serve, "Run the proxy.")
    _add_config(serve, SETTINGS)
    demo = verb("demo", _demo, "Real clusters, PostgreSQL and the proxy, on this machine.")
    if words[:1] == ["demo"]:
        from proxy import demo as play

        play.add_arguments(demo)
    check = verb("check", _check, "Find every mistake of the policies, or of the configuration.")
    check.add_argument("path", metavar="PATH", nargs="?", type=Path, help="policies to check")
    _add_config(check, {})
    explain = verb("explain", _explain, "Say what would become of a command, without sending it.")
    explain.add_argument("command", metavar="COMMAND", nargs="+", help="such as GET session:1")
    explain.add_argument("--role", default="default", help="who sends it (default: default)")
    _add_config(explain, {"--policies": SETTINGS["--policies"]})
    verb("schema", _schema, "Print the JSON Schema of policy files, for editors.")
    health = verb("health", _health, "Ask a running proxy whether it is alive.")
    health.add_argument("--ready", action="store_true", help="ask whether it serves clients")
    health.add_argument(
        "--admin", metavar="HOST:PORT", help=f"default: SIDECACHE_ADMIN, else {DEFAULT_ADMIN}"
    )
    return parser


def _add_config(parser: argparse.ArgumentParser, settings: Flags) -> None:
    parser.add_argument(
        "--config", metavar="FILE", type=Path,
        help="default: SIDECACHE_CONFIG, else sidecache.yaml where it exists",
    )  # fmt: skip
    for flag, text in settings.items():
        parser.add_argument(flag, metavar="VALUE", help=text)


def _flags(options: argparse.Namespace) -> Flags:
    """Return the flags that were given, by their names."""
    given = {flag: getattr(options, flag[2:].replace("-", "_"), None) for flag in SETTINGS}
    return {flag: value for flag, value in given.items() if value is not None}


def _serve(options: argparse.Namespace) -> int:
    from proxy import app, config

    return app.serve(config.load(options.config, os.environ, _flags(options)))


def _demo(options: argparse.Namespace) -> int:
    from proxy import demo

    return demo.run(options)


def _schema(options: argparse.Namespace) -> int:
    from proxy.policy import model

    print(model.json_schema(), end="")
    return FINE


# --- health


def _health(options: argparse.Namespace) -> int:
    address = options.admin or os.environ.get("SIDECACHE_ADMIN") or DEFAULT_ADMIN
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise errors.ConfigError(f"{address}: expects HOST:PORT, such as {DEFAULT_ADMIN}")
    # Whoever listens everywhere is asked here.
    host = host.strip("[]")
    host = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    page = "/readyz" if options.ready else "/livez"
    try:
        answer = _ask(host, int(port), page)
    except OSError as error:
        raise errors.StartError(
            f"the admin port {address} does not answer: {error.strerror or error}; "
            "is the proxy running, and is --admin or SIDECACHE_ADMIN its address?"
        ) from None
    head, _, body = answer.partition("\r\n\r\n")
    print(body.strip() or head.partition("\r\n")[0])
    return FINE if head.split()[1:2] == ["200"] else FAILED


def _ask(host: str, port: int, page: str) -> str:
    """Return the answer to a GET, its first few kilobytes."""
    request = f"GET {page} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, port), HEALTH_TIMEOUT) as connection:
        connection.sendall(request.encode("ascii", "replace"))
        answer = b""
        while len(answer) < 4096 and (piece := connection.recv(4096)):
            answer += piece
    return answer.decode("utf-8", "replace")


# --- check


def _check(options: argparse.Namespace) -> int:
    from proxy import app, config, metrics
    from proxy.policy import compiler

    path, names, mistakes = options.path, None, list[str]()
    settings = None
    if _whole(options):
        flags = {} if path is None else {"--policies": str(path)}
        try:
            settings = config.load(options.config, os.environ, flags)
        except config.ConfigMistakes as error:
            mistakes += map(str, error.mistakes)
            # What could be read is enough to look at the policies as well, in the same run.
            if error.readable is not None:
                path, names = error.readable.policies, tuple(error.readable.clusters) or None
    try:
        ruleset, names = (
            (app.load_rules(settings), tuple(settings.clusters))
            if settings is not None
            else compiler.from_files(path, names)
        )
    except (errors.PolicyError, errors.StartError) as error:
        mistakes += str(error).splitlines()
    if mistakes:
        print("\n".join(mistakes))
        print(f"sidecache: {len(mistakes)} to mend", file=sys.stderr)
        return FAILED
    fixed = metrics.series(ruleset, names or (), 0)
    per_node = metrics.series(ruleset, names or (), 1) - fixed
    print(
        f"no mistakes: {len(ruleset.keyspaces)} keyspaces, {len(ruleset.roles)} roles, "
        f"{fixed:,} metric series at most, and {per_node} more for each node"
    )
    return FINE


def _whole(options: argparse.Namespace) -> bool:
    """Return whether the configuration is checked, and not a folder of policies alone."""
    if options.config is not None:
        return True
    if options.path is not None:
        return False
    if "SIDECACHE_CONFIG" in os.environ or Path("sidecache.yaml").exists():
        return True
    raise errors.ConfigError("nothing to check: name a folder of policies, or --config FILE")


# --- explain


def _explain(options: argparse.Namespace) -> int:
    from proxy.policy import compiler

    words = options.command
    # The command may come as one word in quotes, as it would be typed into redis-cli.
    if len(words) == 1:
        words = shlex.split(words[0]) or [""]
    path = None if options.policies is None else Path(options.policies)
    clusters = None
    if options.config is not None or path is None:
        from proxy import config

        settings = config.load(options.config, os.environ, _flags(options))
        path, clusters = settings.policies, tuple(settings.clusters)
    ruleset, clusters = compiler.from_files(path, clusters)
    roles = [role.name for role in ruleset.roles]
    if options.role not in roles:
        raise errors.ConfigError(f"no policy describes the role {options.role}; "
                                 f"there is: {', '.join(roles)}")  # fmt: skip
    side = _stranger(ruleset, len(clusters), options.role)
    arguments = [os.fsencode(word) for word in words]
    request = side.receive_data(wire.pack(arguments), 0.0)
    verdict, code = _verdict(ruleset, request, side.data_to_send())
    for key in _keys(arguments):
        print("\n".join(_describe_key(ruleset, side, key, clusters, path)))
    print(f"verdict    {verdict}")
    return code


def _stranger(ruleset: wire.Ruleset, clusters: int, role: str) -> wire.Downstream:
    """Return a client whose commands are judged and go nowhere: no slot has a node."""
    nowhere = wire.SlotMap([(True, array("h", [-1]) * SLOTS)] * clusters, [()] * clusters)
    side = wire.Downstream(wire.Router(ruleset, nowhere), wire.Batch(lambda: None), 0)
    side.assume(role)
    return side


def _verdict(ruleset: wire.Ruleset, request: wire.Request | None, reply: bytes) -> tuple[str, int]:
    """Return what becomes of the command, and the exit code: 1 where it is refused."""
    if request is None:
        # Whatever is allowed stands before slots that nobody owns.
        if reply == ruleset.errors.clusterdown:
            return "forwarded to the node of its slot", FINE
        return f"refused: {reply.decode('latin-1').strip()}", FAILED
    if request.row < 0:
        unknown = errors.unknown_command(request.arguments[0], request.arguments[1:])
        return f"refused: {unknown.decode('latin-1').strip()}", FAILED
    path = ruleset.commands[request.row].path
    if path is rules.Path.SPLIT:
        return "split: one part for each slot, answered as one", FINE
    if path is rules.Path.FORWARD:
        return "forwarded, and names in the reply are translated back", FINE
    return "answered by the proxy", FINE


def _keys(arguments: Sequence[bytes]) -> list[bytes]:
    """Return the keys of a command, none where that is not certain."""
    from proxy import commands, keys

    lower = [word.lower() for word in arguments]
    index = commands.INDEX.get(b"|".join(lower[:2]), commands.INDEX.get(lower[0]))
    positions = None if index is None else keys.find_keys(commands.COMMANDS[index], arguments)
    return [arguments[position] for position in positions or ()]


def _describe_key(
    ruleset: wire.Ruleset, side: wire.Downstream, key: bytes,
    clusters: Sequence[str], policies: Path | None,
) -> list[str]:  # fmt: skip
    index = ruleset.find_keyspace(key)
    keyspace = ruleset.keyspaces[index].name if index >= 0 else None
    where = _place(policies, keyspace) if keyspace is not None else ""
    lines = [f"key        {errors.quoted(key)}", f"keyspace   {keyspace or 'none'}{where}"]
    found = side.locate(key, ruleset.find_command(b"get"))
    if isinstance(found, bytes):
        return lines
    return [
        *lines,
        f"nodes see  {errors.quoted(found.name, len(found.name) * 4)}",
        f"slot       {wire.key_slot(found.name)} of cluster {clusters[found.cluster]}",
    ]


def _place(policies: Path | None, keyspace: str) -> str:
    """Return where the rule of a keyspace stands, in brackets."""
    from proxy.documents import read

    if policies is None:
        return ""
    for file in sorted(policies.glob("*.y*ml")) if policies.is_dir() else [policies]:
        root, _ = read(file)
        entry = root.value.get("keyspaces") if root and isinstance(root.value, dict) else None
        if entry is not None and keyspace in (entry.node.value or ()):
            line, column = entry.node.place([keyspace], key=True)
            return f"  ({file}:{line}:{column})"
    return ""


if __name__ == "__main__":
    sys.exit(main())
