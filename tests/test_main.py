"""The command line, met as an operator meets it: words, output, exit codes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from proxy import __main__ as command_line
from proxy import log
from proxy.admin import Admin
from proxy.embedded.postgres import Postgres
from proxy.environment import FLAGS
from tests.test_admin import Proxy

ROOT = Path(__file__).parent.parent
POLICIES = ROOT / "policies"

# A start of the interpreter with everything imported takes half a second on an idle machine.
PATIENCE = 30.0  # seconds

CLUSTERS = (
    "clusters: {locks: {nodes: [redis://127.0.0.1:1]}, cache: {nodes: [redis://127.0.0.1:1]}}\n"
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a verb in an empty folder; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SIDECACHE_", "DATABASE_URL")):
            monkeypatch.delenv(name)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = command_line.main(words)
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err.replace(f"{tmp_path}/", "")

    yield run
    log.close()  # which `serve` configures: its limits would hold for the tests that follow


@pytest.fixture
def taken() -> Iterator[str]:
    """Yields an address where somebody else listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    """Start a process of its own, as a shell does."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIDECACHE_", "DATABASE_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "proxy", *words], cwd=folder, text=True,
        env=kept | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of a process."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


# --- The parser


def test_flags_are_those_of_the_configuration() -> None:
    """Every flag that the configuration knows can be given, and no other."""
    assert command_line.SETTINGS.keys() == FLAGS.keys()


@pytest.mark.parametrize(
    "words", [(), ("serv",), ("serve", "--nope"), ("diff",), ("demo", "--port", "x"), ("-x",)]
)
def test_wrong_usage(run: Run, words: tuple[str, ...]) -> None:
    """Wrong usage ends with 2 and a word about what is right."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "usage: sidecache" in err


def test_version(run: Run) -> None:
    """The version is that of the distribution."""
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("sidecache 0.")


@pytest.mark.parametrize(
    "verb", ["", "serve", "demo", "check", "explain", "diff", "schema", "health"]
)
def test_help(run: Run, verb: str) -> None:
    """Every verb explains itself."""
    code, out, _ = run(*filter(None, [verb]), "--help")
    assert code == 0
    assert f"usage: sidecache {verb}".strip() in out


@pytest.mark.parametrize("words", [("--version",), ("health",)])
def test_probes_import_nothing_heavy(tmp_path: Path, words: tuple[str, ...]) -> None:
    """What answers a probe loads neither the models nor YAML nor the event loop."""
    program = (
        "import sys\nfrom proxy.__main__ import main\n"
        f"try:\n    main({list(words)})\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('pydantic', 'yaml', 'asyncio', 'uvloop', 'redis', 'asyncpg', "
        "'prometheus_client', 'http.client') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_missing_package_is_told() -> None:
    """Without one of the packages that it needs, sidecache says what to install."""
    program = (
        "import sys\nsys.modules['uvloop'] = None\n"
        "from proxy.__main__ import main\nsys.exit(main(['serve']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sidecache: the Python package uvloop is missing; install ")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """`sidecache schema | head -0` ends without a traceback."""
    process = start("schema", folder=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    code, _, err = finish(process)
    assert (code, err) == (1, "")


# --- serve


def test_serve_lists_all_mistakes(run: Run, tmp_path: Path) -> None:
    """An invalid configuration ends with 2 and every mistake with its place."""
    text = "lisen: {}\nclusters: {cache: {nodes: [redis://h]}}\nadmin: x\n"
    (tmp_path / "s.yaml").write_text(text)
    code, out, err = run("serve", "--config", "s.yaml", "--listen", "y")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "sidecache: 3 mistakes"
    assert [line.split(" ")[0] for line in lines[1:]] == ["--listen:", "s.yaml:1:1:", "s.yaml:3:8:"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("serve",), "sidecache: configuration: no cluster is named: set SIDECACHE_CACHE_URL, or "
         "clusters: in the file\n"),
        (("serve", "--config", "no.yaml"), "sidecache: no.yaml: cannot be opened: No such file or "
         "directory\n"),
        (("serve", "--config", "."), "sidecache: .: is not a regular file\n"),
        (("serve", "--cache-url", "redis://h", "--policies", "no"),
         "sidecache: no: cannot be opened: No such file or directory\n"),
    ],
)  # fmt: skip
def test_serve_without_what_it_needs(run: Run, words: tuple[str, ...], told: str) -> None:
    """What is missing is told in one line, with 2."""
    assert run(*words) == (2, "", told)


