"""What `sidecache check` prints: all mistakes, or what was looked at and what it costs in series.

The command line finds the rules; here is what is said of them, as lines for people or as JSON for
machines. Nothing is asked of a node; PostgreSQL is asked with --database only.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxy import metrics, wire
from proxy.documents import Mistake
from proxy.plans import plans_in
from proxy.policy import loader

# What is no mistake, but should be known by whoever writes it.
_CHEAP = (
    "note: locks of {} are decided by Redis alone; a failover may grant one twice, and nothing is "
    "granted while Redis is away: for what is wasteful to do twice, not for what is wrong"
)
_ENDLESS = (
    "note: keys of {} that come without a time to live keep none, whatever ttl.max says; add "
    "ttl.default, or missing: reject, or missing: allow if that is meant"
)


def accepted(
    ruleset: wire.Ruleset, clusters: Sequence[str], path: Path | None, database: bool = False
) -> dict[str, Any]:
    """Return what rules without mistakes hold, and how many series they may make."""
    fixed, per_node = metrics.series(ruleset, clusters)
    plans = plans_in(ruleset)
    notes = [(place, _CHEAP.format(name)) for place, name in plans.cheap]
    notes += [(place, _ENDLESS.format(name)) for place, name in plans.endless]
    return {
        "mistakes": [],
        "notes": [f"{place}: {text}" for place, text in notes],
        "files": len(loader.files(path)),
        "keyspaces": len(ruleset.keyspaces),
        "roles": len(ruleset.roles),
        "channels": len(ruleset.channels),
        "commands": len(ruleset.commands),
        "clusters": list(clusters),
        "database": database,
        "series": {"fixed": fixed, "per_node": per_node},
    }


def refused(mistakes: Sequence[Mistake | str]) -> dict[str, Any]:
    """Return mistakes as they are printed; one without a place is a sentence."""
    return {
        "mistakes": [
            {"file": m.path, "line": m.line, "column": m.column, "message": m.message}
            if isinstance(m, Mistake)
            else {"file": None, "line": 0, "column": 0, "message": m}
            for m in mistakes
        ]
    }


def as_json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)


def as_lines(found: dict[str, Any]) -> str:
    """Return a line per mistake; where there is none, a line per note and two of what was seen."""
    if found["mistakes"]:
        return "\n".join(_line(mistake) for mistake in found["mistakes"])
    series, missed = found["series"], "nodes" if found["database"] else "nodes, PostgreSQL"
    notes = "".join(f"{note}\n" for note in found["notes"])
    return notes + (
        f"no mistakes: {found['keyspaces']} keyspaces, {found['roles']} roles, "
        f"{series['fixed']:,} metric series at most, and {series['per_node']} more for each node\n"
        f"checked: {found['files']} files against {found['commands']} commands and the clusters "
        f"{', '.join(found['clusters'])}; not asked: {missed}"
    )


def _line(mistake: dict[str, Any]) -> str:
    if mistake["file"] is None:
        return str(mistake["message"])
    return str(Mistake(mistake["file"], mistake["line"], mistake["column"], mistake["message"]))
