"""The command line: `sidecache VERB` and `python -m proxy VERB`.

One function per verb. Each imports what it needs when it runs, so that `health` and `--version`
answer in the time of a bare interpreter, and a probe never pays for what `serve` needs.

Always true:
  * exit codes: 0 fine, 1 said no or failed, 2 wrong usage or an invalid configuration;
  * what an operator can mend is a sentence, or a list of all mistakes, and never a traceback;
  * what is asked for is on stdout, complaints are on stderr. What `check` finds is asked for.
"""

import argparse
import gc
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from proxy import errors, probe, wire

FINE, FAILED, INVALID = 0, 1, 2

# A probe of Kubernetes or Docker has a few seconds; an answer takes a millisecond.
HEALTH_TIMEOUT = 2.0  # seconds

# Flags that set a field of the configuration, as `environment` knows them.
SETTINGS = {
    "--listen": "address for clients, HOST:PORT",
    "--unix": "unix socket for clients, beside TCP or alone",
    "--admin": "address of health and metrics, HOST:PORT",
    "--policies": "folder or file with the rules",
    "--database": "URL of PostgreSQL; with a password rather SIDECACHE_DATABASE_URL_FILE",
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


def _typed(text: str) -> list[str]:
    """Return the words of a command in quotes. Raises ConfigError."""
    try:
        return shlex.split(text) or [""]
    except ValueError as error:
        raise errors.ConfigError(f"the command cannot be read: {error}") from error


def _add_explain(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("command", metavar="COMMAND", nargs="*", help="such as GET session:1")
    explain.add_argument("--role", default="default", help="who sends it (default: default)")
    explain.add_argument("--user", help="who sends it: a user of the configuration")
    explain.add_argument("--protocol", type=int, choices=(2, 3), default=2, help="RESP version")
    _add_config(explain, {"--policies": SETTINGS["--policies"]})
    explain.add_argument(
        "--replay", metavar="FILE", type=Path, help="instead of one command those of a recording, "
        "- for stdin: lines of MONITOR or as typed into redis-cli, with user=NAME before them if "
        "wanted; the access log hides arguments and cannot be replayed"
    )  # fmt: skip
    explain.add_argument(
        "--against", metavar="PATH", type=Path,
        help="with --replay: policies by which to judge too; says what changes, 1 if anything does",
    )  # fmt: skip


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
    check.add_argument("--json", action="store_true", help="print what was found as JSON")
    check.add_argument("--database", metavar="URL", nargs="?", const="", help="ask PostgreSQL too")
    _add_config(check, {})
    explain = verb("explain", _explain, "Say what would become of a command, without sending it.")
    _add_explain(explain)
    diff = verb("diff", _diff, "Say what changes from one folder of policies to another.")
    diff.add_argument("old", metavar="OLD", type=Path, help="policies in force")
    diff.add_argument("new", metavar="NEW", type=Path, help="policies that take their place")
    _add_sql(verb("sql", _sql, "What sidecache needs in PostgreSQL: tables and triggers."))
    verb("schema", _schema, "Print the JSON Schema of policy files, for editors.")
    _add_running(verb)
    return parser


def _add_running(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs that a running proxy answers."""
    restore = verb("restore", _restore, "Have a running proxy bring back what Redis has lost.")
    restore.add_argument("--keyspace", metavar="NAME", help="this one alone")
    drift = verb("drift", _drift, "Have a running proxy compare keys with their rows.")
    drift.add_argument("--keyspace", metavar="NAME", help="this one alone")
    drift.add_argument("--keys", metavar="N", type=int, default=1000, help="of each cluster")
    drift.add_argument("--repair", action="store_true", help="take away those that differ")
    health = verb("health", _health, "Ask a running proxy whether it is alive.")
    health.add_argument("--ready", action="store_true", help="ask whether it serves clients")
    for asking in (restore, drift, health):
        asking.add_argument(
            "--admin", metavar="HOST:PORT", help=f"default: SIDECACHE_ADMIN, else {probe.DEFAULT}"
        )


def _add_sql(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("install",), help="make them, or take them away")
    parser.add_argument("--print", action="store_true", help="print the SQL and change nothing")
    parser.add_argument("--remove", action="store_true", help="take away instead")
    _add_config(parser, {flag: SETTINGS[flag] for flag in ("--database", "--policies")})


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

    def load() -> config.Config:
        return config.load(options.config, os.environ, _flags(options))

    return app.serve(load(), load)


def _demo(options: argparse.Namespace) -> int:
    from proxy import demo

    return demo.run(options)


def _schema(options: argparse.Namespace) -> int:
    from proxy.policy import model

    print(model.json_schema(), end="")
    return FINE


def _diff(options: argparse.Namespace) -> int:
    from proxy.policy import compiler, differences

    old, new = (compiler.read(path, None) for path in (options.old, options.new))
    lines = differences.differences(old, new, limit=sys.maxsize)
    print("\n".join(lines) or "no difference")
    return FAILED if lines else FINE


# --- sql


def _sql(options: argparse.Namespace) -> int:
    from proxy.origin import installing
    from proxy.policy import compiler, planning

    url = options.database
    path, clusters = options.policies and Path(options.policies), None
    if path is None or (url is None and not options.print):
        from proxy import config

        settings = config.load(options.config, os.environ, _flags(options))
        path, clusters = settings.policies, tuple(settings.clusters)
        if settings.database is not None:
            url = settings.database.direct_url.reveal()
    policies = compiler.read(path, clusters)
    watches, locks = planning.watches_of(policies), planning.locks_of(policies)
    if url is None and not options.print:
        raise errors.ConfigError("no database is named: --database URL, or database: in the file")
    if url is None:
        make = installing.remove_sql if options.remove else installing.install_sql
        text = make(watches, locks=locks)
    else:
        text = installing.applied(
            url, watches, apply=not options.print, remove=options.remove, locks=locks
        )
    if options.print:
        print(text, end="")
    else:
        tables = ", ".join(watch.table for watch in watches) or "none"
        print(f"{'removed' if options.remove else 'installed'}; watched tables: {tables}")
    return FINE


# --- a running proxy


def _health(options: argparse.Namespace) -> int:
    page = "/readyz" if options.ready else "/livez"
    status, text = probe.ask(_admin(options), page, timeout=HEALTH_TIMEOUT)
    print(text)
    return FINE if status == 200 else FAILED


def _restore(options: argparse.Namespace) -> int:
    from proxy import remote

    return FINE if remote.restore(_admin(options), options.keyspace, _show) else FAILED


def _drift(options: argparse.Namespace) -> int:
    from proxy import remote

    address, keyspace = _admin(options), options.keyspace
    same = remote.drift(address, keyspace, options.keys, _show, repair=options.repair)
    return FINE if same else FAILED


def _show(line: str) -> None:
    print(line, flush=True)


def _admin(options: argparse.Namespace) -> tuple[str, int]:
    return probe.address_of(options.admin or os.environ.get("SIDECACHE_ADMIN") or probe.DEFAULT)


# --- check


def _check(options: argparse.Namespace) -> int:
    from proxy import check, config
    from proxy.documents import MistakesFound
    from proxy.policy import compiler

    # What is read here lives until the end, which is near.
    gc.disable()
    path, names = options.path, None
    mistakes: list[Any] = []
    settings = None
    if _whole(options):
        flags = {} if path is None else {"--policies": str(path)}
        try:
            settings = config.load(options.config, os.environ, flags)
            path = settings.policies
        except config.ConfigMistakes as error:
            mistakes += error.mistakes
            # What could be read is enough to look at the policies as well, in the same run.
            if error.readable is not None:
                path, names = error.readable.policies, tuple(error.readable.clusters) or None
    try:
        ruleset, names = (
            (_load_rules(settings), tuple(settings.clusters))
            if settings is not None
            else compiler.from_files(path, names)
        )
    except MistakesFound as error:
        mistakes += error.mistakes
    except (errors.PolicyError, errors.StartError) as error:
        mistakes += str(error).splitlines()
    asked = options.database is not None
    if asked and not mistakes:
        from proxy import inspection

        database = _database(options, settings)
        mistakes += inspection.mistakes(database, compiler.read(path, names), ruleset)
    found = (
        check.refused(mistakes)
        if mistakes
        else check.accepted(ruleset, names or (), path, database=asked)
    )
    print(check.as_json(found) if options.json else check.as_lines(found))
    if mistakes:
        print(f"sidecache: {len(mistakes)} to mend", file=sys.stderr)
    return FAILED if mistakes else FINE


def _database(options: argparse.Namespace, settings: Any) -> Any:
    """Return where PostgreSQL is: as the command line says, or the configuration or environment."""
    from proxy.config import Database, Secret

    if not options.database and settings is not None and settings.database is not None:
        return settings.database
    named = (os.environ.get(name) for name in ("SIDECACHE_DATABASE_URL", "DATABASE_URL"))
    url = options.database or next(filter(None, named), None)
    if not url:
        raise errors.ConfigError("which database? name it behind --database, or configure it")
    return Database(Secret(url), Secret(url))


def _load_rules(settings: Any) -> wire.Ruleset:
    from proxy import app

    return app.load_rules(settings)


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
    from proxy import explain
    from proxy.policy import compiler

    if options.replay is not None or options.against is not None:
        return _replay(options)
    words = options.command
    if not words:
        raise errors.ConfigError("nothing to explain: name a command, or --replay and --against")
    # The command may come as one word in quotes, as it would be typed into redis-cli.
    if len(words) == 1:
        words = _typed(words[0])
    path, clusters, users = _rules_of(options)
    policies = compiler.read(path, clusters)
    explainer = explain.Explainer(policies, clusters or compiler.clusters_of(policies))
    role = _role(options, users, explainer.roles)
    found = explainer.explain([os.fsencode(word) for word in words], role, options.protocol)
    print("\n".join(explainer.lines(found)))
    return FAILED if found.refused else FINE


def _rules_of(
    options: argparse.Namespace,
) -> tuple[Path | None, tuple[str, ...] | None, dict[str, str]]:
    """Return the policies, the clusters if a configuration names them, and users with roles."""
    path = None if options.policies is None else Path(options.policies)
    if options.config is None and path is not None:
        return path, None, {}
    from proxy import config

    settings = config.load(options.config, os.environ, _flags(options))
    users = {user.name: user.role for user in settings.users}
    return settings.policies, tuple(settings.clusters), users


def _replay(options: argparse.Namespace) -> int:
    from proxy import recording, replay
    from proxy.policy import compiler

    if options.replay is None or options.against is None or options.command:
        raise errors.ConfigError("--replay FILE and --against PATH go together, and no command")
    path, clusters, users = _rules_of(options)
    before, after = (compiler.read(each, clusters) for each in (path, options.against))
    named = {*compiler.clusters_of(before), *compiler.clusters_of(after)}
    found = replay.Replay(before, after, clusters or sorted(named))
    # Without a configuration there are no users, and their names are those of roles.
    known = users or {role: role for role in found.roles}
    role = _role(options, users, sorted(found.roles))
    try:
        with sys.stdin.buffer if str(options.replay) == "-" else options.replay.open("rb") as file:
            found.run(recording.read(file), lambda user: role if user is None else known.get(user))
    except OSError as error:
        message = f"{options.replay} cannot be read: {error.strerror}"
        raise errors.StartError(message) from None
    print("\n".join(replay.lines(found)))
    return FAILED if found.differs else FINE


def _role(options: argparse.Namespace, users: dict[str, str], roles: Sequence[str]) -> str:
    """Return the role of whoever is meant to send the command."""
    if options.user is not None and options.user not in users:
        raise errors.ConfigError(f"no user {options.user} is configured; "
                                 f"there is: {', '.join(users) or 'none'}")  # fmt: skip
    role: str = options.role if options.user is None else users[options.user]
    if role not in roles:
        raise errors.ConfigError(f"no policy describes the role {role}; "
                                 f"there is: {', '.join(roles)}")  # fmt: skip
    return role


if __name__ == "__main__":
    sys.exit(main())
