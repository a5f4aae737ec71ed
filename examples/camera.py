"""Classify what a camera sees, in a queue of one frame where the newest wins: no answer is about the distant past.

uv run python examples/camera.py artifacts/digits.onnx examples/digits/held_out/7
A folder plays the camera here, 30 images a second: give `watch` any iterable of uint8 RGB frames (H, W, 3).
"""

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
from densenet_deploy.runtime.images import LoadedImage, load_image


def watch(classify: Classifier, frames: Iterable[np.ndarray]) -> int:
    """Print class, score and milliseconds from arrival to answer; return how many, or raise the camera's error."""
    newest: queue.Queue = queue.Queue(maxsize=1)
    threading.Thread(target=grab, args=(frames, newest), daemon=True).start()
    answered = 0
    while isinstance(item := newest.get(), tuple):
        frame, arrival = item
        best = classify(LoadedImage.from_array(frame), top_k=1).top[0]
        answered += 1
        print(f"{best.label or best.index}  {best.score:.1%}  {(time.perf_counter() - arrival) * 1e3:.1f} ms")
    if item:
        raise item
    return answered


def grab(frames: Iterable[np.ndarray], newest: queue.Queue) -> None:
    ending = None
    try:
        for frame in frames:
            with contextlib.suppress(queue.Empty):
                newest.get_nowait()  # an older frame that nobody took
            newest.put((frame, time.perf_counter()))
    except Exception as problem:  # noqa: BLE001 - the reader raises it
        ending = problem
    newest.put(ending)  # waits until the last frame is taken


def played(folder: Path) -> Iterator[np.ndarray]:
    for path in find_images(folder):
        time.sleep(1 / 30)
        yield np.asarray(load_image(path).pixels)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: camera.py MODEL FOLDER")
    with Classifier.open(sys.argv[1]) as classifier:
        print(f"{watch(classifier, played(Path(sys.argv[2])))} frames answered", file=sys.stderr)
