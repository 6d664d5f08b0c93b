"""Celery with default settings but for its URLs: `celery_jobs.py` sends work, a worker does it.

The worker is started as `celery -A tests.integration.frameworks.celery_jobs worker`. URL in BROKER.
"""

import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery, chord, group

app = Celery("jobs", broker=os.environ["BROKER"], backend=os.environ["BROKER"])


@app.task(name="add")
def add(one: int, other: int) -> int:
    return one + other


@app.task(name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="second_try", bind=True, max_retries=3)
def second_try(self: Any) -> int:
    """Succeed at the second attempt."""
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return int(self.request.retries)


def main(tasks: int) -> None:
    """Send single tasks, a group, chords and delayed ones; fail where a result is wrong."""
    singles = [add.delay(n, 1) for n in range(tasks)]
    together = group(add.s(n, n) for n in range(20))()
    chords = [chord((add.s(n, 0) for n in range(10)), total.s())() for _ in range(3)]
    soon = datetime.now(UTC) + timedelta(seconds=1)
    later = [add.apply_async((n, 2), eta=soon) for n in range(10)]
    again = second_try.delay()
    assert [one.get(timeout=60) for one in singles] == [n + 1 for n in range(tasks)]
    assert together.get(timeout=60) == [2 * n for n in range(20)]
    assert [one.get(timeout=60) for one in chords] == [45] * 3
    assert [one.get(timeout=60) for one in later] == [n + 2 for n in range(10)]
    assert again.get(timeout=60) == 1
    print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
