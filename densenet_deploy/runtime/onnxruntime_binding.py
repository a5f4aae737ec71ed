"""Feeds and results of an ONNX Runtime session in memory of its device, kept between calls of the same shapes.

Without it every call allocates on the device anew. CUDA graphs need it: they are recorded with addresses.
"""

from __future__ import annotations

from typing import Any

from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.pool import Pool

Shapes = tuple[tuple[int, ...], ...]


class Bindings:
    """Bindings of one session to `device` (`cuda` and its index); at most `limit` calls run at once."""

    def __init__(
        self,
        session: Any,
        device: tuple[str, int],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        limit: int,
    ) -> None:
        self._inputs = inputs
        self._pool = Pool(lambda: _Binding(session, device, inputs, outputs), limit)

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run checked feeds and return arrays of their own."""
        shapes = tuple(feeds[spec.name].shape for spec in self._inputs)
        with self._pool.lend(lambda binding: binding.shapes == shapes) as binding:
            return binding.run(feeds, shapes)


class _Binding:
    """Device memory for feeds of certain shapes and for what comes out of them."""

    def __init__(
        self,
        session: Any,
        device: tuple[str, int],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._session, self._device = session, device
        self._inputs, self._outputs = inputs, outputs
        self._values: dict[str, Any] = {}
        self.shapes: Shapes = ()

    def run(self, feeds: dict[str, Array], shapes: Shapes) -> dict[str, Array]:
        if shapes != self.shapes:
            self._bind(shapes)
        for name, value in self._values.items():
            value.update_inplace(feeds[name])
        self._session.run_with_iobinding(self._io)
        results = self._io.get_outputs()
        return {spec.name: value.numpy().copy() for spec, value in zip(self._outputs, results, strict=True)}

    def _bind(self, shapes: Shapes) -> None:
        self._io = self._session.io_binding()
        self._values = {spec.name: self._room(shape, spec) for spec, shape in zip(self._inputs, shapes, strict=True)}
        for name, value in self._values.items():
            self._io.bind_ortvalue_input(name, value)
        for spec in self._outputs:
            self._bind_output(spec, batch=shapes[0][0])
        self.shapes = shapes

    def _bind_output(self, spec: TensorSpec, batch: int) -> None:
        """Fix its place if its size is known, and leave it to ONNX Runtime otherwise."""
        rest = tuple(size for size in spec.shape[1:] if size is not None)
        if len(rest) < len(spec.shape) - 1:
            self._io.bind_output(spec.name, *self._device)
            return
        self._io.bind_ortvalue_output(spec.name, self._room((spec.shape[0] or batch, *rest), spec))

    def _room(self, shape: tuple[int, ...], spec: TensorSpec) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, spec.dtype, *self._device)
