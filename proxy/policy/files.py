"""What lies in the folder of the rules at one moment: enough to see a change, and a short hash.

Used by whoever loads rules, and once a second by `proxy.lookout`. A look asks for metadata only,
follows links (so the swap of a mounted ConfigMap shows), and costs a bounded number of calls.

Always true: equal looks mean that nobody has written, renamed or swapped anything in between; what
cannot be read is part of a look, not an error.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from proxy.documents import MAX_FILE_BYTES

# By name: inode, time of the last change in nanoseconds, size. An error is a number of its own.
Look = tuple[tuple[str, int, int, int], ...]

# What rules are made of: policies, and the files that they name.
_SUFFIXES = (".yaml", ".yml", ".json", ".lua")

# Twice the number of policy files that a folder may have, and how deep files that they name lie.
MAX_ENTRIES = 400
MAX_DEPTH = 3

# How a volume of Kubernetes names the link to the version that is in force.
_VERSION = "..data"

# Letters of the hash that are shown: as many as git needs for a large project.
MARK_LETTERS = 12


def look(path: Path | None) -> Look:
    """Return what lies there now. None is always empty."""
    if path is None:
        return ()
    return tuple(sorted(_entry(name, place) for name, place in _files(path)))


def _entry(name: str, place: str) -> tuple[str, int, int, int]:
    try:
        if name == _VERSION:
            return (f"{name} {os.readlink(place)}", 0, 0, 0)
        found = os.stat(place)
    except OSError as error:
        return (name, 0, 0, -(error.errno or 1))
    return (name, found.st_ino, found.st_mtime_ns, found.st_size)


def _files(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and place of every file that counts, of a file or a folder."""
    left, folders = MAX_ENTRIES, [("", str(path), 0)]
    while folders:
        prefix, folder, depth = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            # A single file, or nothing that can be listed: what stat says of it is what is seen.
            yield prefix or ".", folder
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") and entry.name != _VERSION:
                continue
            if entry.name == _VERSION or entry.name.endswith(_SUFFIXES):
                yield name, entry.path
            elif depth < MAX_DEPTH and os.path.isdir(entry.path):
                folders.append((f"{name}/", entry.path, depth + 1))
            else:
                continue
            left -= 1
            if left == 0:
                return


def mark(path: Path | None) -> str:
    """Return a short hash of the names and the content of all files."""
    digest = hashlib.sha256()
    for name, place in sorted(_files(path)) if path is not None else ():
        if name != _VERSION:
            content = _content(place)
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:MARK_LETTERS]


def _content(place: str) -> bytes:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return b""
