"""How many requests does `serve` answer, and how fast? `uv run python benchmarks/serving.py`.

Servers with 1 worker and with one per CPU, each with `--max-batch` 1 and 16, and others with other options take turns
with the runner alone on such batches. `wrk` (`apt install wrk`), a load generator in C, sends single images over HTTP,
as bytes and as fast as they are answered, on connections that stay open. It takes about 0.05 ms of CPU time per request
on the same machine. One client alone shows what a request costs beside its inference. `cpu_ms` is the CPU time per
image of the server with its workers, or of the runner.

The requests that are under way when the time is up are not counted: that is a batch, or up to 4 % of what DenseNet-121
answers in 10 seconds. A round in which any request failed ends the benchmark. `wrk` counts a request that took longer
than usual several times, as often as a client that does not wait for answers would have met it: `p99_ms` of servers
includes that, those of the runner do not.

With `--soak 3600`, two clients then send requests with pauses for that long, while the server's memory is read.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from evaluate_overlap import DIGITS, exported
from machine import RESULTS, Machine, print_table, take_turns, write_results

from densenet_deploy import open_runner
from densenet_deploy.errors import counted
from densenet_deploy.runtime.cpus import usable_cpus

_HOST: Final = "127.0.0.1"
_BATCHES: Final = (1, 16)
_SCRIPT: Final = """
local request_bytes, pause_ms

function init(arguments)
  local file = io.open(arguments[1], "rb")
  local headers = {["Inference-Header-Content-Length"] = arguments[3], ["Content-Type"] = "application/octet-stream"}
  request_bytes = wrk.format("POST", arguments[2], headers, file:read("*a"))
  pause_ms = tonumber(arguments[4])
  file:close()
  if pause_ms > 0 then delay = function() return pause_ms end end
end

function request() return request_bytes end

