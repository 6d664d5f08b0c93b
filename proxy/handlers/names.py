"""A node's names of keys back to those of clients.

Whatever shows keys that no client has named in the same command (SCAN, KEYS, RANDOMKEY, keyspace
notifications) asks here; where the command names its keys, `renamed` puts those back instead.

Always true: the name that is returned, sent by a client, is this very key at the node. A key that
no client can reach by any name is not shown: under its own name it would be taken for another one,
and deleting what a SCAN has shown would delete that.
"""

from proxy import wire
from proxy.handlers import Session
from proxy.keys import client_name


def reached(
    session: Session, row: int, cluster: int, name: bytes
) -> tuple[bytes, wire.Location] | None:
    """Return a client's name and place of a key that a cluster's node names, if it is shown.

    The rules decide as for the row's command with that key: what a keyspace denies is not shown,
    nor what lies in another cluster than that where the client would look for it.
    """
    plain = client_name(session.downstream.ruleset, name)
    if plain is None:
        return None
    location = session.downstream.locate(plain, row, False)
    if isinstance(location, bytes) or location.cluster != cluster or location.name != name:
        return None
    return plain, location