@pytest.mark.integration
@pytest.mark.parametrize("flag", ["--listen", "--admin"])
def test_a_taken_port(tmp_path: Path, taken: str, flag: str) -> None:
    """A port that somebody else has ends with 1 and a sentence about what to change."""
    words = {"--listen": "127.0.0.1:0", "--admin": "127.0.0.1:0", "--cache-url": "redis://h"}
    words[flag] = taken
    code, _, err = finish(
        start("serve", *(word for pair in words.items() for word in pair), folder=tmp_path)
    )
    assert code == 1
    assert "Traceback" not in err
    assert "in use" in err
    assert {"--listen": "SIDECACHE_LISTEN", "--admin": "admin"}[flag] in err


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """With every node away the proxy serves; a signal ends it with 0; flags win over the file."""
    (tmp_path / "s.yaml").write_text(CLUSTERS + "listen: {tcp: nowhere:1}\nadmin: 127.0.0.1:0\n")
    process = start(
        "serve", "--config", "s.yaml", "--listen", "127.0.0.1:0", "--unix", "redis.sock",
        folder=tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(PATIENCE)
        # The file is there a moment before anybody listens.
        while client.connect_ex(str(tmp_path / "redis.sock")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 0, err
    assert "Traceback" not in err


def test_an_interrupt_while_starting_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before anything runs ends with 1 and no word."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_serve", interrupted)
    assert run("serve") == (1, "", "")


# --- demo


def test_demo_says_what_is_wrong(run: Run, tmp_path: Path) -> None:
    """The demo's own complaint of a flag comes with 2, before anything is started."""
    (tmp_path / "file").touch()
    code, _, err = run("demo", "--keep", str(tmp_path))
    assert code == 2
    assert "is not empty" in err


@pytest.mark.integration
def test_demo_check(tmp_path: Path) -> None:
    """`sidecache demo --check` starts everything, tries it and ends with 0."""
    code, out, err = finish(start("demo", "--check", folder=tmp_path))
    assert code == 0, out + err
    assert "FAILED" not in out


# --- check


def test_check_of_the_shipped_policies(run: Run) -> None:
    """The shipped policies are right, and what they cost in series is told."""
    code, out, err = run("check", str(POLICIES))
    assert (code, err) == (0, ""), out
    words = out.replace(",", "").split()
    assert words[:2] == ["no", "mistakes:"]
    assert words[3] == "keyspaces"
    assert words[5] == "roles"
    assert int(words[2]) > 10
    assert int(words[6]) > 100


def test_check_with_a_database(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is away is a sentence and exit code 1; none that is named is a usage error."""
    away = "postgresql://x@127.0.0.1:1/x"
    code, out, _ = run("check", str(POLICIES), "--database", away)
    assert code == 1
    assert out.startswith("PostgreSQL cannot be reached: ")
    code, _, err = run("check", str(POLICIES), "--database")
    assert code == 2
    assert "which database?" in err
    monkeypatch.setenv("SIDECACHE_DATABASE_URL", away)
    assert run("check", str(POLICIES), "--database")[:2] == (1, out)


def test_check_of_a_broken_folder(run: Run, tmp_path: Path) -> None:
    """Every mistake of every file is on stdout with its place; the exit code is 1."""
    folder = tmp_path / "rules"
    folder.mkdir()
    text = "keyspaces:\n  one: {kei: 'a:{b}'}\n  two: {key: 'c:{d}', ttl: 5}\n"
    (folder / "a.yaml").write_text(text)
    (folder / "b.yaml").write_text("keyspaces:\n  two: {key: 'e:{f}'}\nroles: [\n")
    (folder / "c.yaml").write_text("keyspaces:\n  two: {key: 'e:{f}', evict: nevr}\n")
    code, out, err = run("check", "rules")
    assert code == 1
    places = [line.split(": ")[0] for line in out.splitlines()]
    assert {"rules/a.yaml:2:9", "rules/a.yaml:3:28"} <= set(places)
    assert any(place.startswith("rules/b.yaml:") for place in places)
    assert any(place.startswith("rules/c.yaml:2:") for place in places)
    assert 'did you mean "key"?' in out
    assert err == f"sidecache: {len(places)} to mend\n"


def test_check_of_everything(run: Run, tmp_path: Path) -> None:
    """With a configuration, its mistakes and those of its policies are found in one run."""
    (tmp_path / "rules").mkdir()
    text = "keyspaces:\n  one: {key: 'a:{b}', cluster: lokcs}\n"
    (tmp_path / "rules" / "a.yaml").write_text(text)
    (tmp_path / "s.yaml").write_text(CLUSTERS + "policies: rules\nlimits: {clients: 0}\n")
    code, out, _ = run("check", "--config", "s.yaml")
    assert code == 1
    assert [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in out.splitlines()] == [
        "s.yaml:3:19", "rules/a.yaml:2:32",
    ]  # fmt: skip


def test_check_of_budgets(run: Run, tmp_path: Path) -> None:
    """Budgets over the memory of their cluster are a mistake at the one that goes over it."""
    memory = CLUSTERS.replace("locks: {", "locks: {memory: 1GiB, ")
    (tmp_path / "s.yaml").write_text(memory + "policies: a.yaml\n")
    (tmp_path / "a.yaml").write_text(
        "defaults: {memory: {budget: 500MB}}\n"
        "keyspaces:\n"
        "  one: {key: 'one', cluster: locks}\n"
        "  two: {key: 'two', cluster: cache, memory: {budget: 4GiB}}\n"
        "  three: {key: 'three', cluster: locks, memory: {budget: 600MB}}\n"
        "  four: {key: 'four', cluster: locks}\n"
    )
    code, out, _ = run("check", "--config", "s.yaml")
    assert code == 1
    assert out.replace(f"{tmp_path}/", "") == (
        'a.yaml:5:58: budget: with this the budgets of cluster "locks" come to 1100MB, '
        "and its memory is 1GiB\n"
    )
    (tmp_path / "s.yaml").write_text(CLUSTERS + "policies: a.yaml\n")
    assert run("check", "--config", "s.yaml")[0] == 0


def test_check_of_a_role_that_no_policy_describes(run: Run, tmp_path: Path) -> None:
    """A user's role is checked against the policies."""
    (tmp_path / "sidecache.yaml").write_text(CLUSTERS + "users: {app: {nopass: on, role: ghost}}\n")
    code, out, _ = run("check")
    assert code == 1
    assert 'user "app" has the role "ghost"' in out


def test_check_of_a_configuration_without_mistakes(run: Run, tmp_path: Path) -> None:
    """The configuration of this folder is found; a path is checked in its place of the rules."""
    (tmp_path / "sidecache.yaml").write_text(CLUSTERS + "policies: nowhere\n")
    assert run("check")[0] == 1
    code, out, _ = run("check", str(POLICIES), "--config", "sidecache.yaml")
    assert code == 0, out


def test_check_of_nothing(run: Run) -> None:
    """Without anything to check, somebody is told how to name it."""
    code, out, err = run("check")
    assert (code, out) == (2, "")
    assert err == "sidecache: nothing to check: name a folder of policies, or --config FILE\n"


# --- schema


def test_schema(run: Run) -> None:
    """The schema is the one that is shipped beside the policies, so that editors agree with us."""
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out)["title"] == "sidecache policy file"
    assert out == (POLICIES / "policy.schema.json").read_text()


# --- explain

RULES = """
keyspaces:
  seat:
    key: seat:{event}:{seat}
    cluster: locks
    hash_tag: event
    commands: {deny: [DEL]}
    key_grammar: {max_bytes: 20}
roles:
  reader: {commands: {allow: ["@read"]}}
"""


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("GET seat:e1:s2", 0, ["keyspace   seat  (rules.yaml:3:3)", "nodes see  seat:{e1}:s2",
                               "of cluster locks", "forwarded to the node"]),
        ("GET foo", 0, ["keyspace   none", "slot       12182 of cluster cache"]),
        ("MGET a b", 0, ["slot       15495", "slot       3300", "split"]),
        ("DEL seat:e1:s2", 1, ["refused: -NOPERM policy denies"]),
        ("GET seat:e1:" + "x" * 20, 1, ["keyspace   seat", "refused: -POLICY key refused"]),
        ("RENAME a b", 1, ["refused: -CROSSSLOT"]),
        ("NOPE 1", 1, ["refused: -ERR unknown command 'NOPE'"]),
        ("GET", 1, ["refused: -ERR wrong number of arguments for 'get' command"]),
        ("ping", 0, ["answered by the proxy"]),
        ("client id", 0, ["answered by the proxy"]),
        ('SET "a b" 1', 0, ["key        a b"]),
        ("", 1, ["refused"]),
    ],
)  # fmt: skip
def test_explain(run: Run, tmp_path: Path, command: str, code: int, told: list[str]) -> None:
    """Keyspace, place of its rule, name towards nodes, slot, cluster and verdict are told."""
    (tmp_path / "rules.yaml").write_text(RULES)
    found, out, err = run("explain", command, "--policies", "rules.yaml")
    assert found == code, out + err
    assert err == ""
    for text in told:
        assert text in out


