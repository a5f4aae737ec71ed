"""Building TensorRT engines: what can be chosen, the process that builds, and what the result runs in."""

from typing import Final

BUILD_WORKER: Final = "densenet_deploy.engines.build_worker"
BUILD_WORKER_FLAGS: Final = ("-S",)  # what `site` would find is in the path already, and costs time and memory
