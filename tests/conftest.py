"""One CPU thread a process: workers side by side would slow each other down. No test asks a model hub."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