def test_explain_for_a_role(run: Run, tmp_path: Path) -> None:
    """What a role may not do is refused to it; a role that nobody describes is wrong usage."""
    (tmp_path / "rules.yaml").write_text(RULES)
    words = ["explain", "--policies", "rules.yaml", "--role"]
    assert run(*words, "reader", "GET", "foo")[0] == 0
    assert run(*words, "reader", "SET", "foo", "-1")[0] == 1
    code, _, err = run(*words, "ghost", "GET", "foo")
    assert code == 2
    assert "there is: default, reader" in err


def test_explain_with_a_configuration(run: Run, tmp_path: Path) -> None:
    """The rules and clusters of a configuration are taken; its mistakes are told."""
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "sidecache.yaml").write_text(CLUSTERS + "policies: rules.yaml\n")
    code, out, _ = run("explain", "GET", "seat:a:b")
    assert code == 0
    assert "of cluster locks" in out
    (tmp_path / "sidecache.yaml").write_text("clusters: 1\n")
    assert run("explain", "GET", "a")[0] == 2


def test_replay(run: Run, tmp_path: Path) -> None:
    """Recorded commands that other rules judge otherwise are counted, and the exit code is 1."""
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "new.yaml").write_text(RULES.replace("max_bytes: 20", "max_bytes: 10"))
    (tmp_path / "sample").write_text(
        '1.5 [0 1.2.3.4:5] "GET" "seat:event:seat"\nuser=reader GET x\n'
    )
    words = ["explain", "--policies", "rules.yaml", "--replay", "sample", "--against"]
    code, out, err = run(*words, "new.yaml")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "keyspace seat: key_grammar: forwarded -> refused by key_grammar  (1 command: line 1)",
        "2 commands, 1 judged otherwise; 0 not read",
    ]
    code, out, err = run(*words, "rules.yaml")
    assert (code, out, err) == (0, "2 commands, 0 judged otherwise; 0 not read\n", "")


