"""Deadlines of answers that this process has to read itself.

`pool` waits with them. A loop that comes back late finds its timers due before it looks at its
sockets: what had arrived in time would count as what never came.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

# A loop that is later than this has been busy, in seconds, and reads what has come meanwhile before
# a deadline passes. One turn of a loop that ten thousand clients keep busy is below a second.
LATE = 0.02
GRACE = 0.05


@contextlib.asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """Raise TimeoutError in the block at a time of the loop, or GRACE after a loop that is late."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        def pass_by() -> None:
            late = loop.time() - deadline > LATE
            limit.reschedule(loop.time() + GRACE * late)

        timer = loop.call_at(deadline, pass_by)
        try:
            yield
        finally:
            timer.cancel()
