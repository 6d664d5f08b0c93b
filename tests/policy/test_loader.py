"""Policy files to policies, or every mistake of every file with its place."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from proxy.documents import read
from proxy.policy import loader
from proxy.policy.loader import MAX_FILES, PolicyMistakes
from tests.policy.rulebook import SHIPPED, VOCABULARY, Folder, compiled, complaints, load

# A reload that takes longer is felt by the clients.
REFUSED_WITHIN = 0.2  # seconds


def test_every_mistake_in_one_run(folder: Folder) -> None:
    """One run names all mistakes of all files, in order, each at the word that is wrong."""
    folder.write(
        "keyspaces:\n"
        "  seat_lock:\n"
        "    key: seat_lock:{event_id}:{seat_id}\n"
        "    clutser: locks\n"
        "    hash_tag: event\n"
        "    kind: lock\n"
        "    ttl: {default: 600, max: 900s}\n"
        "    write: {mode: behind, sql: UPDATE t}\n"
        "    evict: sometimes\n"
        "  session:\n"
        "    key: session:{session_id\n"
        "roles:\n"
        "  app: {commands: {deny: [FLUSHAL]}}\n",
        "1.yaml",
    )
    folder.write("keyspaces: {cart: {key: c, cluster: cahce}, event: {kind: cache}}\n", "2.yaml")
    found = complaints(folder.path)
    places = [line.split(": ")[0] for line in found]
    assert places == [
        "1.yaml:4:5",
        "1.yaml:5:15",
        "1.yaml:7:20",
        "1.yaml:8:19",
        "1.yaml:9:12",
        "1.yaml:11:10",
        "1.yaml:13:27",
        "2.yaml:1:37",
        "2.yaml:1:52",
    ]
    hints = [line.partition("did you mean ")[2].rstrip("?") for line in found]
    assert hints == ['"cluster"', '"event_id"', '"600s"', "", "", "", '"flushall"', '"cache"', ""]
    assert "allowed: never, lru, lfu, ttl" in found[4]
    assert 'the field "key" is missing' in found[8]


def test_a_mistake_is_told_once(folder: Folder) -> None:
    """What is left out because it is wrong is not reported as missing as well."""
    assert len(folder.keyspace("kind: lock\nttl: {default: soon}")) == 1
    assert len(folder.keyspace("type: zzet\ncollection: {max_items: 1, keep: highest}")) == 1
    assert len(folder.keyspace("origin: {raed: SELECT 1}\nfreshness: {negative: 5s}")) >= 1


def test_a_reference_to_a_wrong_keyspace_is_no_mistake(folder: Folder) -> None:
    """A keyspace that is told already is not reported as missing where a role names it."""
    text = "keyspaces: {a: {key: 'a{'}, b: {key: b}}\nroles: {r: {keyspaces: [a, b, c]}}\n"
    assert [line.split(":")[1] for line in folder.complaints(text)] == ["1", "2"]


def test_a_wrong_keyspace_does_not_hide_the_next(folder: Folder) -> None:
    """A keyspace without a key is told, and so is what is wrong elsewhere."""
    found = folder.complaints(
        "keyspaces:\n  a: {cluster: cache}\n  b: {key: b, hash_tag: x}\n  c: [1]\n"
    )
    assert [line.split(":")[1] for line in found] == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("keyspaces:\n  a: {key: a}\n  a: {key: b}\n", "3:3", "twice"),
        ("keyspaces:\n  a:\n    key: a\n    key: b\n", "4:5", "twice"),
        ("keyspaces: {}\nkeyspaces: {}\n", "2:1", "twice"),
    ],
)
def test_duplicates_in_a_file(folder: Folder, text: str, place: str, told: str) -> None:
    """A key that is written twice is a mistake at the second place."""
    found = folder.complaints(text)
    assert len(found) == 1
    assert found[0].startswith(f"a.yaml:{place}:")
    assert told in found[0]


def test_duplicates_over_files(folder: Folder) -> None:
    """What two files define is told in the second, with the place of the first."""
    folder.write("defaults: {cluster: cache}\nkeyspaces: {a: {key: a}}\n", "1.yaml")
    folder.write("keyspaces: {a: {key: b}}\ndefaults: {cluster: locks}\n", "2.yaml")
    found = complaints(folder.path)
    assert found == [
        '2.yaml:1:13: keyspace "a" is defined twice, first at 1.yaml:2',
        '2.yaml:2:1: "defaults" is defined twice, first at 1.yaml:1',
    ]


def test_which_files_are_read(folder: Folder) -> None:
    """Files ending in .yaml or .yml, in order; what begins with a dot or ends otherwise is not."""
    folder.write("keyspaces: {b: {key: b}}", "2.yml")
    folder.write("keyspaces: {a: {key: a}}", "1.yaml")
    folder.write("[", ".hidden.yaml")
    folder.write("[", "3.yaml~")
    folder.write("CREATE TABLE t ();", "schema.sql")
    assert list(load(folder.path).keyspaces) == ["a", "b"]
    assert loader.load(None, VOCABULARY).keyspaces == {}


def test_folders_that_are_none(tmp_path: Path) -> None:
    """An empty folder, one that is not there and one with far too many files are told."""
    assert complaints(tmp_path) == [f"{tmp_path}: there is no .yaml file in this folder"]
    assert "No such file" in complaints(tmp_path / "policies")[0]
    for i in range(MAX_FILES + 1):
        (tmp_path / f"{i}.yaml").write_text("[")
    assert complaints(tmp_path) == [
        f"{tmp_path}: more than {MAX_FILES} files; is this the folder of the policies?"
    ]


def test_a_swapped_link_is_followed(tmp_path: Path) -> None:
    """A mounted ConfigMap is a link to a folder with a date; what it points to is read."""
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "a.yaml").write_text(f"keyspaces: {{{version}: {{key: a}}}}")
    data, file = tmp_path / "..data", tmp_path / "a.yaml"
    data.symlink_to("..one")
    file.symlink_to("..data/a.yaml")
    assert list(load(tmp_path).keyspaces) == ["one"]
    (tmp_path / "new").symlink_to("..two")
    os.replace(tmp_path / "new", data)
    assert list(load(tmp_path).keyspaces) == ["two"]


def broken_files() -> list[bytes]:
    """Return sixty files that are no policies: cut, garbled, of wrong types, hostile."""
    dice = random.Random(60)
    # As JSON the file is one pair of braces, so that no cut of it is right by chance.
    root, _ = read(SHIPPED / "seats.yaml")
    assert root is not None
    whole = json.dumps(root.plain()).encode()
    cuts = [whole[:at] for at in dice.sample(range(len(whole)), 24)]
    controls = [0, 1, 7, 27, 127, 128, 192, 245, 254, 255]
    garbled = [
        whole[:at] + bytes([byte]) + whole[at:]
        for at, byte in zip(dice.sample(range(len(whole)), 10), controls, strict=True)
    ]
    noise = [dice.randbytes(size) for size in (1, 100, 10_000, 900_000)]
    types = [
        b"1",
        b"text",
        b"[]",
        b"- keyspaces",
        b"keyspaces: 1",
        b"keyspaces: []",
        b"keyspaces: {a: 1}",
        b"keyspaces: {a: {key: 1}}",
        b"keyspaces: {a: {key: [a]}}",
        b"keyspaces: {a: {key: {a: b}}}",
        b"keyspaces: {1: {key: a}}",
        b"keyspaces: {a: {key: null}}",
        b"defaults: []",
        b"roles: {r: {limits: [1]}}",
        b"keyspaces: {a: {key: a, ttl: {default: {s: 1}}}}",
    ]
    hostile = [
        b"",
        b"\n\n# nothing\n",
        b"---\n---\n",
        b"a: &a [*a]",
        b"a: !!python/object:os.system {}",
        b"[" * 500_000,
        b"{a: " * 200_000,
        b"? " * 300_000,
        b"\xef\xbb\xbf\xff",
        b"a:\n\tb: c",
        b"x" * (1 << 21),
    ]
    return [*cuts, *garbled, *noise, *types, *hostile]


BROKEN = broken_files()


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_broken_files_are_refused_at_once(folder: Folder, number: int) -> None:
    """A file that is cut, garbled, of wrong types or hostile is refused quickly, with a place."""
    folder.write(BROKEN[number])
    started = time.process_time()
    found = complaints(folder.path)
    assert time.process_time() - started < REFUSED_WITHIN
    assert found
    assert all(line.startswith("a.yaml:") for line in found)
    place = found[0].split(":")
    assert int(place[1]) >= 1
    assert int(place[2]) >= 1
    assert sum(map(len, found)) < 100_000
    assert all(line.isprintable() for line in found)


def test_there_are_sixty_kinds() -> None:
    """The broken files are as many as were promised, and each is another."""
    assert len(set(BROKEN)) >= 60


def test_a_hundred_megabytes_are_not_read(folder: Folder) -> None:
    """A file that is far too large is refused by its size."""
    with (folder.path / "a.yaml").open("wb") as file:
        file.truncate(100_000_000)
    started = time.process_time()
    found = complaints(folder.path)
    assert time.process_time() - started < REFUSED_WITHIN
    assert found == ["a.yaml:1:1: the file is larger than 1048576 bytes; split it"]


def test_what_is_no_file_is_refused_at_once(folder: Folder) -> None:
    """A pipe, a folder and a dangling link under a policy's name hold nothing up."""
    os.mkfifo(folder.path / "1.yaml")
    (folder.path / "2.yaml").mkdir()
    (folder.path / "3.yaml").symlink_to("nowhere")
    found = complaints(folder.path)
    assert len(found) == 3
    assert "regular file" in found[0]
    assert "No such file" in found[2]


