"""The hunt for wrong replies: checkers in front of the proxy, faulty links behind it."""

from pathlib import Path
from typing import Any

from tests.checker import Plan, Tally
from tests.faults import NO_FAULTS, Faults, Relay
from tests.integration.rig import check, cluster_of

# Stalls outlast the deadline of a request, so that it passes while the reply is on its way.
DEADLINE = "150ms"
STALL = 0.35  # seconds

# Of every chunk to or from a node: a fifth in slices, one in 250 late beyond the deadline, one in
# 500 the end of the connection.
TROUBLE = Faults(slice_share=0.2, stall_share=0.004, stall=STALL, reset_share=0.002)


def blocks(relays: list[Relay], deadline: str = DEADLINE) -> dict[str, Any]:
    """Return the clusters of a sidecache.yaml, both behind the same relays."""
    cluster = cluster_of(relays, timeout=deadline)
    return {"locks": cluster, "cache": cluster}


# Rules under which almost every command is rewritten or followed by one that nobody asked for.
RULES = """
keyspaces:
  all: {key: "{rest:path}", ttl: {default: 3600s, max: 7200s, refresh: on_read},
        collection: {max_items: 100000}}
"""


def rules_in(folder: Path) -> str:
    """Write the rules there and return their path."""
    path = folder / "rules.yaml"
    path.write_text(RULES)
    return str(path)


async def hunt(relays: list[Relay], plan: Plan, trouble: Faults = TROUBLE) -> Tally:
    """Let the links to the nodes be hurt while the checkers ask; print and return what they saw."""
    for relay in relays:
        relay.apply(trouble, trouble)
    try:
        tally = await check(plan)
    finally:
        for relay in relays:
            relay.apply(NO_FAULTS, NO_FAULTS)
    links = [relay.tally for relay in relays]
    print(
        f"\nseed {plan.seed}: {tally}\n"
        f"links: {sum(each.reset for each in links)} reset, {sum(each.stalled for each in links)} "
        f"stalls, {sum(each.sliced for each in links)} chunks in slices"
    )
    return tally