def test_replay_for_users(run: Run, tmp_path: Path) -> None:
    """With a configuration the names before commands are those of its users."""
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "new.yaml").write_text(RULES.replace("@read", "@write"))
    users = "users: {ann: {role: reader, nopass: on}}\n"
    (tmp_path / "sidecache.yaml").write_text(f"{CLUSTERS}{users}policies: rules.yaml\n")
    (tmp_path / "sample").write_text("user=ann GET x\nuser=reader GET x\n")
    code, out, _ = run("explain", "--replay", "sample", "--against", "new.yaml")
    assert code == 1
    assert "rights: forwarded -> refused with NOPERM  (1 command: line 1)" in out
    assert "not read: a user that is not there  (1 line: line 2)" in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "nothing to explain"),
        (("--replay", "sample"), 2, "go together"),
        (("--against", "rules.yaml"), 2, "go together"),
        (("GET", "a", "--replay", "sample", "--against", "rules.yaml"), 2, "and no command"),
        (("--replay", "nowhere", "--against", "rules.yaml"), 1, "nowhere cannot be read: No such"),
        (("--replay", "sample", "--against", "nowhere"), 2, "nowhere: cannot be opened"),
    ],
)
def test_replay_of_nothing(
    run: Run, tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    """What lacks a recording, other rules or a command is a sentence."""
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "sample").write_text("GET a\n")
    found, _, err = run("explain", "--policies", "rules.yaml", *words)
    assert found == code
    assert told in err


# --- diff


