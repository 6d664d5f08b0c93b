"""RQ with default settings: enqueues work, does it in a worker, and checks what came of it."""

import sys

from redis import Redis
from rq import Queue, Retry, SimpleWorker

# What a worker imports; this module itself is __main__.
ADD = "tests.integration.frameworks.rq_jobs.add"


def add(one: int, other: int) -> int:
    return one + other


def main(url: str, jobs: int) -> None:
    connection = Redis.from_url(url)
    queue = Queue(connection=connection)
    first = queue.enqueue(ADD, 1, 1)
    sent = [queue.enqueue(ADD, n, n, retry=Retry(max=2)) for n in range(jobs - 2)]
    behind = queue.enqueue(ADD, 2, 3, depends_on=first)
    SimpleWorker([queue], connection=connection).work(burst=True, logging_level="WARNING")
    assert [job.latest_result().return_value for job in sent] == [2 * n for n in range(jobs - 2)]
    assert behind.latest_result().return_value == 5
    assert queue.finished_job_registry.count == jobs
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
