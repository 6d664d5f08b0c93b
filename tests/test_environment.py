"""Environment variables and flags as values over the file."""

from pathlib import Path

import pytest

from proxy.environment import FLAGS, overlay


def test_variables_set_fields() -> None:
    """A variable sets the field of its table, and says that it did."""
    sources = overlay({"SIDECACHE_LISTEN": "h:1", "PATH": "/bin"}, {}, set())
    assert sources.values == {("listen", "tcp"): "h:1"}
    assert sources.origins == {("listen", "tcp"): "SIDECACHE_LISTEN"}
    assert not sources.mistakes


def test_flags_win_over_variables() -> None:
    """A flag replaces what a variable says, and is named as the source."""
    sources = overlay({"SIDECACHE_LISTEN": "h:1"}, {"--listen": "h:2"}, set())
    assert sources.values[("listen", "tcp")] == "h:2"
    assert sources.origins[("listen", "tcp")] == "--listen"


@pytest.mark.parametrize("cluster", ["locks", "cache", "my-own"])
def test_every_cluster_has_its_variables(cluster: str) -> None:
    """A cluster of the file, or one that the shipped policies name, is set by its own variables."""
    name = f"SIDECACHE_{cluster.upper().replace('-', '_')}_URL"
    sources = overlay({name: "redis://h"}, {}, {"my-own"})
    assert sources.values[("clusters", cluster, "nodes")] == "redis://h"
    assert not sources.mistakes


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SIDECACHE_LISTN", '; did you mean "SIDECACHE_LISTEN"?'),
        ("SIDECACHE_CASHE_URL", '; did you mean "SIDECACHE_CACHE_URL"?'),
        ("SIDECACHE_XYZ12345678901234", ""),
    ],
)
def test_an_unknown_variable_is_a_mistake(name: str, hint: str) -> None:
    """A misspelt variable with our prefix is told by name, and its value is not."""
    (mistake,) = overlay({name: "hunter2"}, {}, set()).mistakes
    assert str(mistake) == f"{name}: no such setting{hint}"


def test_what_kubernetes_sets_is_no_mistake() -> None:
    """A service named sidecache puts variables with our prefix into every pod."""
    environment = {
        "SIDECACHE_SERVICE_HOST": "10.0.0.1",
        "SIDECACHE_SERVICE_PORT": "6379",
        "SIDECACHE_PORT": "tcp://10.0.0.1:6379",
        "SIDECACHE_PORT_6379_TCP_ADDR": "10.0.0.1",
        "SIDECACHE_CONFIG": "x.yaml",
    }
    assert not overlay(environment, {}, set()).mistakes


def test_an_empty_variable_says_nothing() -> None:
    """A variable set to nothing is as good as not set."""
    assert not overlay({"SIDECACHE_LISTEN": ""}, {}, set()).values


@pytest.mark.parametrize(
    ("plain", "file"),
    [
        ("SIDECACHE_LOCKS_URL", "SIDECACHE_LOCKS_URL_FILE"),
        ("SIDECACHE_CACHE_PASSWORD", "SIDECACHE_CACHE_PASSWORD_FILE"),
        ("SIDECACHE_PASSWORD", "SIDECACHE_PASSWORD_FILE"),
        ("DATABASE_URL", "DATABASE_URL_FILE"),
    ],
)
def test_a_secret_and_its_file_exclude_each_other(plain: str, file: str) -> None:
    """A secret that is given twice is a mistake, in either order."""
    for names in ((plain, file), (file, plain)):
        (mistake,) = overlay(dict.fromkeys(names, "x"), {}, set()).mistakes
        assert str(mistake) == f"{file}: {plain} is set as well; keep one"


def test_a_secret_replaces_the_one_of_the_file_however_it_is_given() -> None:
    """A variable for a secret empties the field that names its file, and the other way round."""
    assert overlay({"DATABASE_URL": "x"}, {}, set()).values[("database", "url_file")] is None
    assert overlay({"DATABASE_URL_FILE": "x"}, {}, set()).values[("database", "url")] is None
    sources = overlay({"SIDECACHE_CACHE_URL_FILE": "x"}, {"--cache-url": "redis://h"}, set())
    assert sources.values[("clusters", "cache", "nodes")] == "redis://h"
    assert sources.values[("clusters", "cache", "nodes_file")] is None
    assert not sources.mistakes


@pytest.mark.parametrize(
    ("environment", "flags", "location"),
    [
        ({"SIDECACHE_UNIX": "a/b"}, {}, ("listen", "unix")),
        ({"SIDECACHE_POLICIES": "a/b"}, {}, ("policies", "path")),
        ({"DATABASE_URL_FILE": "a/b"}, {}, ("database", "url_file")),
        ({"SIDECACHE_LOCKS_URL_FILE": "a/b"}, {}, ("clusters", "locks", "nodes_file")),
        ({}, {"--policies": "a/b"}, ("policies", "path")),
        ({}, {"--unix": "a/b"}, ("listen", "unix")),
    ],
)
def test_paths_start_here(
    environment: dict[str, str], flags: dict[str, str], location: tuple[str, ...]
) -> None:
    """A path of the environment or of a flag starts at the working directory."""
    assert overlay(environment, flags, set()).values[location] == str(Path.cwd() / "a/b")


def test_absolute_paths_stay() -> None:
    """An absolute path is taken as it is."""
    assert overlay({"SIDECACHE_UNIX": "/a"}, {}, set()).values[("listen", "unix")] == "/a"


def test_flags_are_words() -> None:
    """Every flag of the table is written with two dashes."""
    assert all(flag.startswith("--") for flag in FLAGS)
