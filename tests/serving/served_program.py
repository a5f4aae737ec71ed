"""A process of a server that answers the messages without serving: its settings say how it behaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densenet_deploy.errors import ModelFileError


def main(requests: Iterator[Any]) -> Iterator[Any]:
    settings = next(requests)
    starts = Path(settings["folder"]) / "starts"
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if settings.get("is_broken"):
        raise ModelFileError("m.onnx", "is broken", "repair it")
    if len(starts.read_text().split()) > settings.get("steady", 1000):
        os._exit(3)
    yield {"pid": os.getpid(), "variable": os.environ["GIVEN"]}
    assert next(requests) == "listen"
    yield "listening"
    with (Path(settings["folder"]) / "told").open("a") as file:
        for message in requests:
            file.write(f"{message}\n")
            file.flush()
            if settings.get("stops_at_once", True):
                return
