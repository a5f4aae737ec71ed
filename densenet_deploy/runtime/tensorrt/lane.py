"""A lane runs one batch at a time: an execution context with its own stream and its own memory.

A batch is copied into pinned memory, from there to the GPU, run, and copied back, all of it queued on the stream before
anybody waits. Where CPU and GPU have one memory, both look at the same bytes and nothing is copied.

The second batch of the same size in a row is recorded as a CUDA graph, which costs one launch from then on. A graph
belongs to the state of its context: it is dropped before anything of that changes.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from densenet_deploy.errors import BackendError, DensenetDeployError
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, Graph, PinnedMemory, Stream
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.tensorrt.engine import Engine, refusal
from densenet_deploy.runtime.tensorrt.portions import Portion

log = logging.getLogger(__name__)


class Graphs(enum.Enum):
    """Who records CUDA graphs: nobody, the lane, or TensorRT-RTX itself."""

    OFF = enum.auto()
    RECORDED = enum.auto()
    NATIVE = enum.auto()


@dataclass(frozen=True)
class Setup:
    """What a context is set to: its profile, the batch, and an address for every tensor of the engine, in order."""

    profile: int
    batch: int
    addresses: tuple[int, ...]


class Lane:
    """Runs batches of an engine one after another; not for two threads at once.

    Attributes:
        setup: what the context is set to, None before the first batch.
    """

    def __init__(self, engine: Engine, context: Any, *, graphs: Graphs) -> None:
        self._engine = engine
        self._cuda = engine.cuda
        self._context = context
        self._stream = Stream(engine.cuda)
        self._shares_memory = engine.cuda.shares_memory(engine.gpu.index)
        self._buffers: tuple[_Buffer, ...] = ()
        self._capacity = 0
        self._graph: Graph | None = None
        self._runs = 0  # with this setup
        self._profile = int(context.active_optimization_profile)  # -1: none yet
        self.setup: Setup | None = None
        self._graphs = graphs
        self._graph_refusal = self._why_no_graph()

    def run(self, portion: Portion, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        """Run one portion of `feeds`, arrays of the whole batch, and write its part of `results`."""
        self._reserve(portion.batch)
        self._set_up(Setup(portion.profile, portion.batch, tuple(b.address for b in self._buffers)))
        samples = slice(portion.start, portion.start + portion.count)
        for buffer in self._inputs:
            rows = buffer.rows(portion.batch)
            rows[: portion.count] = feeds[buffer.spec.name][samples]
            rows[portion.count :] = rows[portion.count - 1]
        self._do(self._copy_run_copy)
        for buffer in self._outputs:
            results[buffer.spec.name][samples] = buffer.rows(portion.count)

    def run_in_place(self, setup: Setup, after: tuple[int, ...]) -> None:
        """Run on memory that the caller keeps on the GPU, once the streams `after` have got as far as now."""
        self._set_up(setup)
        for stream in after:
            self._stream.wait_for(stream)
        self._do(self._execute)

    def is_set_to(self, profile: int, batch: int) -> bool:
        """Whether a batch of this size needs no change of the context, and may have a graph."""
        return self.setup is not None and (self.setup.profile, self.setup.batch) == (profile, batch)

    def abandon(self) -> None:
        """Wait until the GPU is done with this lane's memory, after a failure half-way."""
        with contextlib.suppress(DensenetDeployError):
            self._stream.synchronize()

    @property
    def graph_note(self) -> str:
        """What became of CUDA graphs with the present setup."""
        if self._graphs is Graphs.NATIVE:
            return "CUDA graphs left to TensorRT-RTX"
        return "CUDA graphs" if self._graph is not None else f"no CUDA graphs: {self._graph_refusal or 'not yet'}"

    @property
    def _inputs(self) -> tuple[_Buffer, ...]:
        return self._buffers[: len(self._engine.inputs)]

    @property
    def _outputs(self) -> tuple[_Buffer, ...]:
        return self._buffers[len(self._engine.inputs) :]

    def _reserve(self, batch: int) -> None:
        """Have buffers for `batch` samples. They only grow."""
        if batch <= self._capacity:
            return
        self._forget()
        self._buffers, self._capacity = (), 0  # the old ones go first
        kind = _SharedBuffer if self._shares_memory else _CopiedBuffer
        self._buffers = tuple(kind(self._cuda, spec, batch) for spec in self._engine.specs)
        self._capacity = batch

    def _set_up(self, setup: Setup) -> None:
        if setup == self.setup:
            return
        self._forget()
        if setup.profile != self._profile:
            self._switch_profile(setup.profile)
        for spec in self._engine.inputs:
            if spec.shape[0] is None:
                self._check(self._context.set_input_shape(spec.name, (setup.batch, *spec.shape[1:])), spec.name)
        if unknown := self._context.infer_shapes():
            raise BackendError(self._engine.subject, f"TensorRT lacks the shape of {unknown[0]}", "build it again")
        for spec, address in zip(self._engine.specs, setup.addresses, strict=True):
            self._check(self._context.set_tensor_address(spec.name, address), spec.name)
        self.setup = setup

    def _forget(self) -> None:
        """Drop the graph before the context that it was recorded from changes."""
        self.setup, self._graph, self._runs = None, None, 0

    def _switch_profile(self, profile: int) -> None:
        try:
            done = self._context.set_optimization_profile_async(profile, int(self._stream))
        except RuntimeError as exc:
            raise BackendError(self._engine.subject, f"profile {profile}: {exc}", "build it again") from exc
        self._check(done, f"profile {profile}")
        self._stream.synchronize()
        self._profile = profile

    def _do(self, enqueue: Callable[[], None]) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            enqueue()
        self._stream.synchronize()
        self._runs += 1
        if self._runs == 2 and self._graphs is Graphs.RECORDED and self._graph_refusal is None:
            self._record(enqueue)

    def _record(self, enqueue: Callable[[], None]) -> None:
        try:
            self._graph = self._stream.capture(enqueue)
        except DensenetDeployError as exc:
            self._graph_refusal = exc.why
            log.warning("no CUDA graph for %s: %s", self._engine.subject, exc.why)

    def _copy_run_copy(self) -> None:
        assert self.setup is not None
        for buffer in self._inputs:
            buffer.upload(self._stream, self.setup.batch)
        self._execute()
        for buffer in self._outputs:
            buffer.download(self._stream, self.setup.batch)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise refusal(self._engine.trt, self._engine.subject, "TensorRT cannot run it", "build it again")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise refusal(self._engine.trt, self._engine.subject, f"TensorRT refuses {what}", "build it again")

    def _why_no_graph(self) -> str | None:
        if self._graphs is Graphs.OFF:
            return "switched off"
        if self._graphs is Graphs.NATIVE or not self._engine.trt.features.capturable_query:
            return None
        if self._context.is_stream_capturable(int(self._stream)):
            return None
        return "TensorRT says that this engine cannot be captured"


