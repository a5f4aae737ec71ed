"""The tests. Settings that libraries and our own modules read when they are imported, and processes inherit."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DENSENET_DEPLOY_SANDBOX", "off")  # a process for each file; the fixture `sandbox` turns it on
