"""Images decoded and prepared ahead of the model, by threads: Pillow and numpy do not hold the interpreter meanwhile.

While the model runs one batch the threads make the next two; more would only hold memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from densenet_deploy.errors import InputError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.image_folders import BadImage, record_bad
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import Pixels, prepare


class PreparedImages:
    """Iterate over the images of `paths` that can be read, in order, as (path, input of (3, S, S) float32).

    The others are recorded in `bad`. Iterating again starts again.

    Args:
        paths: image files.
        preprocessing: how they are prepared.
        max_bad: how many may be unreadable.
        ahead: how many are prepared before they are asked for.
        threads: None means one for each CPU that this process may use.

    Raises:
        DataError: while iterating, at the bad image that exceeds `max_bad`.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        preprocessing: Preprocessing,
        *,
        max_bad: int = 0,
        ahead: int = 32,
        threads: int | None = None,
    ) -> None:
        self._paths = tuple(paths)
        self._preprocessing = preprocessing
        self._max_bad = max_bad
        self._ahead = require_range("ahead", ahead, 1, 1_000_000)
        self._threads = require_range("decode-threads", usable_cpus() if threads is None else threads, 1, 1024)
        self.bad: list[BadImage] = []

    def __iter__(self) -> Iterator[tuple[Path, Pixels]]:
        self.bad.clear()
        pool = ThreadPoolExecutor(self._threads, "decode")
        waiting: deque[tuple[Path, Future[Pixels]]] = deque()
        try:
            for path in self._paths:
                waiting.append((path, pool.submit(self._prepared, path)))
                if len(waiting) > self._ahead:
                    yield from self._readable(*waiting.popleft())
            while waiting:
                yield from self._readable(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepared(self, path: Path) -> Pixels:
        return prepare(load_image(path), self._preprocessing)

    def _readable(self, path: Path, result: Future[Pixels]) -> Iterator[tuple[Path, Pixels]]:
        try:
            pixels = result.result()
        except InputError as exc:
            record_bad(self.bad, BadImage(path, exc), self._max_bad)
        else:
            yield path, pixels
