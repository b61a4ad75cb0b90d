"""All benchmarks, one after another; the exit status tells whether every limit was kept."""

import sys

from benchmarks import (
    attach,
    decomposition,
    detection,
    memory,
    pages,
    record_size,
    study_overhead,
)

kept = [
    part.main()
    for part in (decomposition, record_size, detection, study_overhead, attach, pages, memory)
]
sys.exit(not all(kept))
