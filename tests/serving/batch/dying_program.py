"""The process of a worker that dies whenever the model runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.workflows import batch


def main(requests: Iterator[Any]) -> Iterator[Any]:
    Classifier.logits = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return batch.main(requests)
