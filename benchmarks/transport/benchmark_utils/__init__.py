"""What data sets and solvers share: the usual start, and what a run consumed."""

from __future__ import annotations

import resource
import sys
import time

from bilevel.problems.transport import transport_start


def even_start(network):
    """A quarter of the total demand, spread evenly over the links."""
    return transport_start(network)[0].numpy()


class Meter:
    """Processor time since its making, and the process's peak of memory so far.

    The peak is that of the largest run in the same process up to now.
    """

    def __init__(self):
        self._began = time.process_time()

    def read(self):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"cpu_seconds": time.process_time() - self._began, "peak_gib": peak / 2**30}
