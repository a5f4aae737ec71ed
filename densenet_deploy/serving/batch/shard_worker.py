"""The process that classifies shards; `shards.ShardProcess` is its parent.

The batches of a request are fixed by position, so that answers do not depend on the workers, nor on what else failed. A
bad image leaves its batch, which runs without it. The messages (`worker.py` carries them)::

    parent   {"source": "a.onnx", ...}                                      once: the job, as the program reads it
    child    {"layout": {...}, "batch": 16, ...}                            `JobFacts`
    parent   {"files": ["a.png", ...], "bad": {}, "is_careful": false}      a shard, or what is left of it
    child    ["rows", [{"file": "a.png", ...}, ...]]                        for every batch, in order

A careful request reads one image at a time, and says so before: what is being read when the process dies killed it.
`bad` are the images that did, by place, with the reason::

    child    ["reading", 3]     child    ["running", null]     child    ["rows", [...]]
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from densenet_deploy.errors import InputError, ResourceError
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import computed_ahead
from densenet_deploy.runtime.image_urls import read_named_image
from densenet_deploy.runtime.preprocess import PreparedImage
from densenet_deploy.runtime.runner import Placement
from densenet_deploy.serving.batch.described_runner import RunnerFacts
from densenet_deploy.serving.batch.rows import Row, RowLayout

DEFAULT_BATCH: Final = 16
_BATCHES_AHEAD: Final = 2

Outcome = PreparedImage | str
"""An image as the model takes it, or why it could not be read."""


@dataclass(frozen=True)
class JobSettings:
    """How a worker classifies.

    Attributes:
        batch: images per call; None takes 16.
        top_k: of multiclass, how many classes a row lists.
        decode_threads: threads that read images ahead of the model.
    """

    batch: int | None
    top_k: int
    decode_threads: int = 1


@dataclass(frozen=True)
class JobFacts:
    """What the first worker says about the model.

    Attributes:
        layout: of the rows.
        batch: images per call.
        placement: what runs it.
        input: how images are prepared.
        runner: what else is known of it.
        notes: what was assumed.
    """

    layout: RowLayout
    batch: int
    placement: Placement
    input: Mapping[str, object]
    runner: RunnerFacts
    notes: tuple[str, ...] = ()


class Answers(Protocol):
    """Makes the rows of a job, which JSON holds: each has the keys `file` and `error`."""

    def of_batch(self, files: Sequence[str], images: Sequence[PreparedImage], outputs: Array) -> Sequence[Row]:
        """Return a row for each of the images that `outputs` (N, C) answer."""

    def refused(self, file: str, error: str) -> Row:
        """Return the row of an image that could not be read."""


@dataclass(frozen=True)
class ShardRequest:
    """Images to classify, those of them that are known to be bad, and whether to say what is being read."""

    files: tuple[str, ...]
    bad: Mapping[str, str]
    is_careful: bool = False


class Shards:
    """What a worker answers, once it has opened its model and said so.

    Args:
        classifier: of the model.
        answers: makes the rows.
        batch: images per call.
        threads: that read images ahead of the model.
    """

    def __init__(self, classifier: Classifier, answers: Answers, batch: int, threads: int) -> None:
        self._classifier, self._answers = classifier, answers
        self._batch, self._threads = batch, threads

    def messages(self, request: ShardRequest) -> Iterator[list[Any]]:
        """Yield the messages of a shard."""
        files = request.files
        with contextlib.closing(self._outcomes(request)) as outcomes:
            for start in range(0, len(files), self._batch):
                batch: list[Outcome] = []
                for place in range(start, min(start + self._batch, len(files))):
                    if request.is_careful:
                        yield ["reading", place]
                    batch.append(next(outcomes))
                if request.is_careful:
                    yield ["running", None]
                yield ["rows", self._rows(files[start : start + self._batch], batch)]

    def _outcomes(self, request: ShardRequest) -> Generator[Outcome]:
        """Yield what is read of every image: ahead of the caller, or when it asks."""
        read = functools.partial(
            read_named_image, preprocessing=self._classifier.preprocessing, fast=self._classifier.fast
        )
        good = [file for place, file in enumerate(request.files) if str(place) not in request.bad]
        with contextlib.ExitStack() as stack:
            if request.is_careful:
                results: Iterator[Callable[[], PreparedImage]] = (functools.partial(read, file) for file in good)
            else:
                ahead = computed_ahead(read, good, ahead=_BATCHES_AHEAD * self._batch, threads=self._threads)
                results = (result.result for _, result in stack.enter_context(contextlib.closing(ahead)))
            for place in range(len(request.files)):
                known = request.bad.get(str(place))
                yield _outcome(next(results)) if known is None else known

    def _rows(self, files: Sequence[str], batch: Sequence[Outcome]) -> list[Row]:
        good = [(file, image) for file, image in zip(files, batch, strict=True) if isinstance(image, PreparedImage)]
        answered: Iterator[Row] = iter(())
        if good:
            names, images = zip(*good, strict=True)
            outputs = self._classifier.logits(np.stack([image.pixels for image in images]))
            answered = iter(self._answers.of_batch(names, images, outputs))
        return [
            self._answers.refused(file, image) if isinstance(image, str) else next(answered)
            for file, image in zip(files, batch, strict=True)
        ]


def _outcome(result: Callable[[], PreparedImage]) -> Outcome:
    """Return an image, or why that one could not be read; what is wrong beyond it is raised."""
    try:
        return result()
    except InputError as exc:
        return exc.why
    except ResourceError as exc:
        if isinstance(exc.__cause__, PermissionError):
            return exc.why
        raise
