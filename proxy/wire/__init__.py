"""The data plane: pure state machines, no socket, no future, no logger, no clock.

Read in the order a byte travels: tables, frames, downstream, upstream. The contract, typed and
documented, is __init__.pyi.
"""

from proxy.wire.downstream import Downstream, Request
from proxy.wire.frames import frame_end, pack
from proxy.wire.tables import (
    LATENCY_BOUNDS,
    OUTCOMES,
    Counters,
    Latencies,
    Location,
    Router,
    Ruleset,
    SlotMap,
    key_slot,
)
from proxy.wire.upstream import Batch, Orphan, Upstream

__all__ = [
    "LATENCY_BOUNDS",
    "OUTCOMES",
    "Batch",
    "Counters",
    "Downstream",
    "Latencies",
    "Location",
    "Orphan",
    "Request",
    "Router",
    "Ruleset",
    "SlotMap",
    "Upstream",
    "frame_end",
    "key_slot",
    "pack",
]
