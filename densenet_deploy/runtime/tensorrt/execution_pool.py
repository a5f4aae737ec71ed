"""Run batches on the execution contexts of an engine: from host memory in portions, or in place on the GPU.

An execution context runs one batch at a time, with its own stream and its own memory. A batch is copied into pinned
memory, from there to the GPU, run, and copied back, all of it queued on the stream before the CPU waits. Where CPU and
GPU share one memory, both use the same bytes and nothing is copied.

The second batch of the same size in a row is recorded as a CUDA graph, which costs a single launch from then on. A
graph belongs to the state of its context and is dropped before anything of that changes.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import BackendError, DensenetDeployError, FeedError
from densenet_deploy.runtime.batching import Portion, portions
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, Graph, PinnedMemory, Stream
from densenet_deploy.runtime.engine_files import Plan
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.pool import Pool
from densenet_deploy.runtime.tensorrt.device_arrays import GpuArray, view_of
from densenet_deploy.runtime.tensorrt.engine import Engine, KernelCache, refusal

log = logging.getLogger(__name__)

_WARM_RUNS: Final = 2  # the second records a graph


class ExecutionPool:
    """The execution contexts of one engine: at most `options.streams`, each used by one thread at a time.

    A thread gets a slot that is set to its batch, if there is one.
    """

    def __init__(self, engine: Engine, plan: Plan, options: NvidiaOptions) -> None:
        self.engine = engine
        self._factory = _SlotFactory(engine, plan, options)
        self._slots = Pool(self._factory.make, options.streams)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked host arrays of any number of samples, and return newly allocated outputs.

        Raises:
            FeedError: if the inputs differ in the number of samples.
            ResourceError: if the GPU runs out of memory.
            BackendError: if TensorRT fails.
        """
        engine = self.engine
        total = _common_batch(engine, {name: array.shape for name, array in feeds.items()})
        results = {spec.name: np.empty(_shape(spec, total), spec.dtype) for spec in engine.outputs}
        for portion in portions(total, engine.profiles):
            with self._lend(portion.profile, portion.batch) as slot:
                slot.run(portion, feeds, results)
        return results

    def run_in_place(self, feeds: Mapping[str, object], outputs: Mapping[str, object]) -> dict[str, Any]:
        """Run arrays on the GPU and return the arrays in `outputs`, and new ones for the other outputs.

        Raises:
            FeedError: if an array has the wrong name, type, shape, layout or device.
        """
        engine = self.engine
        engine.cuda.use(engine.gpu.index)
        _check_names(engine, feeds, outputs)
        views = [view_of(feeds[spec.name], spec, engine.cuda, engine.gpu.index) for spec in engine.inputs]
        batch = _common_batch(engine, {spec.name: view.shape for spec, view in zip(engine.inputs, views, strict=True)})
        profile = _profile_of(engine, batch)
        results: dict[str, Any] = {}
        for spec in engine.outputs:
            shape, given = _shape(spec, batch), outputs.get(spec.name)
            sized = TensorSpec(spec.name, shape, spec.dtype)
            array = GpuArray(engine.cuda, engine.gpu.index, shape, spec.dtype) if given is None else given
            views.append(view_of(array, sized, engine.cuda, engine.gpu.index, writable=True))
            results[spec.name] = array
        state = ContextState(profile, batch, tuple(view.address for view in views))
        with self._lend(profile, batch) as slot:
            slot.run_in_place(state, tuple({view.stream for view in views if view.stream is not None}))
        return results

    def warm_up(self) -> str:
        """Run zeros until kernels are compiled and graphs recorded, save the kernels, and return a note on graphs."""
        best = self.engine.profiles[0].opt
        zeros = {spec.name: np.zeros(_shape(spec, best), spec.dtype) for spec in self.engine.inputs}
        for _ in range(_WARM_RUNS):
            self.run(zeros)
        self.save_kernels()
        with self._lend(0, best) as slot:
            return slot.graph_note

    def save_kernels(self) -> None:
        """Write the compiled kernels to their cache, if there is one and it has changed."""
        if self._factory.cache is not None:
            self._factory.cache.save()

    @contextlib.contextmanager
    def _lend(self, profile: int, batch: int) -> Iterator[ExecutionSlot]:
        self.engine.cuda.use(self.engine.gpu.index)  # the device belongs to the thread, and others may have changed it
        with self._slots.lend(lambda slot: slot.is_set_to(profile, batch)) as slot:
            try:
                yield slot
            except BaseException:
                slot.abandon()
                raise