class _Buffer:
    """Room for `batch` samples of one tensor: `address` for the GPU, `rows` for the CPU."""

    address: int

    def __init__(self, cuda: Cuda, spec: TensorSpec, batch: int, *, mapped: bool) -> None:
        self.spec = spec
        self._sample_bytes = math.prod(size or 1 for size in spec.shape[1:]) * spec.dtype.itemsize
        self._host = PinnedMemory(cuda, batch * self._sample_bytes, mapped=mapped)
        self._rows = self._host.bytes.view(spec.dtype).reshape(batch, *(size or 1 for size in spec.shape[1:]))

    def rows(self, count: int) -> Array:
        """The first `count` samples as the CPU sees them."""
        return self._rows[:count]

    def upload(self, stream: Stream, batch: int) -> None:
        """Queue what brings `batch` samples to the GPU."""

    def download(self, stream: Stream, batch: int) -> None:
        """Queue what brings `batch` samples back."""


class _SharedBuffer(_Buffer):
    """Memory that CPU and GPU both use."""

    def __init__(self, cuda: Cuda, spec: TensorSpec, batch: int) -> None:
        super().__init__(cuda, spec, batch, mapped=True)
        assert self._host.device_address is not None
        self.address = self._host.device_address


class _CopiedBuffer(_Buffer):
    """Pinned memory, and as much on the GPU."""

    def __init__(self, cuda: Cuda, spec: TensorSpec, batch: int) -> None:
        super().__init__(cuda, spec, batch, mapped=False)
        self._device = DeviceMemory(cuda, self._host.size)
        self.address = self._device.address

    def upload(self, stream: Stream, batch: int) -> None:
        stream.copy_in(self._device, self._host, batch * self._sample_bytes)

    def download(self, stream: Stream, batch: int) -> None:
        stream.copy_out(self._host, self._device, batch * self._sample_bytes)
