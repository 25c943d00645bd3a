"""Settings of every test's process, and of the processes that tests start."""

import os
import signal

# Tests run side by side, and threads without a core of their own spin while they wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
# In the background of a shell it is ignored, and so it would be by the processes that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
