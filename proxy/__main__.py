"""The command line: `sidecache VERB` and `python -m proxy VERB`.

One function per verb. Each imports what it needs when it runs, so that `health` and `--version`
answer in the time of a bare interpreter, and a probe never pays for what `serve` needs.

Always true:
  * exit codes: 0 fine, 1 said no or failed, 2 wrong usage or an invalid configuration;
  * what an operator can mend is a sentence, or a list of all mistakes, and never a traceback;
  * what is asked for is on stdout, complaints are on stderr. The mistakes that `check` finds are
    what it was asked for.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

FINE, FAILED, INVALID = 0, 1, 2

# A probe of Kubernetes and of Docker is given a few seconds; an answer takes a millisecond.
HEALTH_TIMEOUT = 2.0  # seconds
