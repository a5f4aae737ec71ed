"""A process of a server that answers the messages without serving: its settings say how it behaves."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densenet_deploy.errors import ModelFileError


def main(requests: Iterator[Any]) -> Iterator[Any]:
    settings = next(requests)
    folder = Path(settings["folder"])
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    with (folder / "replaces").open("a") as file:
        file.write(f"{settings['replaces']}\n")
    if settings.get("is_broken"):
        raise ModelFileError("m.onnx", "is broken", "repair it")
    if len((folder / "starts").read_text().split()) > settings.get("steady", 1000):
        os._exit(3)
    time.sleep(settings.get("replacement_loads_s" if settings["replaces"] else "loads_s", 0))
    yield {"pid": os.getpid(), "variable": os.environ["GIVEN"]}
    assert next(requests) == "listen"
    yield "listening"
    thread = threading.Thread(target=_write_messages, args=(requests, folder / "told", settings))
    thread.start()
    signs = settings.get("signs", ["alive"])
    for sign in itertools.cycle(signs or [None]):
        if sign is not None:
            yield sign
        thread.join(0.05)
        if not thread.is_alive():
            return


def _write_messages(requests: Iterator[Any], told: Path, settings: dict[str, Any]) -> None:
    with told.open("a") as file:
        for message in requests:
            file.write(f"{message}\n")
            file.flush()
            if settings.get("stops_at_once", True):
                return
