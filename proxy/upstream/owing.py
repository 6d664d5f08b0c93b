"""Keys of which nodes are to be told something: how much of it is sent to whom at a time.

Used by those who owe it: `handlers.leases`, `control.delivery`. Always true: each node is sent one
key first, to see whether there is any use in more, then handfuls, each when the one before has
been answered; a node that stays away holds up no other, and no key those behind it for ever.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from proxy import wire

# Of what one node is owed so many keys are under way to it at a time.
HANDFUL = 100

Debt = TypeVar("Debt")


async def repay(
    slots: wire.SlotMap,
    owed: Iterable[tuple[int, bytes, Debt]],
    pay: Callable[[Debt], Awaitable[bool]],
) -> None:
    """Pay debts, given with the cluster and the name of the key, as far as nodes answer.

    pay returns whether the node has answered.
    """
    by_node: dict[tuple[int, int], list[Debt]] = {}
    for cluster, name, debt in owed:
        node = slots.owner(cluster, slots.place_of(cluster, name).slot)
        by_node.setdefault((cluster, node), []).append(debt)
    await asyncio.gather(*(_repay(debts, pay) for debts in by_node.values()))


async def _repay(debts: list[Debt], pay: Callable[[Debt], Awaitable[bool]]) -> None:
    # Another one first each time: one may be refused for as long as its slot moves.
    first = random.randrange(len(debts))
    debts = debts[first:] + debts[:first]
    parts = [debts[:1], *(debts[at : at + HANDFUL] for at in range(1, len(debts), HANDFUL))]
    for part in parts:
        if not all(await asyncio.gather(*map(pay, part))):
            return
