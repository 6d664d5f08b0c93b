"""File, environment and flags become one configuration."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import config
from proxy.config import (
    OPEN_DEFAULT_USER,
    AccessLog,
    Config,
    ConfigMistakes,
    Database,
    NodeURL,
    Secret,
)

CACHE = "clusters: {cache: {nodes: [redis://h:1]}}\n"

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a text as sidecache.yaml; no file where there is no text."""
    monkeypatch.chdir(tmp_path)

    def load(text: str = "", flags: dict[str, str] | None = None, **environment: str) -> Config:
        path = tmp_path / "sidecache.yaml"
        path.write_text(text) if text else path.unlink(missing_ok=True)
        return config.load(path if text else None, environment, flags)

    return load


@pytest.fixture
def mistakes(load: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """Returns what is wrong with a text."""

    def mistakes(
        text: str = "", flags: dict[str, str] | None = None, **environment: str
    ) -> list[str]:
        with pytest.raises(ConfigMistakes) as caught:
            load(text, flags, **environment)
        return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()

    return mistakes


Mistakes = Callable[..., list[str]]


def test_precedence(load: Load) -> None:
    """Flags win over the environment, it over the file, the file over the defaults."""
    text = CACHE + "admin: h:3\n"
    assert load(CACHE).admin == config.Admin("127.0.0.1", 9121)
    assert load(text).admin.port == 3
    assert load(text, SIDECACHE_ADMIN="h:4").admin.port == 4
    assert load(text, {"--admin": "h:5"}, SIDECACHE_ADMIN="h:4").admin.port == 5


def test_precedence_of_nodes(load: Load) -> None:
    """The same holds for the URLs of a cluster, whatever else the file says about it."""
    text = "clusters: {cache: {nodes: [redis://file], timeout: 3s}}\n"
    assert load(text).clusters["cache"].nodes[0].host == "file"
    cluster = load(text, SIDECACHE_CACHE_URL="redis://env").clusters["cache"]
    assert (cluster.nodes[0].host, cluster.timeout) == ("env", 3.0)
    flags = {"--cache-url": "redis://flag"}
    for environment in ({"SIDECACHE_CACHE_URL": "redis://env"}, {"SIDECACHE_CACHE_URL_FILE": "x"}):
        assert load(text, flags, **environment).clusters["cache"].nodes[0].host == "flag"


def test_no_file_is_needed(load: Load) -> None:
    """The environment alone is a configuration."""
    settings = load(
        SIDECACHE_LOCKS_URL="redis://a,redis://b:7", SIDECACHE_CACHE_URL="rediss://u:p@[::1]:8",
        SIDECACHE_POLICIES="rules", DATABASE_URL="postgresql://x",
    )  # fmt: skip
    assert [(node.host, node.port) for node in settings.clusters["locks"].nodes] == [
        ("a", 6379), ("b", 7),
    ]  # fmt: skip
    assert settings.clusters["cache"].nodes == (NodeURL("::1", 8, "u", Secret("p"), True),)
    assert settings.policies == Path.cwd() / "rules"
    assert settings.database == Database(Secret("postgresql://x"), Secret("postgresql://x"))


def test_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name it is that of SIDECACHE_CONFIG, else sidecache.yaml of this folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sidecache.yaml").write_text(CACHE + "admin: h:1\n")
    (tmp_path / "other.yaml").write_text(CACHE + "admin: h:2\n")
    assert config.load().admin.port == 1
    assert config.load(environment={"SIDECACHE_CONFIG": "other.yaml"}).admin.port == 2
    path = tmp_path / "sidecache.yaml"
    assert config.load(path, {"SIDECACHE_CONFIG": "other.yaml"}).admin.port == 1


def test_listeners(load: Load) -> None:
    """Redis' port on loopback where nothing is said; a socket alone is alone; both are both."""
    assert load(CACHE).listen == config.Listen(("127.0.0.1", 6379), None, 0o660)
    alone = load(CACHE + 'listen: {unix: run/a.sock, unix_mode: "0600"}\n').listen
    assert alone == config.Listen(None, Path.cwd() / "run/a.sock", 0o600)
    both = load(CACHE, {"--listen": "[::1]:5"}, SIDECACHE_UNIX="/run/a.sock").listen
    assert both == config.Listen(("::1", 5), Path("/run/a.sock"), 0o660)


def test_the_cluster_listener(load: Load) -> None:
    """It may stand alone or beside others, and announce another address than its own."""
    alone = load(CACHE + "listen: {cluster: 0.0.0.0:7000, cluster_announce: proxy:7001}\n").listen
    assert (alone.tcp, alone.cluster, alone.announced) == (None, ("0.0.0.0", 7000), ("proxy", 7001))
    beside = load(CACHE + "listen: {tcp: h:1}\n", SIDECACHE_CLUSTER_LISTEN="h:2").listen
    assert (beside.tcp, beside.cluster, beside.announced) == (("h", 1), ("h", 2), None)


@pytest.mark.parametrize("text", ["cluster_announce: h:1", "cluster: h:1, cluster_announce: h:0"])
def test_an_announcement_of_nothing_is_told(mistakes: Mistakes, text: str) -> None:
    """Where nobody listens, or at no port, there is nothing to announce."""
    (line,) = mistakes(CACHE + f"listen: {{{text}}}\n")
    assert "set both" in line


def test_the_origin(load: Load, mistakes: Mistakes, tmp_path: Path) -> None:
    """PostgreSQL, its standbys and its budget; the direct URL is the URL unless it is set."""
    for name in ("db", "standby"):
        (tmp_path / name).write_text(f"postgresql://{name}\n")
    text = "clusters: {cache: {nodes: ['redis://a']}}\n"
    found = load(
        text + "database: {url_file: db, replicas: ['postgresql://r'], replicas_file: standby,\n"
        "  prepared: off, connections: 4, timeout: 500ms, budget: 20, sidecars: 4}\n"
    ).database
    assert found is not None
    assert found.direct_url == found.url == Secret("postgresql://db")
    assert found.replicas == (Secret("postgresql://r"), Secret("postgresql://standby"))
    assert (found.prepared, found.connections, found.timeout) == (False, 4, 0.5)
    assert load(text).database is None
    (line,) = mistakes(text + "database: {url: 'postgresql://x', budget: 8}\n")
    assert line == (
        "sidecache.yaml:2:43: 1 sidecars may take 9 connections; lower connections or raise it"
    )
    (line,) = mistakes(text + "database: {connections: 4}\n")
    assert "no url; write url_file: FILE" in line


def test_databases(load: Load, mistakes: Mistakes) -> None:
    """A number is that of a cluster of the file; others are mistakes at their places."""
    text = "clusters: {a: {nodes: ['redis://a']}, b: {nodes: ['redis://b']}}\n"
    assert load(text + "databases: {2: {cluster: b}, 15: {cluster: a}}\n").databases == {
        2: 1,
        15: 0,
    }
    assert load(text).databases == {}
    (unknown,) = mistakes(text + "databases: {1: {cluster: c}}\n")
    assert unknown == 'sidecache.yaml:2:26: there is no cluster "c"'
    for number in (0, 16, "x", "01"):
        (line,) = mistakes(text + f"databases: {{{number}: {{cluster: a}}}}\n")
        assert "1 to 15" in line


def test_what_is_seen_of_traffic(load: Load, tmp_path: Path) -> None:
    """The access log is off until it is asked for; keys are hashed until plain names are wanted."""
    seen = load(CACHE)
    assert (seen.access_log.sample, seen.access_log.keys) == (0.0, "hashed")
    assert (seen.slow_log.slower_than, seen.slow_log.entries) == (0.010, 128)
    assert seen.hot_keys.sample == 1 / 64
    text = """
access_log: {sample: 0.1%, file: access.log, keys: plain}
slow_log: {slower_than: 5ms, entries: 10, keys: plain}
hot_keys: {sample: 0%}
"""
    seen = load(CACHE + text)
    assert seen.access_log == AccessLog(0.001, tmp_path / "access.log", "plain", "hidden")
    assert (seen.slow_log.slower_than, seen.hot_keys.sample) == (0.005, 0.0)


def test_a_long_socket_path_is_told(mistakes: Mistakes) -> None:
    """The limit of the system holds for the whole path, with the folder of the file."""
    (line,) = mistakes(CACHE + f"listen: {{unix: {'x' * 100}}}\n")
    assert line.startswith("sidecache.yaml:2:16: the path of a socket has at most 107 bytes")


def test_sentinels(load: Load) -> None:
    """Sentinels have their own port and credentials, apart from the primary's."""
    text = (
        "clusters: {cache: {mode: sentinel, primary: mymaster, "
        "nodes: ['redis://:watch@s1', 'redis://:watch@s2:5'], username: app, password: pw}}\n"
    )
    cluster = load(text).clusters["cache"]
    assert (cluster.mode, cluster.primary_name) == ("sentinel", "mymaster")
    assert [(node.port, node.password) for node in cluster.nodes] == [
        (26379, Secret("watch")), (5, Secret("watch")),
    ]  # fmt: skip
    assert (cluster.username, cluster.password) == ("app", Secret("pw"))
    without = load(text.replace(", username: app, password: pw", "")).clusters["cache"]
    assert without.password is None


def test_learned_nodes_take_the_credentials_of_the_first_url(load: Load) -> None:
    """What the topology names is reached as the first URL says, unless something else is given."""
    text = "clusters: {cache: {nodes: ['redis://u:p@a', 'redis://b']}}\n"
    cluster = load(text).clusters["cache"]
    assert (cluster.username, cluster.password) == ("u", Secret("p"))
    given = load(text, SIDECACHE_CACHE_USERNAME="x", SIDECACHE_CACHE_PASSWORD="y").clusters["cache"]
    assert (given.username, given.password) == ("x", Secret("y"))


def test_tls(load: Load, tmp_path: Path) -> None:
    """rediss:// means TLS by the system's CAs; a tls block means TLS for every node."""
    (tmp_path / "ca.pem").touch()
    plain = load("clusters: {cache: {nodes: [rediss://a]}}\n").clusters["cache"]
    assert plain.tls == config.TLS(None, None, None, None)
    text = "clusters: {cache: {nodes: [redis://a], tls: {ca: ca.pem, server_name: r.internal}}}\n"
    cluster = load(text).clusters["cache"]
    assert cluster.tls == config.TLS(tmp_path / "ca.pem", "r.internal", None, None)
    assert cluster.nodes[0].tls
    assert load(CACHE).clusters["cache"].tls is None


def test_secrets_from_files(load: Load, tmp_path: Path) -> None:
    """Each secret can come from a file beside the configuration; the end of its line is not it."""
    for name, text in {"db": "postgresql://x\n", "nodes": "redis://a\nredis://b\n", "pw": "p w\r\n",
                       "app": "secret\n"}.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    settings = load(
        "clusters: {cache: {nodes_file: nodes, password_file: pw}}\n"
        "database: {url_file: db}\nusers: {app: {password_file: app}}\n"
    )
    assert [node.host for node in settings.clusters["cache"].nodes] == ["a", "b"]
    assert settings.clusters["cache"].password == Secret("p w")
    assert settings.database == Database(Secret("postgresql://x"), Secret("postgresql://x"))
    assert settings.users[0].passwords == (hashlib.sha256(b"secret").digest(),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "must hold between 1 and 8192 characters"),
        (b"\n", "must hold between 1 and 8192 characters"),
        (b"x" * 9000, "must hold between 1 and 8192 characters"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_wrong_secret_files(
    mistakes: Mistakes, tmp_path: Path, content: bytes | None, told: str
) -> None:
    """A file without a secret is told where it is named, and what it holds is not shown."""
    if content is not None:
        (tmp_path / "s").write_bytes(content)
    assert mistakes(CACHE + "database: {url_file: s}\n") == [f"sidecache.yaml:2:22: {told}"]
    assert mistakes(CACHE, DATABASE_URL_FILE="s") == [f"DATABASE_URL_FILE: {told}"]


def test_a_secret_given_twice_is_told(mistakes: Mistakes, tmp_path: Path) -> None:
    """In one place a secret is written or its file is named, never both."""
    (tmp_path / "f").write_text("redis://x")
    both = "nodes: [redis://a], nodes_file: f, password: p, password_file: f"
    assert mistakes(f"clusters: {{cache: {{{both}}}}}\n") == [
        "sidecache.yaml:1:52: nodes and nodes_file are both set; keep one",
        "sidecache.yaml:1:83: password and password_file are both set; keep one",
    ]
    assert mistakes(CACHE, DATABASE_URL="a", DATABASE_URL_FILE="f") == [
        "DATABASE_URL_FILE: DATABASE_URL is set as well; keep one"
    ]


def test_users(load: Load, tmp_path: Path) -> None:
    """Passwords are kept as digests, several for one user; a user may be off or need none."""
    (tmp_path / "f").write_text("c\n")
    digest = hashlib.sha256(b"d").hexdigest()
    text = (
        "users:\n  app: {password: [a, b], password_file: f, "
        f"password_sha256: {digest.upper()}, role: reader}}\n"
        "  open: {nopass: on}\n  gone: {enabled: off}\n"
    )
    app, free, gone = load(CACHE + text).users
    words = (b"a", b"b", b"d", b"c")
    assert app.passwords == tuple(hashlib.sha256(word).digest() for word in words)
    assert (app.role, app.enabled, app.nopass) == ("reader", True, False)
    assert (free.role, free.nopass) == ("default", True)
    assert not gone.enabled


def test_without_users_everybody_may_connect(load: Load) -> None:
    """As on a new Redis; a password in the environment ends it."""
    assert load(CACHE).users == (OPEN_DEFAULT_USER,)
    (user,) = load(CACHE, SIDECACHE_PASSWORD="x").users
    assert (user.name, user.nopass) == ("default", False)
    assert user.passwords == (hashlib.sha256(b"x").digest(),)


def test_the_journal_has_a_place(load: Load) -> None:
    """In the file relative to it, in the environment relative to where we are; none by itself."""
    assert load(CACHE).journal is None
    found = load(CACHE + "journal: {directory: wal}\n").journal
    assert found is not None
    assert found.name == "wal"
    assert load(CACHE, SIDECACHE_JOURNAL="wal").journal == Path.cwd() / "wal"


def test_write_behind_counts_towards_the_budget(load: Load, mistakes: Mistakes) -> None:
    """Each sidecar has two connections more for its flushers."""
    text = CACHE + "database: {url: 'postgresql://x', sidecars: 2, connections: 8, budget: 18}\n"
    assert load(text).database is not None
    (mistake,) = mistakes(text + "journal: {directory: wal}\n")
    assert "2 sidecars may take 22 connections" in mistake


def test_every_mistake_in_one_run(mistakes: Mistakes) -> None:
    """File, environment and flags are all looked at, and each mistake has its place."""
    text = (
        "lisen: {}\n"
        "clusters:\n"
        "  cache: {nodes: [redis://a:1, http://b], mode: clustr}\n"
        "  locks: {}\n"
        "limits: {clients: 0, idle: 10}\n"
        "users: {app: {}, other: {pasword: x}}\n"
        "limits: {}\n"
    )
    found = mistakes(text, {"--listen": "nowhere"}, SIDECACHE_ADMIN="x", SIDECACHE_UNX="y")
    starts = [
        "--listen: tcp: expects host:port",
        "SIDECACHE_ADMIN: admin: expects host:port",
        'SIDECACHE_UNX: no such setting; did you mean "SIDECACHE_UNIX"?',
        'sidecache.yaml:1:1: unknown field "lisen"; allowed: access_log, admin, clusters, '
        "database, databases, drain, hot_keys, journal, limits, listen, policies, slow_log, users; "
        'did you mean "listen"?',
        "sidecache.yaml:3:32: nodes: expects redis://user:password@host:port",
        'sidecache.yaml:3:49: mode: "clustr" is not allowed; allowed: cluster, single, sentinel; '
        'did you mean "cluster"?',
        "sidecache.yaml:4:10: no nodes; write nodes: [redis://host:port]",
        "sidecache.yaml:5:19: clients: ",
        'sidecache.yaml:5:28: idle: a duration needs a unit (ms, s, m, h, d); did you mean "10s"?',
        "sidecache.yaml:6:14: nobody can log in as this user",
        'sidecache.yaml:6:26: unknown field "pasword"; allowed: ',
        'sidecache.yaml:7:1: the key "limits" stands here twice, first on line 5',
    ]
    assert len(found) == len(starts), found
    for line, start in zip(sorted(found), starts, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("admin: h:1\n", "sidecache.yaml:1:1: no cluster is named: set SIDECACHE_CACHE_URL"),
        ("[]\n", "sidecache.yaml:1:1: expects a mapping"),
        ("clusters: {a: {nodes: [redis://a, rediss://b]}}\n",
         "sidecache.yaml:1:23: redis:// and rediss:// are mixed"),
        ("clusters: {a: {nodes: [redis://a], mode: sentinel}}\n",
         "sidecache.yaml:1:15: mode: sentinel and primary: NAME belong together"),
        ("clusters: {a: {nodes: [redis://a], primary: x}}\n",
         "sidecache.yaml:1:15: mode: sentinel and primary: NAME belong together"),
        ("clusters: {a: {nodes: [rediss://a], tls: {ca: no.pem}}}\n",
         "sidecache.yaml:1:47: there is no such file"),
        (CACHE + "users: {a: {password_file: no}}\n", "sidecache.yaml:2:28: cannot be read"),
        ("clusters: {cache: {nodes: [redis://h]}, Cache: {}}\n", "sidecache.yaml:1:41: a name is"),
        (CACHE + "users: {'a b': {nopass: on}}\n", "sidecache.yaml:2:9: a user's name is"),
    ],
)  # fmt: skip
def test_single_mistakes(mistakes: Mistakes, text: str, told: str) -> None:
    """Each mistake is told once, at its place."""
    (line,) = mistakes(text)
    assert line.startswith(told)


def test_no_configuration_at_all(mistakes: Mistakes) -> None:
    """Somebody who starts without anything is told what to set."""
    (line,) = mistakes()
    assert line == ("configuration: no cluster is named: set SIDECACHE_CACHE_URL, or clusters: in "
                    "the file")  # fmt: skip


def test_a_file_that_is_away_is_the_only_mistake(tmp_path: Path) -> None:
    """Nothing is missing from a file that cannot be read."""
    with pytest.raises(ConfigMistakes) as caught:
        config.load(tmp_path / "no.yaml")
    assert str(caught.value).endswith("no.yaml: cannot be opened: No such file or directory")
    assert "\n" not in str(caught.value)


def test_what_is_readable_is_there(load: Load) -> None:
    """A load that fails hands on what was right, so that a check can go on."""
    with pytest.raises(ConfigMistakes) as caught:
        load(CACHE + "policies: rules\nlimits: {clients: x}\n")
    assert caught.value.readable is not None
    assert list(caught.value.readable.clusters) == ["cache"]
    assert caught.value.readable.policies == Path.cwd() / "rules"


def test_secrets_never_show(load: Load, mistakes: Mistakes) -> None:
    """Neither a configuration nor a mistake shows a password."""
    text = (
        "clusters: {cache: {nodes: ['redis://u:hunter2@h'], password: hunter2}}\n"
        "database: {url: 'postgresql://u:hunter2@h/d'}\nusers: {app: {password: hunter2}}\n"
    )
    settings = load(text)
    digest = hashlib.sha256(b"hunter2").digest()
    for shown in (repr(settings), str(settings), f"{settings}"):
        assert "hunter2" not in shown
        assert repr(digest) not in shown
    broken = [
        text.replace("'redis://u:hunter2@h'", "'redis://u:hunter2@h:x'"),
        text.replace("'redis://u:hunter2@h'", "'u:hunter2@h'"),
        text.replace("password: hunter2", "password: {hunter2: 1}"),
        text.replace("password: hunter2", "passwd: hunter2"),
        text.replace("'redis://u:hunter2@h'", "'hunter2"),
        text.replace("password: hunter2", "password_sha256: hunter2"),
        text.replace("password: hunter2", "password_file: [hunter2, [hunter2]]"),
    ]
    for text in broken:
        assert not any("hunter2" in line for line in mistakes(text)), mistakes(text)
