"""One CPU thread a process: workers side by side, and the processes they start, would slow each other down."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
