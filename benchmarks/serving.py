"""How many requests does `serve` answer, and how fast? `uv run python benchmarks/serving.py`.

Servers with 1 worker and with one per CPU, each with `--max-batch` 1 and 16, take turns with the runner alone on such
batches. Clients in processes of their own send single images over HTTP, as bytes and as fast as they are answered, each
on a connection that stays open. They take CPU time too, on the same machine: the share of the runner's rate is that of
a server which has its machine to itself, or less. One client alone shows what a request costs beside its inference.

With `--soak 3600`, two clients then send requests with pauses for that long, while the server's memory is read.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
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


@dataclass(frozen=True)
class Rate:
    """Requests/s, and the latency that half and 99 % of the requests had, in ms."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Soak:
    """A server's resident memory in MiB after a tenth of the time and at regular moments until the end."""

    seconds: float
    requests: int
    memory_mib: tuple[float, ...]
    growth_mib: float


@contextlib.contextmanager
def started(model: Path, workers: int, max_batch: int) -> Iterator[tuple[int, int]]:
    """Run a server; yields its port and the number of its process."""
    command = [sys.executable, "-m", "densenet_deploy", "serve", str(model), "--port", "0", "--backend", "onnxruntime"]
    command += ["--device", "cpu", "--workers", str(workers), "--max-batch", str(max_batch)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = next(line for line in iter(process.stderr.readline, "") if line.startswith("ready: "))
        try:
            yield int(ready.split()[3].rpartition(":")[2]), process.pid
        finally:
            process.terminate()
            process.communicate(timeout=60)


def latencies_ms(port: int, name: str, shape: Sequence[int], seconds: float, pause: float = 0.0) -> list[float]:
    """Be a client: send the same image again and again; return how long each answer took.

    Args:
        port: of the server.
        name: of the model.
        shape: of an image, (C, H, W).
        seconds: for which requests are begun.
        pause: seconds between an answer and the next request.
    """
    data = np.zeros((1, *shape), np.float32).tobytes()
    entry = {"name": "input", "shape": [1, *shape], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    connection = http.client.HTTPConnection(_HOST, port, timeout=60)
    found: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        connection.request("POST", f"/v2/models/{name}/infer", head + data, headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        found.append((time.perf_counter() - start) * 1e3)
        time.sleep(pause)
    connection.close()
    return found


def measured(pool: ProcessPoolExecutor, port: int, name: str, clients: int, seconds: float) -> Rate:
    """Have all clients ask at the same time."""
    shape = _image_shape(port, name)
    jobs = [pool.submit(latencies_ms, port, name, shape, seconds) for _ in range(clients)]
    times = [one for job in jobs for one in job.result()]
    return Rate(len(times), len(times) / seconds, float(np.percentile(times, 50)), float(np.percentile(times, 99)))


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
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            runner(images)
            times.append((time.perf_counter() - start) * 1e3)
    return Rate(
        len(times), batch * len(times) / (sum(times) / 1e3), float(np.median(times)), float(np.percentile(times, 99))
    )


def soaked(model: Path, seconds: float, pool: ProcessPoolExecutor, moments: int = 60) -> Soak:
    """Have two clients ask with pauses, and look at the server's memory."""
    with started(model, 1, 16) as (port, process):
        shape, begun = _image_shape(port, model.stem), time.monotonic()
        jobs = [pool.submit(latencies_ms, port, model.stem, shape, seconds, 0.05) for _ in range(2)]
        found = []
        for moment in range(moments + 1):
            time.sleep(max(0.0, begun + seconds * (0.1 + 0.9 * moment / moments) - 1 - time.monotonic()))
            found.append(round(_resident_mib(process), 1))
        return Soak(seconds, sum(len(job.result()) for job in jobs), tuple(found), round(found[-1] - found[0], 1))


def _resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "numpy", "onnxruntime", "onnxruntime-gpu", "uvicorn", "starlette")
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = options.models or [exported(place, "--weights", str(DIGITS))]
        pool = stack.enter_context(ProcessPoolExecutor(options.clients))
        results = [row for model in models for row in rates_of(model, pool, options)]
        soak = [asdict(soaked(model, options.soak, pool)) for model in models if options.soak]
    write_results(options.output, machine, {"results": results, "soak": soak})
    heads = ("model", "candidate", "per second", "of the runner", "p50 ms", "p99 ms")
    print_table(heads, [[row[head.replace(" ", "_")] for head in heads] for row in results])
    for one in soak:
        print(f"{one['requests']} requests in {one['seconds']:g} s: memory grew by {one['growth_mib']:g} MiB")


def rates_of(model: Path, pool: ProcessPoolExecutor, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the runner and all servers of one model: medians of the rounds."""
    kinds = [(workers, batch) for workers in dict.fromkeys((1, usable_cpus())) for batch in _BATCHES]
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(ProcessPoolExecutor(1))
        ports = {kind: stack.enter_context(started(model, *kind))[0] for kind in kinds}
        turns: dict[str, Callable[[], Rate]] = {}
        for batch in _BATCHES:
            turns[f"runner, batch {batch}"] = partial(_result, alone, runner_rate, model, batch, options.seconds)
        for (workers, batch), port in ports.items():
            name = f"{counted(workers, 'worker')}, --max-batch {batch}"
            for clients in (options.clients, 1) if (workers, batch) == (1, 1) else (options.clients,):
                ask = partial(measured, pool, port, model.stem, clients, options.seconds)
                turns[f"{name}, {counted(clients, 'client')}"] = ask
        for turn in turns.values():
            turn()
        rates = take_turns(turns, rounds=options.rounds)
    return [_row(model.stem, name, rates) for name in turns]


def _result(pool: ProcessPoolExecutor, call: Callable[..., Rate], *arguments: object) -> Rate:
    return pool.submit(call, *arguments).result()


def _row(model: str, name: str, rates: Mapping[str, Sequence[Rate]]) -> dict[str, Any]:
    """Sum up the rounds of one candidate; its share of the runner's rate at the same batch is the median of theirs."""
    reference = rates[f"runner, batch {16 if 'batch 16' in name else 1}"]
    shares = [one.per_second / other.per_second for one, other in zip(rates[name], reference, strict=True)]
    medians = {
        part: round(median(getattr(one, part) for one in rates[name]), 2) for part in ("per_second", "p50_ms", "p99_ms")
    }
    return {"model": model, "candidate": name, **medians, "of_the_runner": round(median(shares), 3)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", help="ONNX files with an input `input` (default: digits)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each server in each round (default 5)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS", help="look at memory for that long")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    return parser


if __name__ == "__main__":
    main()