def test_diff(run: Run, tmp_path: Path) -> None:
    """What differs is a line each and 1; the same is 0; what cannot be read is 2, on stderr."""
    (tmp_path / "old.yaml").write_text(RULES)
    (tmp_path / "new.yaml").write_text(RULES.replace("max_bytes: 20", "max_bytes: 1kB"))
    code, out, err = run("diff", "old.yaml", "new.yaml")
    assert (code, err) == (1, "")
    assert out == "keyspace seat: key_grammar.max_bytes 20B -> 1kB (new.yaml:8)\n"
    assert run("diff", "old.yaml", "old.yaml") == (0, "no difference\n", "")
    (tmp_path / "new.yaml").write_text("keyspaces: {a: {}}")
    code, out, err = run("diff", "old.yaml", "new.yaml")
    assert (code, out) == (2, "")
    assert err == 'sidecache: new.yaml:1:16: the field "key" is missing\n'


# --- health


@pytest.fixture
async def admin() -> AsyncIterator[tuple[Proxy, str]]:
    """Yields a proxy's answers and where its admin port is."""
    proxy = Proxy()
    server = Admin("127.0.0.1", 0, proxy)
    server.start()
    yield proxy, f"127.0.0.1:{server.address[1]}"
    server.stop()


@pytest.mark.integration
async def test_health(run: Run, admin: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that lives is healthy, also while it drains, when it is not ready any more."""
    proxy, address = admin

    async def health(*words: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(run, "health", *words)

    assert await health("--admin", address) == (0, "ok\n", "")
    monkeypatch.setenv("SIDECACHE_ADMIN", "0.0.0.0:" + address.rpartition(":")[2])
    assert (await health())[0] == 0
    assert (await health("--ready"))[0] == 0
    proxy.draining = True
    assert (await health())[0] == 0
    assert (await health("--ready"))[0] == 1


@pytest.mark.integration
def test_health_of_nobody(run: Run) -> None:
    """Where nobody answers, it is told which address was asked."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    code, out, err = run("health", "--admin", f"127.0.0.1:{port}")
    assert (code, out) == (1, "")
    assert f"the admin port 127.0.0.1:{port} does not answer: Connection refused" in err


@pytest.mark.parametrize("address", ["9121", "h:", "h:x", "h:70000"])
def test_health_of_a_wrong_address(run: Run, address: str) -> None:
    """What is no address is wrong usage."""
    assert run("health", "--admin", address)[0] == 2


# --- sql


def test_sql_for_whoever_may_not_connect(run: Run) -> None:
    """Printed without a database, names are as the policies have them."""
    code, out, err = run("sql", "install", "--print", "--policies", str(POLICIES))
    assert (code, err) == (0, "")
    assert out.startswith("BEGIN;")
    assert out.count("CREATE OR REPLACE FUNCTION") == 8
    assert out.count("CREATE FUNCTION") == 7  # of the locks of seats
    code, out, _ = run("sql", "install", "--print", "--remove", "--policies", str(POLICIES))
    assert out.count("DROP FUNCTION") == 8


def test_sql_without_a_database(run: Run, tmp_path: Path) -> None:
    """What is applied needs to be told where."""
    config = tmp_path / "sidecache.yaml"
    config.write_text(CLUSTERS)
    code, _, err = run("sql", "install", "--config", str(config), "--policies", str(POLICIES))
    assert code == 2
    assert "no database is named: --database URL" in err


@pytest.mark.integration
async def test_sql_in_a_database(run: Run, postgres_server: Postgres) -> None:
    """Applied, found wrong where the tables are missing, and taken away again."""
    url = await postgres_server.create_database("installed")
    words = ("sql", "install", "--database", url, "--policies", str(POLICIES))
    code, _, err = await asyncio.to_thread(run, *words)
    assert code == 2
    assert "catalogue.yaml:51:10: there is no table events" in err
    connection = await asyncpg.connect(url, timeout=5)
    await connection.execute((POLICIES / "schema.sql").read_text("utf-8"))
    code, out, _ = await asyncio.to_thread(run, *words)
    assert (code, out[:26]) == (0, "installed; watched tables:")
    assert await connection.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname ~ 'note'") == 32
    code, out, _ = await asyncio.to_thread(run, *words, "--remove")
    assert (code, out[:8]) == (0, "removed;")
    assert await connection.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname ~ 'note'") == 0
    connection.terminate()
    await postgres_server.drop_database("installed")
