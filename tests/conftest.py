"""Settings of every test's process, and of the processes that tests start."""

import os

# Tests run side by side, and threads without a core of their own spin while they wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