class _SlotFactory:
    """Creates the slots of an engine. It does not refer to the pool, which is thus freed with its last reference."""

    def __init__(self, engine: Engine, plan: Plan, options: NvidiaOptions) -> None:
        features = engine.trt.features
        self._engine = engine
        self._lock = threading.Lock()  # contexts are created one after another: each may compile
        self._config: Any = None
        self.cache: KernelCache | None = None
        self._graphs = Graphs.OFF if options.graphs is False else Graphs.RECORDED
        if features.runtime_config and (features.runtime_cache or features.graph_strategy):
            self._config = engine.native.create_runtime_config()
        if features.runtime_cache and self._config is not None:
            self.cache = KernelCache(self._config, engine, plan, options.cache_folder)
        if features.graph_strategy and self._config is not None and self._graphs is not Graphs.OFF:
            self._config.cuda_graph_strategy = engine.trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._graphs = Graphs.NATIVE  # both at once are not allowed

    def make(self) -> ExecutionSlot:
        engine = self._engine
        with self._lock:
            if self._config is None:
                context = engine.native.create_execution_context()
            else:
                context = engine.native.create_execution_context(runtime_config=self._config)
        if context is None:
            raise refusal(engine.trt, engine.subject, "TensorRT creates no execution context", "build it again")
        return ExecutionSlot(engine, context, graphs=self._graphs)


class Graphs(enum.Enum):
    """What records CUDA graphs: nothing, the slot, or TensorRT-RTX itself."""

    OFF = enum.auto()
    RECORDED = enum.auto()
    NATIVE = enum.auto()


@dataclass(frozen=True)
class ContextState:
    """The state of a context: its profile, the batch, and an address for every tensor of the engine, in order."""

    profile: int
    batch: int
    addresses: tuple[int, ...]


