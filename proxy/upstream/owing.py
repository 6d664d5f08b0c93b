"""Keys of which nodes are to be told something: how much of it is sent to whom at a time.

Used by those who owe it: `handlers.leases`, `control.delivery`. Always true: each node is sent one
key first, to see whether there is any use in more, then handfuls, each when the one before has
been answered; a node that stays away holds up no other, and no key those behind it for ever.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

from proxy import wire

# Of what one node is owed so many keys are under way to it at a time.
HANDFUL = 100


async def repay(
    slots: wire.SlotMap,
    owed: Iterable[tuple[int, bytes]],
    pay: Callable[[int, bytes], Awaitable[bool]],
) -> None:
    """Pay for keys, given by their clusters and their names there, as far as nodes answer.

    pay returns whether the node has answered.
    """
    by_node: dict[tuple[int, int], list[bytes]] = {}
    for cluster, name in owed:
        node = slots.owner(cluster, slots.place_of(cluster, name).slot)
        by_node.setdefault((cluster, node), []).append(name)
    await asyncio.gather(*(_repay(cluster, names, pay) for (cluster, _), names in by_node.items()))


async def _repay(
    cluster: int, names: list[bytes], pay: Callable[[int, bytes], Awaitable[bool]]
) -> None:
    # Another one first each time: one may be refused for as long as its slot moves.
    first = random.randrange(len(names))
    names = names[first:] + names[:first]
    parts = [names[:1], *(names[at : at + HANDFUL] for at in range(1, len(names), HANDFUL))]
    for part in parts:
        if not all(await asyncio.gather(*(pay(cluster, name) for name in part))):
            return
