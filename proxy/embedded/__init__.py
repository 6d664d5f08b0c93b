"""Real servers on this machine, for the demo, the tests and the benchmarks.

Redis or Valkey as cluster, single node or behind sentinels (`redis`), PostgreSQL (`postgres`) and
the proxy itself as a process in front of them (`sidecar`). Nothing here is part of a production
installation.

Always true:
  * nothing is installed, no user is made and no file outside the given directory is touched;
  * every server ends with the process that started it, also when that process is killed;
  * ports come from one allocator, and a port that somebody else took is replaced, not waited for.
"""
