"""Peak memory of this process."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int | None:
    """Return the largest resident size so far [B], or None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
