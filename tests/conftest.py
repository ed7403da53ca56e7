"""One thread per process: the models are tiny, and the processes of pytest-xdist would fight over the cores."""

import os

# Read when torch and tokenizers are imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
