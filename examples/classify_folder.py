"""Classify every image of a folder: an application that embeds the runner.

uv run python examples/classify_folder.py artifacts/digits.onnx examples/digits/held_out/7
"""

import sys
import time
from pathlib import Path

from densenet_deploy import Classifier, DensenetDeployError
from densenet_deploy.runtime.image_folders import find_images


def main(model: str, folder: str) -> None:
    with Classifier.open(model) as classify:
        for path in find_images(Path(folder)):
            start = time.perf_counter()
            try:
                best = classify(path, top_k=1).top[0]
            except DensenetDeployError as exc:
                print(f"skipped {exc}", file=sys.stderr)
                continue
            milliseconds = (time.perf_counter() - start) * 1e3
            print(f"{path.name}  {best.name}  {best.score:.1%}  {milliseconds:.1f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: classify_folder.py MODEL FOLDER")
    main(sys.argv[1], sys.argv[2])
