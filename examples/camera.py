"""Classify the frames of a camera. Only the newest frame waits, so answers never lag behind.

uv run python examples/camera.py artifacts/digits.onnx examples/digits/held_out/7 [--fast-decode]
Here a folder stands in for the camera, at 30 images/s: give `watch` any iterable of uint8 RGB (H, W, 3), or JPEG bytes.
"""

import argparse
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from densenet_deploy import Classifier
from densenet_deploy.runtime.image_folders import find_images


def watch(classify: Classifier, frames: Iterable[np.ndarray | bytes]) -> int:
    """Print class, score and milliseconds from arrival to answer; return how many, or raise the camera's error."""
    newest: queue.Queue = queue.Queue(maxsize=1)
    threading.Thread(target=grab, args=(classify, frames, newest), daemon=True).start()
    answered = 0
    while isinstance(item := newest.get(), tuple):
        prepared, arrival = item
        best = classify(prepared, top_k=1).top[0]
        answered += 1
        print(f"{best.name}  {best.score:.1%}  {(time.perf_counter() - arrival) * 1e3:.1f} ms")
    if item:
        raise item
    return answered


def grab(classify: Classifier, frames: Iterable[np.ndarray | bytes], newest: queue.Queue) -> None:
    ending = None
    try:
        for frame in frames:
            arrival = time.perf_counter()
            prepared = classify.prepare(frame)  # while the model runs on an earlier one
            with contextlib.suppress(queue.Empty):
                newest.get_nowait()  # an older frame that was not classified
            newest.put((prepared, arrival))
    except Exception as problem:  # noqa: BLE001 - the reader raises it
        ending = problem
    newest.put(ending)  # waits until the last frame is taken


def played(folder: Path) -> Iterator[bytes]:
    for path in find_images(folder):
        time.sleep(1 / 30)
        yield path.read_bytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Classify the frames of a camera, for which a folder stands in.")
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="images, which arrive at 30 a second")
    parser.add_argument("--fast-decode", action="store_true", help="decode a large JPEG at a fraction of its size")
    given = parser.parse_args()
    with Classifier.open(given.model, fast=given.fast_decode) as classifier:
        print(f"{watch(classifier, played(given.folder))} frames answered", file=sys.stderr)
