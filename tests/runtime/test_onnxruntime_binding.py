"""Feeds and results bound to device memory: the CPU's here, which ONNX Runtime treats alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.onnxruntime_providers import Bindings

FLOAT = np.dtype(np.float32)
INPUTS = (TensorSpec("input", (None, 3, 32, 32), FLOAT),)


@pytest.fixture(scope="module")
def session(tiny_onnx: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(tiny_onnx), options, ["CPUExecutionProvider"])


@pytest.fixture(params=[(None, 10), (None, None)], ids=["known width", "unknown width"])
def bindings(request: pytest.FixtureRequest, session: onnxruntime.InferenceSession) -> Bindings:
    return Bindings(session, ("cpu", 0), INPUTS, (TensorSpec("logits", request.param, FLOAT),), 2)


def batch(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)}


def test_bound_results_are_those_of_a_plain_run(bindings: Bindings, session: onnxruntime.InferenceSession) -> None:
    for seed, count in enumerate((2, 2, 5, 1, 2, 5)):
        feed = batch(count, seed)
        np.testing.assert_array_equal(bindings.run(feed)["logits"], session.run(None, feed)[0])


def test_results_belong_to_the_caller(bindings: Bindings) -> None:
    first = bindings.run(batch(2, 0))["logits"]
    kept = first.copy()
    bindings.run(batch(2, 1))
    np.testing.assert_array_equal(first, kept)


def test_threads_do_not_mix_their_feeds(bindings: Bindings, session: onnxruntime.InferenceSession) -> None:
    feeds = [batch(1 + seed % 3, seed) for seed in range(40)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda feed: bindings.run(feed)["logits"], feeds))
    for feed, result in zip(feeds, results, strict=True):
        np.testing.assert_array_equal(result, session.run(None, feed)[0])
