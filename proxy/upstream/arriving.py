"""Replies of nodes that are not whole: what connections hold of them, and which one is refused.

Made by `server`; each connection's `wire.Upstream` tells of a reply of which more than one read has
come. Always true:
  * all of them come to no more than the largest reply that can be delivered (`memory.largest`):
    beyond that the largest is refused, and its client gets an error line;
  * what is left of it is not read: its connection is closed, and what others asked there is sent
    again or answered as by any connection that is lost. The command itself is not sent again.
"""

from proxy import wire
from proxy.config import Limits
from proxy.memory import Growing, largest
from proxy.upstream.connection import Loss, UpstreamConnection


class Arriving(Growing[wire.Upstream]):
    """The account of all connections to nodes."""

    holders = "connections"

    def __init__(self, limits: Limits) -> None:
        super().__init__("replies", largest(limits), _refuse)


def _refuse(upstream: wire.Upstream, reason: str) -> None:
    connection: UpstreamConnection = upstream.owner
    upstream.refuse()
    connection.abort(Loss("protocol", "a reply is larger than may be kept"))
