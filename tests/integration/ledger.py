"""Clients whose transactions leave traces: what ran half, twice, or although it was refused shows.

Each transaction adds one to a counter and appends its own number to a list of the same slot. A
counter and its list that differ in size: half-applied. A number that stands twice in a list:
repeated. One whose EXEC was answered with an error that says that nothing ran: a lie.
"""

import asyncio
import random
import time
from collections import Counter
from typing import Any

from tests.integration.rig import Caller, is_error
from tests.integration.workers import Outcome, connected

TAGS = 8  # per client; each is a slot of its own, as far as chance goes
BURST = 5  # transactions in one pipeline


class Ledger:
    """One client with counters and lists of its own, and what it was told of each transaction."""

    def __init__(self, number: int, port: int, outcome: Outcome) -> None:
        self.port = port
        self.outcome = outcome
        self.chance = random.Random(number)
        self.tags = [f"ledger:{number}:{tag}" for tag in range(TAGS)]
        self.number = 0
        self.told: dict[str, dict[int, str]] = {tag: {} for tag in self.tags}

    async def run(self, until: asyncio.Event) -> None:
        """Be one client; a closed connection is opened again."""
        while not until.is_set():
            caller = await connected(self.port, self.outcome)
            if caller is None:
                continue
            try:
                while not until.is_set():
                    await self.burst(caller)
            except (OSError, TimeoutError) as error:
                self.outcome.closed += 1
                self.outcome.fail(f"{type(error).__name__} {error}")
            finally:
                caller.close()

    async def burst(self, caller: Caller) -> None:
        """Send some transactions at once and note what is said of each."""
        commands: list[tuple[Any, ...]] = []
        sent: list[tuple[str, int]] = []
        for _ in range(BURST):
            tag, self.number = self.chance.choice(self.tags), self.number + 1
            counter, log = f"{{{tag}}}n", f"{{{tag}}}l"
            commands += [("MULTI",), ("INCR", counter), ("RPUSH", log, self.number), ("EXEC",)]
            sent.append((tag, self.number))
            self.told[tag][self.number] = "unknown"
        start = time.monotonic()
        replies = await caller.pipeline(commands)
        self.outcome.latencies.append(time.monotonic() - start)
        for (tag, number), reply in zip(sent, replies[3::4], strict=True):
            self.note(tag, number, reply)
        if any(map(is_error, replies)):
            await asyncio.sleep(0.005)

    def note(self, tag: str, number: int, reply: Any) -> None:
        self.outcome.operations += 1
        if is_error(reply):
            self.outcome.fail(reply)
            # Any other error says that nothing ran, and is held to that.
            if "unknown" not in str(reply):
                self.told[tag][number] = "refused"
            return
        self.told[tag][number] = "done"
        if len(reply) != 2 or reply[0] != reply[1]:
            self.outcome.wrong.append(f"{tag} {number}: EXEC answered {reply}")

    async def check(self, caller: Caller) -> Counter[str]:
        """Read everything back; return how many acknowledged were lost, and all that is wrong."""
        found: Counter[str] = Counter()
        for tag in self.tags:
            count = int(await caller.call("GET", f"{{{tag}}}n") or 0)
            numbers = [int(item) for item in await caller.call("LRANGE", f"{{{tag}}}l", 0, -1)]
            told = self.told[tag]
            found["half-applied"] += abs(count - len(numbers))
            found["repeated"] += len(numbers) - len(set(numbers))
            found["refused and run"] += sum(told[number] == "refused" for number in set(numbers))
            kept = set(numbers)
            found["lost"] += sum(
                what == "done" and number not in kept for number, what in told.items()
            )
            found["unknown"] += sum(what == "unknown" for what in told.values())
        return found