function done(summary, latency, requests)
  local errors, failed = summary.errors, 0
  for _, kind in ipairs({"connect", "read", "write", "status", "timeout"}) do failed = failed + errors[kind] end
  io.write(string.format('\\nFOUND {"requests": %d, "failed": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f}\\n',
    summary.requests, failed, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Rate:
    """Requests/s, the latency that half and 99 % of the requests had, and CPU time per image, in ms."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Soak:
    """A server's resident memory in MiB after a tenth of the time and at regular moments until the end."""

    seconds: float
    requests: int
    memory_mib: tuple[float, ...]
    growth_mib: float


@contextlib.contextmanager
def started(model: Path, options: str) -> Iterator[tuple[int, int]]:
    """Run a server; yields its port and the number of its process."""
    command = [sys.executable, "-m", "densenet_deploy", "serve", str(model), "--port", "0", "--backend", "onnxruntime"]
    command += ["--device", "cpu", *options.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = next(line for line in iter(process.stderr.readline, "") if line.startswith("ready: "))
        try:
            yield int(ready.split()[3].rpartition(":")[2]), process.pid
        finally:
            process.terminate()
            process.communicate(timeout=60)


@dataclass(frozen=True)
class Load:
    """One image, sent again and again by `wrk` to the model `name`; its files are in `folder`."""

    folder: Path
    name: str
    header_bytes: int

    @classmethod
    def of(cls, model: Path, shape: Sequence[int], folder: Path) -> Load:
        """Write the request for an image of `shape`, (C, H, W)."""
        data = np.zeros((1, *shape), np.float32).tobytes()
        sizes = {"shape": [1, *shape], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
        asked = {"inputs": [{"name": "input", **sizes}], "parameters": {"binary_data_output": True}}
        head = json.dumps(asked).encode()
        (folder / "script.lua").write_text(_SCRIPT)
        (folder / f"{model.stem}.body").write_bytes(head + data)
        return cls(folder, model.stem, len(head))

    def sent(self, port: int, process: int, clients: int, seconds: float, pause_ms: int = 0) -> Rate:
        """Send it for so many seconds (whole ones), each client with a pause after every answer.

        Raises:
            RuntimeError: if a request failed, or none ended.
        """
        body = self.folder / f"{self.name}.body"
        command = ["wrk", "-t1", f"-c{clients}", f"-d{round(seconds)}s", "--timeout", "60s"]
        command += ["-s", str(self.folder / "script.lua"), f"http://{_HOST}:{port}", "--"]
        command += [str(body), f"/v2/models/{self.name}/infer", str(self.header_bytes), str(pause_ms)]
        used, images = _cpu_seconds(process), _images(port)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        _wait_until_idle(process)
        used, images = _cpu_seconds(process) - used, _images(port) - images
        found = json.loads(done.stdout.partition("\nFOUND ")[2])
        requests = found["requests"]
        if found["failed"] or not requests:
            raise RuntimeError(f"{self.name}: {found['failed']} requests failed, {requests} ended in {seconds:g} s")
        if images < requests:
            raise RuntimeError(f"{self.name}: {requests} requests were answered, the model ran {images} images")
        return Rate(requests, requests / found["seconds"], found["p50_ms"], found["p99_ms"], used / images * 1e3)


def _cpu_seconds(process: int) -> float:
    """Return the CPU time so far of a process and of those that it has started."""
    own = Path(f"/proc/{process}")
    fields = (own / "stat").read_text().rpartition(")")[2].split()
    children = (own / "task" / str(process) / "children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(
        _cpu_seconds(int(one)) for one in children
    )


def _wait_until_idle(process: int) -> None:
    """Wait for the end of what clients have left behind, so that the next candidate has the CPUs."""
    used = -1.0
    while used < (used := _cpu_seconds(process)):
        time.sleep(0.2)


def _images(port: int) -> int:
    """Return how many images a server's model has run."""
    with contextlib.closing(http.client.HTTPConnection(_HOST, port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    name = "densenet_batch_images_sum "
    return int(float(next(line.removeprefix(name) for line in lines if line.startswith(name))))


def _image_shape(port: int, name: str) -> list[int]:
    with contextlib.closing(http.client.HTTPConnection(_HOST, port, timeout=60)) as connection:
        connection.request("GET", f"/v2/models/{name}")
        shape: list[int] = json.load(connection.getresponse())["inputs"][0]["shape"]
    return shape[1:]


def runner_rate(model: Path, batch: int, seconds: float) -> Rate:
    """Run batches of `batch` images as fast as the runner alone can, with all CPUs; the latency is a batch's."""
    with open_runner(model, "onnxruntime", "cpu") as runner:
        (spec,) = runner.inputs
        images = np.zeros((batch, *(int(size or 1) for size in spec.shape[1:])), np.float32)
        times: list[float] = []
        for _ in range(3):
            runner(images)
        used, deadline = time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            runner(images)
            times.append((time.perf_counter() - start) * 1e3)
        used = time.process_time() - used
    rate, cpu_ms = batch * len(times) / (sum(times) / 1e3), used / (batch * len(times)) * 1e3
    return Rate(len(times), rate, float(np.median(times)), float(np.percentile(times, 99)), cpu_ms)


def soaked(model: Path, seconds: float, folder: Path, moments: int = 60) -> Soak:
    """Have two clients ask with pauses, and look at the server's memory."""
    with started(model, "") as (port, process), ThreadPoolExecutor(1) as pool:
        load, begun = Load.of(model, _image_shape(port, model.stem), folder), time.monotonic()
        job = pool.submit(load.sent, port, process, 2, seconds, 50)
        found = []
        for moment in range(moments + 1):
            time.sleep(max(0.0, begun + seconds * (0.1 + 0.9 * moment / moments) - 1 - time.monotonic()))
            found.append(round(_resident_mib(process), 1))
        return Soak(seconds, job.result().requests, tuple(found), round(found[-1] - found[0], 1))


def _resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if shutil.which("wrk") is None:
        sys.exit("wrk: is not installed; apt install wrk, or https://github.com/wg/wrk")
    machine = Machine.this("densenet-deploy", "numpy", "onnxruntime", "onnxruntime-gpu", "uvicorn", "starlette")
    with tempfile.TemporaryDirectory() as place:
        models = options.models or [exported(Path(place), "--weights", str(DIGITS))]
        results = [row for model in models for row in rates_of(model, Path(place), options)]
        soak = [asdict(soaked(model, options.soak, Path(place))) for model in models if options.soak]
    write_results(options.output, machine, {"results": results, "soak": soak})
    heads = ("model", "candidate", "per second", "of the runner", "p50 ms", "p99 ms", "cpu ms")
    print_table(heads, [[row[head.replace(" ", "_")] for head in heads] for row in results])
    for one in soak:
        print(f"{one['requests']} requests in {one['seconds']:g} s: memory grew by {one['growth_mib']:g} MiB")


def _servers(clients: int) -> dict[str, tuple[int, ...]]:
    """Return which servers are measured, by options, with how many clients each."""
    alone, more = f"--max-batch {_BATCHES[0]}", f"--max-batch {_BATCHES[-1]}"
    workers = usable_cpus()
    both, many = tuple(dict.fromkeys((clients, 1))), (clients,)
    found = {alone: both, more: both, f"{more} --max-delay-ms 2": both, f"{more} --threads 1": many}
    return found | ({f"--workers {workers} {batch}": many for batch in (alone, more)} if workers > 1 else {})


def rates_of(model: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the runner and all servers of one model: medians of the rounds."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(1))
        turns: dict[str, Callable[[], Rate]] = {}
        for batch in _BATCHES:
            turns[f"runner, batch {batch}"] = partial(_result, pool, runner_rate, model, batch, options.seconds)
        for server, groups in _servers(options.clients).items():
            port, process = stack.enter_context(started(model, server))
            load = Load.of(model, _image_shape(port, model.stem), folder)
            for clients in groups:
                name = f"serve {server}, {counted(clients, 'client')}"
                turns[name] = partial(load.sent, port, process, clients, options.seconds)
        for turn in turns.values():
            turn()
        rates = take_turns(turns, rounds=options.rounds)
    return [_row(model.stem, name, rates) for name in turns]


def _result(pool: ProcessPoolExecutor, call: Callable[..., Rate], *arguments: object) -> Rate:
    return pool.submit(call, *arguments).result()


def _row(model: str, name: str, rates: Mapping[str, Sequence[Rate]]) -> dict[str, Any]:
    """Sum up the rounds of one candidate; ratios and differences to the runner are the medians of theirs.

    The share of the rate is that of the runner at the same batch; a single client never has a second image in a batch.
    """
    batch = 16 if "batch 16" in name and not name.endswith(" 1 client") else 1
    reference = rates[f"runner, batch {batch}"]
    pairs = [*zip(rates[name], reference, strict=True)]
    parts = ("per_second", "p50_ms", "p99_ms", "cpu_ms")
    medians = {part: round(median(getattr(one, part) for one in rates[name]), 2) for part in parts}
    share = round(median(one.per_second / other.per_second for one, other in pairs), 3)
    added = {"added_ms": round(median(one.p50_ms - other.p50_ms for one, other in pairs), 2)}
    return {"model": model, "candidate": name, **medians, "of_the_runner": share} | (
        added if name.endswith(" 1 client") else {}
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", help="ONNX files with an input `input` (default: digits)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=10, help="of each server in each round (default 10)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=int, default=0, metavar="SECONDS", help="look at memory for that long")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    return parser


if __name__ == "__main__":
    main()
