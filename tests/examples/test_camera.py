"""The camera example: the newest frame wins, the last one is answered, and a camera that fails ends it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy import Classifier
from densenet_deploy.errors import FeedError
from examples.camera import watch
from tests.conftest import DIGITS

SCRIPT = Path(__file__).parents[2] / "examples" / "camera.py"
FRAME = np.full((40, 60, 3), 128, np.uint8)


class SlowClassifier(Classifier):
    """Takes its time, and remembers how bright each frame was, and which thread prepared it."""

    seconds = 0.1

    def prepare(self, image):
        prepared = super().prepare(image)
        self.kept = [*getattr(self, "kept", []), prepared]  # so that no other gets its id
        self.brightness = {**getattr(self, "brightness", {}), id(prepared): image[0, 0, 0]}
        self.preparing = {*getattr(self, "preparing", ()), threading.current_thread()}
        return prepared

    def classify(self, image, top_k=5):
        self.seen = [*getattr(self, "seen", []), self.brightness[id(image)]]
        time.sleep(self.seconds)
        return super().classify(image, top_k)

    __call__ = classify


def _frames(count, seconds):
    for number in range(count):
        yield np.full_like(FRAME, number)
        time.sleep(seconds)


def test_the_example_is_short_and_reads_a_folder(digits_onnx):
    assert len(SCRIPT.read_text().splitlines()) < 65
    done = subprocess.run(
        [sys.executable, SCRIPT, digits_onnx, DIGITS / "held_out" / "7"], capture_output=True, text=True, check=True
    )
    answers = re.findall(r"^(\d)  [\d.]+%  [\d.]+ ms$", done.stdout, re.MULTILINE)
    assert len(answers) == len(done.stdout.splitlines()) > 0
    assert set(answers) == {"7"}
    assert done.stderr == f"{len(answers)} frames answered\n"


def test_a_slow_model_skips_to_the_newest_frame_and_answers_the_last(tiny_onnx):
    with SlowClassifier.open(tiny_onnx) as classify:
        answered = watch(classify, _frames(30, 0.01))
    assert classify.seen == sorted(set(classify.seen))
    assert 2 <= answered == len(classify.seen) < 30
    assert classify.seen[-1] == 29
    assert threading.current_thread() not in classify.preparing  # which runs the model


def test_a_fast_model_answers_every_frame(tiny_onnx):
    with SlowClassifier.open(tiny_onnx) as classify:
        classify.seconds = 0

        def waited_for():
            """Each frame comes when the model has begun with the one before."""
            for number in range(5):
                yield np.full_like(FRAME, number)
                while number not in getattr(classify, "seen", []):
                    time.sleep(0.001)

        assert watch(classify, waited_for()) == 5
    assert classify.seen == [0, 1, 2, 3, 4]


def test_a_camera_without_frames_ends_at_once(tiny_onnx, capsys):
    with Classifier.open(tiny_onnx) as classify:
        assert watch(classify, []) == 0
    assert capsys.readouterr().out == ""


def test_a_camera_that_fails_ends_it_after_the_last_frame(tiny_onnx, capsys):
    def unplugged():
        yield FRAME
        raise OSError("unplugged")

    with Classifier.open(tiny_onnx) as classify, pytest.raises(OSError, match="unplugged"):
        watch(classify, unplugged())
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_frame_of_another_type_is_a_typed_error(tiny_onnx):
    with Classifier.open(tiny_onnx) as classify, pytest.raises(FeedError) as caught:
        watch(classify, [np.zeros((3, 40, 40), np.float32)])
    assert caught.value.subject == "image"
