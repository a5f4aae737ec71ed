"""A real runner whose arithmetic is a Python function of the batch."""

from collections.abc import Callable, Mapping

import numpy as np

from densenet_deploy.manifest import Manifest
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.runner import Device, Placement, Runner, RunnerOptions

Tensors = Mapping[str, np.ndarray]
Shape = tuple[int | None, ...]


class FunctionRunner(Runner):
    """Runs `function(batch) -> tensors`; `sizes` tells how many images each batch had.

    The shapes of its outputs, where they are not given, are those of what the function makes of one image.
    """

    name = "function"

    def __init__(
        self,
        function: Callable[[np.ndarray], Tensors],
        size: int = 8,
        *,
        input_shape: Shape | None = None,
        outputs: Mapping[str, Shape] | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        if outputs is None:
            example = function(np.zeros((1, 3, size, size), np.float32))
            outputs = {name: (None, *array.shape[1:]) for name, array in example.items()}
        specs = [
            tuple(TensorSpec(name, shape, np.dtype(np.float32)) for name, shape in shapes.items())
            for shapes in ({"input": input_shape or (None, 3, size, size)}, outputs)
        ]
        super().__init__(function, *specs, Placement("function", "0", "cpu", "python", "fp32", 1), manifest)
        self.sizes: list[int] = []

    @property
    def runs(self) -> int:
        """How often it ran."""
        return len(self.sizes)

    @classmethod
    def open(cls, source: object, device: Device | None, options: RunnerOptions) -> Runner:
        raise NotImplementedError

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        return "0", ("cpu",)

    def _run(self, handle, feeds):
        self.sizes.append(len(feeds["input"]))
        return dict(handle(feeds["input"]))