class ExecutionSlot:
    """An execution context with its own stream and memory; it runs one batch at a time, for one thread.

    Attributes:
        state: of the context; None before the first batch.
    """

    state: ContextState | None
    _graph: Graph | None  # recorded in this state
    _runs: int  # in this state

    def __init__(self, engine: Engine, context: Any, *, graphs: Graphs) -> None:
        self._engine = engine
        self._cuda = engine.cuda
        self._context = context
        self._stream = Stream(engine.cuda)
        self._shares_memory = engine.cuda.shares_memory(engine.gpu.index)
        self._buffers: tuple[_Buffer, ...] = ()
        self._capacity = 0
        self._profile = int(context.active_optimization_profile)  # -1: none yet
        self._forget()
        self._graphs = graphs
        self._graph_refusal = self._why_no_graph()

    def run(self, portion: Portion, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        """Run one portion of `feeds`, arrays of all samples, and write its part of `results`."""
        self._reserve(portion.batch)
        self._set_state(ContextState(portion.profile, portion.batch, tuple(b.address for b in self._buffers)))
        samples = slice(portion.start, portion.start + portion.count)
        for buffer in self._inputs:
            rows = buffer.rows(portion.batch)
            rows[: portion.count] = feeds[buffer.spec.name][samples]
            rows[portion.count :] = rows[portion.count - 1]
        self._launch(self._copy_run_copy)
        for buffer in self._outputs:
            results[buffer.spec.name][samples] = buffer.rows(portion.count)

    def run_in_place(self, state: ContextState, after: tuple[int, ...]) -> None:
        """Run on the caller's memory on the GPU, after the work that the streams `after` have queued until now."""
        self._set_state(state)
        for stream in after:
            self._stream.wait_for(stream)
        self._launch(self._execute)

    def is_set_to(self, profile: int, batch: int) -> bool:
        """Whether a batch of this size leaves the state of the context unchanged, so that a graph may be used."""
        return self.state is not None and (self.state.profile, self.state.batch) == (profile, batch)

    def abandon(self) -> None:
        """After a failure, wait until the GPU no longer uses this slot's memory."""
        with contextlib.suppress(DensenetDeployError):
            self._stream.synchronize()

    @property
    def graph_note(self) -> str:
        """Whether CUDA graphs are used in the present state, and if not, why."""
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
        """Make sure that the buffers hold `batch` samples. They only grow."""
        if batch <= self._capacity:
            return
        self._forget()
        self._buffers = ()  # the old ones are freed first; if the new ones do not fit, the pool drops this slot
        shared = self._shares_memory
        self._buffers = tuple(_Buffer(self._cuda, spec, batch, shared=shared) for spec in self._engine.specs)
        self._capacity = batch

    def _set_state(self, state: ContextState) -> None:
        if state == self.state:
            return
        self._forget()
        if state.profile != self._profile:
            self._switch_profile(state.profile)
        for spec in self._engine.inputs:
            if spec.shape[0] is None:
                self._check(self._context.set_input_shape(spec.name, (state.batch, *spec.shape[1:])), spec.name)
        if unknown := self._context.infer_shapes():
            raise BackendError(
                self._engine.subject, f"TensorRT cannot infer the shape of {unknown[0]}", "build it again"
            )
        for spec, address in zip(self._engine.specs, state.addresses, strict=True):
            self._check(self._context.set_tensor_address(spec.name, address), spec.name)
        self.state = state

    def _forget(self) -> None:
        """Drop the graph before the state of its context changes."""
        self.state, self._graph, self._runs = None, None, 0

    def _switch_profile(self, profile: int) -> None:
        try:
            done = self._context.set_optimization_profile_async(profile, int(self._stream))
        except RuntimeError as exc:
            raise BackendError(self._engine.subject, f"profile {profile}: {exc}", "build it again") from exc
        self._check(done, f"profile {profile}")
        self._stream.synchronize()
        self._profile = profile

    def _launch(self, enqueue: Callable[[], None]) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            enqueue()
        self._stream.synchronize()
        self._runs += 1
        if self._runs == 2 and self._graph_refusal is None:
            self._record(enqueue)

    def _record(self, enqueue: Callable[[], None]) -> None:
        try:
            self._graph = self._stream.capture(enqueue)
        except DensenetDeployError as exc:
            self._graph_refusal = exc.why
            log.warning("no CUDA graph for %s: %s", self._engine.subject, exc.why)

    def _copy_run_copy(self) -> None:
        assert self.state is not None
        for buffer in self._inputs:
            buffer.upload(self._stream, self.state.batch)
        self._execute()
        for buffer in self._outputs:
            buffer.download(self._stream, self.state.batch)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise refusal(self._engine.trt, self._engine.subject, "TensorRT cannot run it", "build it again")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise refusal(self._engine.trt, self._engine.subject, f"TensorRT refuses {what}", "build it again")

    def _why_no_graph(self) -> str | None:
        if self._graphs is not Graphs.RECORDED:
            return "switched off"
        can_ask = self._engine.trt.features.capturable_query
        if can_ask and not self._context.is_stream_capturable(int(self._stream)):
            return "TensorRT says that this engine cannot be captured"
        return None


class _Buffer:
    """Memory for `batch` samples of one tensor: at `address` for the GPU, in `rows` for the CPU.

    If CPU and GPU share one memory, both are the same bytes; otherwise the CPU's are pinned and copied.
    """

    def __init__(self, cuda: Cuda, spec: TensorSpec, batch: int, *, shared: bool) -> None:
        shape = _shape(spec, batch)
        self.spec = spec
        self._sample_bytes = math.prod(shape[1:]) * spec.dtype.itemsize
        self._host = PinnedMemory(cuda, batch * self._sample_bytes, mapped=shared)
        self._device = None if shared else DeviceMemory(cuda, self._host.size)
        self._rows = self._host.bytes.view(spec.dtype).reshape(shape)

    @property
    def address(self) -> int:
        address = self._host.device_address if self._device is None else self._device.address
        assert address is not None
        return address

    def rows(self, count: int) -> Array:
        """The first `count` samples, on the CPU."""
        return self._rows[:count]

    def upload(self, stream: Stream, batch: int) -> None:
        """Queue the copy of `batch` samples to the GPU."""
        if self._device is not None:
            stream.copy_in(self._device, self._host, batch * self._sample_bytes)

    def download(self, stream: Stream, batch: int) -> None:
        """Queue the copy of `batch` samples back."""
        if self._device is not None:
            stream.copy_out(self._host, self._device, batch * self._sample_bytes)


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return (batch, *(size for size in spec.shape[1:] if size is not None))  # none varies, which `engine` checked


def _common_batch(engine: Engine, shapes: Mapping[str, tuple[int, ...]]) -> int:
    batches = {shape[0] for shape in shapes.values()}
    if len(batches) != 1:
        raise FeedError(
            ", ".join(map(str, engine.inputs)), f"were fed batches {sorted(batches)}", "feed one batch size"
        )
    return batches.pop()


def _profile_of(engine: Engine, batch: int) -> int:
    """The profile that runs the whole batch as it is: in place, a batch can be neither split nor padded."""
    first = portions(batch, engine.profiles)[0]
    if first.batch != batch:
        takes = ", ".join(f"{p.min} to {p.max}" for p in engine.profiles)
        raise FeedError(f"batch {batch}", f"the engine takes {takes}", "split it, or use run() with host arrays")
    return first.profile


def _check_names(engine: Engine, feeds: Mapping[str, object], outputs: Mapping[str, object]) -> None:
    expected = [spec.name for spec in engine.inputs]
    if feeds.keys() != set(expected):
        raise FeedError(", ".join(feeds) or "nothing", "was fed", f"feed exactly: {', '.join(expected)}")
    known = [spec.name for spec in engine.outputs]
    if unknown := outputs.keys() - set(known):
        raise FeedError(", ".join(sorted(unknown)), "is not an output", f"outputs are: {', '.join(known)}")
