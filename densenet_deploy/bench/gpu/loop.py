"""Inferences one behind the other on a GPU, two under way: the next is launched before the one before is waited for.

Copies in, computing and copies out have a stream each and a pair of events each. As in `trtexec`, all inferences share
one set of tensors: while one computes, the next one's input is copied over its own, the same bytes again.

    upload    ├ copy 1 ┤├ copy 2 ┤
    compute             ├──── 1 ────┤├──── 2 ────┤
    download                         ├ copy 1 ┤   ├ copy 2 ┤
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from densenet_deploy.bench.gpu.timing import GpuTiming, Trace
from densenet_deploy.errors import BackendError, DensenetDeployError
from densenet_deploy.options import require_range
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, Graph, PinnedMemory, Stream, TimedEvent
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.tensorrt.engine import Engine, refusal
from densenet_deploy.runtime.tensorrt.portions import portions

_REBUILD: Final = "build it again"


@dataclass(frozen=True)
class LoopOptions:
    """How to time.

    Attributes:
        transfers: copy the input to the GPU and the outputs back in every inference.
        graph: launch the work as one CUDA graph, where that can be recorded.
        warm_up_ms, duration_ms: of the GPU's time; inferences that start before `warm_up_ms` do not count.
        iterations: how many inferences there are at least after that.
        depth: how many are under way at once; 1 waits for each, as a camera's loop does.
    """

    transfers: bool = False
    graph: bool = True
    warm_up_ms: float = 500.0
    duration_ms: float = 10_000.0
    iterations: int = 10
    depth: int = 2

    def __post_init__(self) -> None:
        require_range("depth", self.depth, 1, 64)
        require_range("iterations", self.iterations, 1, 10_000_000)


class GpuLoop:
    """A context of `engine`, set to one batch of noise, and the streams it is run on."""

    def __init__(self, engine: Engine, batch: int) -> None:
        """Set everything up and run once.

        Raises:
            BackendError: if the engine takes no such batch, or TensorRT refuses.
            ResourceError: if the GPU's memory does not suffice.
        """
        self._engine, self._batch, self._cuda = engine, batch, engine.cuda
        self._profile = _profile_of(engine, batch)
        self._upload, self._compute, self._download = (Stream(self._cuda) for _ in range(3))
        start = time.perf_counter()
        self._context = self._made_context()
        self.context_seconds = time.perf_counter() - start
        self._tensors = [_Tensor(self._cuda, spec, batch) for spec in engine.specs]
        self._inputs = self._tensors[: len(engine.inputs)]
        self._outputs = self._tensors[len(engine.inputs) :]
        self._set_up()
        for tensor in self._inputs:
            tensor.fill_with_noise()
            tensor.upload(self._compute)
        start = time.perf_counter()
        self._execute()
        self._compute.synchronize()
        self.first_seconds = time.perf_counter() - start

    def run(self, options: LoopOptions) -> GpuTiming:
        """Time inferences.

        Raises:
            BackendError: if the GPU fails, or all of `duration_ms` went by with the warm-up.
        """
        graph, no_graph = self._recorded() if options.graph else (None, "switched off")
        traces = []
        with self._settled():
            for trace in self._traces(options, graph):
                if trace.start >= options.warm_up_ms:
                    traces.append(trace)
                if _is_enough(traces, options):
                    break
        return GpuTiming(tuple(traces), self._batch, options.transfers, no_graph)

    def _traces(self, options: LoopOptions, graph: Graph | None) -> Iterator[Trace]:
        """Keep `depth` inferences under way and yield what each took, for as long as anybody asks."""
        origin = TimedEvent(self._cuda)
        origin.record(self._compute)
        idle = [_Flight(self._cuda) for _ in range(options.depth)]
        under_way: deque[_Flight] = deque()
        while True:
            while idle:
                flight = idle.pop()
                self._launch(flight, graph, transfers=options.transfers)
                under_way.append(flight)
            landed = under_way.popleft()
            yield landed.trace(origin, transfers=options.transfers)
            idle.append(landed)

    def _launch(self, flight: _Flight, graph: Graph | None, *, transfers: bool) -> None:
        if transfers:
            flight.upload_start.record(self._upload)
            for tensor in self._inputs:
                tensor.upload(self._upload)
            flight.upload_end.record(self._upload)
            self._compute.wait_for_event(flight.upload_end)
        flight.compute_start.record(self._compute)
        start = time.perf_counter()
        if graph is None:
            self._execute()
        else:
            graph.launch(self._compute)
        flight.enqueue_ms = (time.perf_counter() - start) * 1e3
        flight.compute_end.record(self._compute)
        if transfers:
            self._download.wait_for_event(flight.compute_end)
            flight.download_start.record(self._download)
            for tensor in self._outputs:
                tensor.download(self._download)
            flight.download_end.record(self._download)

    def _recorded(self) -> tuple[Graph | None, str]:
        """The work as a graph, or why it cannot be one."""
        if self._engine.trt.features.capturable_query and not self._context.is_stream_capturable(int(self._compute)):
            return None, "TensorRT says that this engine cannot be captured"
        try:
            return self._compute.capture(self._execute), ""
        except DensenetDeployError as exc:
            return None, exc.why

    def _made_context(self) -> Any:
        context = self._engine.native.create_execution_context()
        if context is None:
            raise self._refusal("TensorRT makes no execution context")
        return context

    def _set_up(self) -> None:
        """Choose the profile, and tell the context every shape and address."""
        context = self._context
        if context.active_optimization_profile != self._profile:
            self._check(context.set_optimization_profile_async(self._profile, int(self._compute)), "the profile")
            self._compute.synchronize()
        for tensor in self._inputs:
            if tensor.spec.shape[0] is None:
                self._check(context.set_input_shape(tensor.spec.name, tensor.shape), tensor.spec.name)
        for tensor in self._tensors:
            self._check(context.set_tensor_address(tensor.spec.name, tensor.address), tensor.spec.name)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._compute)):
            raise self._refusal("TensorRT cannot run it")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise self._refusal(f"TensorRT refuses {what}")

    def _refusal(self, what: str) -> DensenetDeployError:
        return refusal(self._engine.trt, self._engine.subject, what, _REBUILD)

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """Leave no work behind on memory that is about to go."""
        try:
            yield
        finally:
            for stream in (self._upload, self._compute, self._download):
                with contextlib.suppress(DensenetDeployError):
                    stream.synchronize()


class _Flight:
    """The events of an inference under way; used again for another when it has landed."""

    def __init__(self, cuda: Cuda) -> None:
        self.upload_start, self.upload_end = TimedEvent(cuda), TimedEvent(cuda)
        self.compute_start, self.compute_end = TimedEvent(cuda), TimedEvent(cuda)
        self.download_start, self.download_end = TimedEvent(cuda), TimedEvent(cuda)
        self.enqueue_ms = 0.0

    def trace(self, origin: TimedEvent, *, transfers: bool) -> Trace:
        """Wait until it has landed, and say what it took."""
        first, last = self.compute_start, self.compute_end
        if transfers:
            first, last = self.upload_start, self.download_end
        last.wait()
        return Trace(
            start=first.ms_since(origin),
            end=last.ms_since(origin),
            compute=self.compute_end.ms_since(self.compute_start),
            enqueue=self.enqueue_ms,
            upload=self.upload_end.ms_since(self.upload_start) if transfers else 0.0,
            download=self.download_end.ms_since(self.download_start) if transfers else 0.0,
        )


class _Tensor:
    """A batch of one input or output: memory on the GPU, and as much pinned on the host."""

    def __init__(self, cuda: Cuda, spec: TensorSpec, batch: int) -> None:
        self.spec = spec
        self.shape = (batch, *(size or 1 for size in spec.shape[1:]))
        size = math.prod(self.shape) * spec.dtype.itemsize
        self._host, self._device = PinnedMemory(cuda, size), DeviceMemory(cuda, size)
        self.address = self._device.address

    def fill_with_noise(self) -> None:
        noise = np.random.default_rng(0).standard_normal(self.shape, np.float32).astype(self.spec.dtype)
        self._host.bytes[:] = noise.reshape(-1).view(np.uint8)

    def upload(self, stream: Stream) -> None:
        stream.copy_in(self._device, self._host, self._host.size)

    def download(self, stream: Stream) -> None:
        stream.copy_out(self._host, self._device, self._host.size)


def _is_enough(traces: list[Trace], options: LoopOptions) -> bool:
    return len(traces) >= options.iterations and traces[-1].end >= options.warm_up_ms + options.duration_ms


def _profile_of(engine: Engine, batch: int) -> int:
    """The profile that runs all of the batch at once."""
    plan = portions(batch, engine.profiles)
    if len(plan) != 1 or plan[0].batch != batch:
        takes = ", ".join(f"{profile.min} to {profile.max}" for profile in engine.profiles)
        raise BackendError(f"batch {batch}", f"{engine.subject} takes {takes}", "give another --batch, or build for it")
    return plan[0].profile
