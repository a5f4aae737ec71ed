"""Classify every image of a folder: an application that embeds the runner.

uv run python examples/classify_folder.py artifacts/digits.onnx examples/digits/held_out/7
"""

import argparse
import sys
import time
from pathlib import Path

from densenet_deploy import Classifier
from densenet_deploy.runtime.image_folders import PreparedImages, find_images
from densenet_deploy.runtime.runner import RunnerOptions


def main(model: Path, folder: Path) -> None:
    with Classifier.open(model, options=RunnerOptions(spin=False)) as classify:  # idle threads leave cores to decoding
        images = PreparedImages(find_images(folder), classify.preprocessing, max_bad=None)
        start = time.perf_counter()
        for path, image in images:
            best = classify(image, top_k=1).top[0]
            print(f"{path.name}  {best.name}  {best.score:.1%}")
        seconds = time.perf_counter() - start
        for bad in images.bad:
            print(f"skipped {bad.error}", file=sys.stderr)
    print(f"{seconds:.1f} s, decoding while the model runs", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Classify every image of a folder.")
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    given = parser.parse_args()
    main(given.model, given.folder)
