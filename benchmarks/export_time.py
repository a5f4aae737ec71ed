"""The time that `densenet-deploy export` takes, by exporter and stage: `uv run python benchmarks/export_time.py`.

Process against process, in elapsed time: a program that only calls PyTorch's `torch.onnx.export` on the module and
saves the result (`bare_export.py`), and the product's command, which verifies and writes, with `--exporter direct`,
with `--exporter torch`, and, from a `.safetensors` file of the weights, in a process that cannot import PyTorch. The
limit: `direct` takes at most 0.4 times the bare program's time. All include their imports, from bytecode cached in an
uncounted round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from machine import RESULTS, Machine, print_table, take_turns, write_results

import densenet_deploy

LIMIT: Final = 0.4
BARE: Final = "bare"
_BARE_PROGRAM: Final = str(Path(__file__).with_name("bare_export.py"))
_PRODUCT: Final = (sys.executable, "-m", "densenet_deploy")
_WITHOUT_TORCH: Final = (
    sys.executable,
    "-c",
    "import sys; sys.modules['torch'] = None; from densenet_deploy.cli import main; sys.exit(main(sys.argv[1:]))",
)


@dataclass(frozen=True)
class Process:
    """The duration of a process, and its output on stdout."""

    seconds: float
    output: str

    @classmethod
    def run(cls, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Run `command` to completion.

        Raises:
            CalledProcessError: if it fails.
        """
        start = perf_counter()
        done = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE)
        return cls(perf_counter() - start, done.stdout)


@dataclass(frozen=True)
class ExportTime:
    """One exporter: medians over the rounds, in seconds, and the ratio to the bare program's time in the same round.

    `outside_stages` covers the start and end of the process.
    """

    seconds: float
    ratio: float
    round_ratios: tuple[float, ...]
    stages: Mapping[str, float]
    outside_stages: float

    @classmethod
    def of(cls, processes: Sequence[Process], bare: Sequence[Process]) -> ExportTime:
        """Compare processes that ran in alternation."""
        stages = [json.loads(process.output)["stages"] for process in processes]
        ratios = tuple(ours.seconds / theirs.seconds for ours, theirs in zip(processes, bare, strict=True))
        return cls(
            seconds=median(process.seconds for process in processes),
            ratio=median(ratios),
            round_ratios=ratios,
            stages={name: median(seconds[name] for seconds in stages) for name in stages[0]},
            outside_stages=median(
                process.seconds - sum(seconds.values()) for process, seconds in zip(processes, stages, strict=True)
            ),
        )


@dataclass(frozen=True)
class ExportTimes:
    """The bare program in seconds, each exporter, and whether `direct` keeps the limit."""

    variant: str
    bare_seconds: float
    exporters: Mapping[str, ExportTime]
    limit: float
    holds: bool

    @classmethod
    def of(cls, variant: str, processes: Mapping[str, Sequence[Process]]) -> ExportTimes:
        """Compare every exporter with the bare program."""
        bare = processes[BARE]
        times = {name: ExportTime.of(runs, bare) for name, runs in processes.items() if name != BARE}
        return cls(variant, median(run.seconds for run in bare), times, LIMIT, times["direct"].ratio <= LIMIT)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime-gpu")
    with tempfile.TemporaryDirectory() as name:
        candidates = _candidates(options.variant, Path(name))
        take_turns(candidates, rounds=options.warm_up)
        processes = take_turns(candidates, rounds=options.rounds)
    result = ExportTimes.of(options.variant, processes)
    write_results(options.output, machine, {"results": asdict(result)})
    _print(result)


def _candidates(variant: str, folder: Path) -> dict[str, partial[Process]]:
    environment = _with_bytecode_in(folder / "bytecode")
    weights = densenet_deploy.load(variant).save(folder / "weights.safetensors")

    def export(name: str, program: Sequence[str], *source: str) -> partial[Process]:
        written = str(folder / f"{name}.onnx")
        command = [*program, "export", *source, "-o", written, "--json", "-q", "--force"]
        return partial(Process.run, command, environment)

    return {
        BARE: partial(Process.run, [sys.executable, _BARE_PROGRAM, variant, str(folder / "bare.onnx")], environment),
        "direct": export("direct", _PRODUCT, "--variant", variant, "--exporter", "direct"),
        "torch": export("torch", _PRODUCT, "--variant", variant, "--exporter", "torch"),
        "without PyTorch": export("without", _WITHOUT_TORCH, str(weights), "--exporter", "direct"),
    }


def _with_bytecode_in(folder: Path) -> dict[str, str]:
    """Return this environment with bytecode cached in `folder`, unless it names another place.

    An installation caches bytecode beside its sources; but where PYTHONDONTWRITEBYTECODE is set, as in many containers,
    each start would compile PyTorch again.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"PYTHONPYCACHEPREFIX": str(folder), **kept}


def _print(result: ExportTimes) -> None:
    names = [*dict.fromkeys(stage for exporter in result.exporters.values() for stage in exporter.stages)]
    rows = [
        (stage, *(_seconds(exporter.stages.get(stage)) for exporter in result.exporters.values())) for stage in names
    ]
    rows.append(("process start and end", *(_seconds(each.outside_stages) for each in result.exporters.values())))
    rows.append(("all", *(_seconds(exporter.seconds) for exporter in result.exporters.values())))
    rows.append((f"ratio to {BARE}", *(f"{exporter.ratio:.2f}" for exporter in result.exporters.values())))
    print_table(("seconds", *result.exporters), rows)
    verdict = "holds" if result.holds else "does not hold"
    print(f"\n{BARE} {result.bare_seconds:.2f} s; the limit of {result.limit} for direct {verdict}")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="121")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="uncounted rounds (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "export_time.json")
    return parser


if __name__ == "__main__":
    main()