def thousand(folder: Folder) -> None:
    for part in range(10):
        rows = [
            f"  k{part}_{i}:\n"
            f"    key: app{part}:thing{i}:{{id}}:{{day:date}}\n"
            "    cluster: cache\n    hash_tag: id\n    type: hash\n"
            "    ttl: {default: 600s, max: 900s, jitter: 10%}\n"
            "    memory: {budget: 10MB, items: 1000, priority: 10}\n"
            for i in range(100)
        ]
        folder.write("keyspaces:\n" + "".join(rows), f"{part}.yaml")


def test_a_thousand_keyspaces_load_in_a_second(folder: Folder) -> None:
    """A thousand keyspaces are read, checked and compiled within a second of CPU."""
    thousand(folder)
    spent = 1.0
    # Half a second; more on a core that the processor shares with a busy one, so it is tried again.
    for _ in range(3):
        started = time.process_time()
        rules = compiled(load(folder.path))
        spent = min(spent, time.process_time() - started)
        if spent < 1:
            break
    assert spent < 1
    assert len(rules.keyspaces) == 1000
    found = rules.find_keyspace(b"app7:thing42:x:2024-12-31")
    assert rules.keyspaces[found].name == "k7_42"


def test_a_thousand_mistakes_are_told_in_time(folder: Folder) -> None:
    """Where every keyspace is wrong, each is told, and within seconds."""
    thousand(folder)
    for file in folder.path.iterdir():
        file.write_text(file.read_text().replace("hash_tag: id", "hash_tag: idd"))
    started = time.process_time()
    found = complaints(folder.path)
    assert time.process_time() - started < 3
    assert len(found) == 1000
    assert all('did you mean "id"?' in line for line in found)


def test_nothing_is_half_loaded(folder: Folder) -> None:
    """One mistake in one file refuses them all."""
    folder.write("keyspaces: {a: {key: a}}", "1.yaml")
    folder.write("keyspaces: {b: {key: b, x: 1}}", "2.yaml")
    with pytest.raises(PolicyMistakes) as refused:
        load(folder.path)
    assert len(refused.value.mistakes) == 1
