"""How many requests does `serve` answer, and how fast? `uv run python benchmarks/serving.py`.

Servers with 1 worker and with one per CPU, each with `--max-batch` 1 and 16, take turns. Clients in processes of their
own send single images over HTTP, as bytes and as fast as they are answered, each on a connection that stays open. They
take CPU time too, on the same machine: the ratios between the servers mean more than the rates.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from evaluate_overlap import DIGITS, exported
from machine import RESULTS, Machine, print_table, take_turns, write_results

from densenet_deploy.runtime.cpus import usable_cpus

_HOST: Final = "127.0.0.1"


@dataclass(frozen=True)
class Rate:
    """Requests/s, and the latency that half and 99 % of the requests had, in ms."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Server:
    """A server and the medians of its rounds."""

    workers: int
    max_batch: int
    clients: int
    per_second: float
    p50_ms: float
    p99_ms: float


@contextlib.contextmanager
def started(model: Path, workers: int, max_batch: int) -> Iterator[int]:
    """Run a server; yields its port."""
    command = [sys.executable, "-m", "densenet_deploy", "serve", str(model), "--port", "0", "--backend", "onnxruntime"]
    command += ["--device", "cpu", "--workers", str(workers), "--max-batch", str(max_batch)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = next(line for line in iter(process.stderr.readline, "") if line.startswith("ready: "))
        try:
            yield int(ready.split()[3].rpartition(":")[2])
        finally:
            process.terminate()
            process.communicate(timeout=60)


def latencies_ms(port: int, name: str, shape: Sequence[int], seconds: float) -> list[float]:
    """Be a client: send the same image again and again; return how long each answer took."""
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
    connection.close()
    return found


def measured(pool: ProcessPoolExecutor, port: int, name: str, clients: int, seconds: float) -> Rate:
    """Have all clients ask at the same time."""
    with contextlib.closing(http.client.HTTPConnection(_HOST, port, timeout=60)) as connection:
        connection.request("GET", f"/v2/models/{name}")
        shape = json.load(connection.getresponse())["inputs"][0]["shape"][1:]
    jobs = [pool.submit(latencies_ms, port, name, shape, seconds) for _ in range(clients)]
    times = [one for job in jobs for one in job.result()]
    return Rate(len(times), len(times) / seconds, float(np.percentile(times, 50)), float(np.percentile(times, 99)))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "numpy", "onnxruntime", "onnxruntime-gpu", "uvicorn", "starlette")
    kinds = [(workers, batch) for workers in dict.fromkeys((1, usable_cpus())) for batch in (1, 16)]
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = options.model or exported(place, "--weights", str(DIGITS))
        pool = stack.enter_context(ProcessPoolExecutor(options.clients))
        ports = {kind: stack.enter_context(started(model, *kind)) for kind in kinds}

        def turn(port: int, seconds: float) -> Rate:
            return measured(pool, port, model.stem, options.clients, seconds)

        for port in ports.values():
            turn(port, min(1.0, options.seconds))
        turns = {
            f"{workers},{batch}": lambda port=port: turn(port, options.seconds)
            for (workers, batch), port in ports.items()
        }
        rates = take_turns(turns, rounds=options.rounds)
    found = [_summed_up(kind, options.clients, rates[f"{kind[0]},{kind[1]}"]) for kind in kinds]
    write_results(options.output, machine, {"results": [asdict(one) for one in found]})
    rows = [
        [one.workers, one.max_batch, one.clients, f"{one.per_second:.1f}", f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}"]
        for one in found
    ]
    print_table(("workers", "max-batch", "clients", "requests/s", "p50 ms", "p99 ms"), rows)


def _summed_up(kind: tuple[int, int], clients: int, rounds: Sequence[Rate]) -> Server:
    parts = ([getattr(one, name) for one in rounds] for name in ("per_second", "p50_ms", "p99_ms"))
    return Server(*kind, clients, *map(median, parts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an ONNX file with an input `input` to use instead of digits")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each server in each round (default 5)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    return parser


if __name__ == "__main__":
    main()
