"""The tests. Settings that libraries and our own modules read when they are imported, and processes inherit."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DENSENET_DEPLOY_SANDBOX", "off")  # a process for each file; the fixture `sandbox` turns it on

# Containers often forbid the cache of bytecode: then every process that a test starts compiles PyTorch again (10 s).
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
