"""Verbs of the command line that a running proxy carries out, through its admin port.

Used by `__main__`. Everything asked has a deadline; whoever has seen enough interrupts, and what
was begun goes on.
"""

import json
import time
from collections.abc import Callable
from urllib.parse import urlencode

from proxy.errors import StartError
from proxy.probe import QUESTION, Address, ask

# How long a report may take, in seconds; the proxy answers before.
REPORT = 70.0

# Between two looks at how far a restore is, in seconds.
LOOK = 0.5

# What a restore of a keyspace does not leave any more.
OVER = ("done", "refused", "left")

Show = Callable[[str], None]


def _done(address: Address, path: str, method: str, timeout: float = QUESTION) -> str:
    """Return an answer. Raises StartError with what the proxy says where it refuses."""
    status, text = ask(address, path, method, timeout)
    if status != 200:
        raise StartError(text)
    return text


def restore(address: Address, keyspace: str | None, show: Show) -> bool:
    """Have keys brought back, and show how far it is; return whether all went well."""
    query = "" if keyspace is None else "?" + urlencode({"keyspace": keyspace})
    show(_done(address, f"/-/restore{query}", "POST"))
    shown: dict[tuple[str, str], str] = {}
    while True:
        rows = json.loads(_done(address, "/restore", "GET"))["restore"]
        for row in rows:
            place = (row["cluster"], row["keyspace"])
            left = "" if row["left"] is None else f", {row['left']} rows left"
            line = f"{row['keyspace']}: {row['state']}, {row['written']} of {row['rows']} written"
            if shown.get(place) != line:
                shown[place] = line
                show(line + left)
        if all(row["state"] in OVER for row in rows):
            return all(row["state"] == "done" for row in rows)
        time.sleep(LOOK)


def drift(address: Address, keyspace: str | None, keys: int, show: Show, *, repair: bool) -> bool:
    """Have keys compared with their rows, and show what differs; return whether nothing does."""
    said = {"keys": str(keys), "repair": str(int(repair))}
    if keyspace is not None:
        said["keyspace"] = keyspace
    text = _done(address, f"/-/drift?{urlencode(said)}", "POST", REPORT)
    show(text)
    # A key that differs has a line of its own, indented.
    return not any(line.startswith(" ") for line in text.splitlines())
