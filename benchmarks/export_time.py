"""The time that `densenet-deploy export` takes, by stage: `uv run python benchmarks/export_time.py`.

Process against process, in elapsed time: the product's command, which simplifies, verifies and writes, and a program
that only calls PyTorch's `torch.onnx.export` on the same module and saves the result (`bare_export.py`). The limit: at
most 1.25 times its time. Both include their imports, from bytecode cached in an uncounted round.
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

LIMIT: Final = 1.25
_BARE_PROGRAM: Final = str(Path(__file__).with_name("bare_export.py"))


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
    """Medians over the rounds, in seconds; `outside_stages` covers the start and end of the product's process."""

    variant: str
    product_seconds: float
    bare_seconds: float
    ratio: float
    round_ratios: tuple[float, ...]
    stages: Mapping[str, float]
    outside_stages: float
    limit: float
    holds: bool

    @classmethod
    def of(cls, variant: str, product: Sequence[Process], bare: Sequence[Process]) -> ExportTime:
        """Compare processes that ran in alternation; the ratio is the median over the rounds."""
        stages = [json.loads(process.output)["stages"] for process in product]
        ratios = tuple(ours.seconds / theirs.seconds for ours, theirs in zip(product, bare, strict=True))
        return cls(
            variant,
            product_seconds=median(process.seconds for process in product),
            bare_seconds=median(process.seconds for process in bare),
            ratio=median(ratios),
            round_ratios=ratios,
            stages={name: median(seconds[name] for seconds in stages) for name in stages[0]},
            outside_stages=median(
                process.seconds - sum(seconds.values()) for process, seconds in zip(product, stages, strict=True)
            ),
            limit=LIMIT,
            holds=median(ratios) <= LIMIT,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime-gpu")
    with tempfile.TemporaryDirectory() as name:
        candidates = _candidates(options.variant, Path(name))
        take_turns(candidates, rounds=options.warm_up)
        processes = take_turns(candidates, rounds=options.rounds)
    result = ExportTime.of(options.variant, processes["product"], processes["bare"])
    write_results(options.output, machine, {"results": asdict(result)})
    _print(result)


def _candidates(variant: str, folder: Path) -> dict[str, partial[Process]]:
    environment = _with_bytecode_in(folder / "bytecode")
    product = [sys.executable, "-m", "densenet_deploy", "export", "--variant", variant, "--json", "-q", "--force"]
    return {
        "product": partial(Process.run, [*product, "-o", str(folder / "product.onnx")], environment),
        "bare": partial(Process.run, [sys.executable, _BARE_PROGRAM, variant, str(folder / "bare.onnx")], environment),
    }


def _with_bytecode_in(folder: Path) -> dict[str, str]:
    """Return this environment with bytecode cached in `folder`, unless it names another place.

    An installation caches bytecode beside its sources; but where PYTHONDONTWRITEBYTECODE is set, as in many containers,
    each start would compile PyTorch again.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"PYTHONPYCACHEPREFIX": str(folder), **kept}


def _print(result: ExportTime) -> None:
    stages = {**result.stages, "process start and end": result.outside_stages}
    print_table(("stage", "seconds"), [(stage, f"{seconds:.2f}") for stage, seconds in stages.items()])
    verdict = "holds" if result.holds else "does not hold"
    print(
        f"\nproduct {result.product_seconds:.2f} s, bare {result.bare_seconds:.2f} s, ratio {result.ratio:.2f}: ",
        end="",
    )
    print(f"the limit of {result.limit} {verdict}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="121")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="uncounted rounds (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "export_time.json")
    return parser


if __name__ == "__main__":
    main()
