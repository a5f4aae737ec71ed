"""TensorRT-RTX engines of every variant: `uv run python benchmarks/engines.py`.

Engines of untrained networks, batch 1, all default targets. For each, the script records the build time, size, the
device memory that the engine requests beside the weights, the precisions of its convolutions, and the parity of the
graph with the FP32 file. TensorRT-RTX builds without a GPU, and none of these engines was run on one: the results do
not show which is fastest.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from machine import RESULTS, Machine, print_table, write_results

from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import activation_bytes
from densenet_deploy.workflows.build_engine import EngineReport, build_engine
from densenet_deploy.workflows.quantize.options import QuantizeOptions

IMAGES: Final = Path(__file__).parents[1] / "calibration" / "samples"
SAMPLES: Final = 32
FORMS: Final = ("fp32", "fp16", "int8 per-channel", "int8 per-tensor")


@dataclass(frozen=True)
class Engine:
    """One engine; `form` is its precision, for int8 with the kind of weight scales."""

    variant: str
    form: str
    seconds: float
    build_seconds: float
    plan_bytes: int
    activation_bytes: int | None
    convolutions: Mapping[str, int]
    share_of_macs: Mapping[str, float]
    cosine: float | None
    sqnr_db: float | None

    @classmethod
    def of(cls, variant: str, form: str, report: EngineReport) -> Engine:
        parity = report.parity
        return cls(
            variant,
            form,
            report.seconds,
            report.stages["build"],
            report.bytes,
            activation_bytes(report.engine.read_bytes()),
            report.runs.convolutions,
            report.runs.share_of_macs,
            None if parity is None else parity.cosine,
            None if parity is None else parity.sqnr_db,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "tensorrt-rtx", "onnx", "torch")
    results = [engine for variant in options.variants for engine in engines_of(variant, options.forms, options.images)]
    write_results(options.output, machine, {"results": [asdict(result) for result in results]})
    _print(results)


def engines_of(variant: str, forms: Sequence[str], images: Path) -> Iterator[Engine]:
    """Build `variant` in each of `forms`; the FP32 file is exported once."""
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            precision, _, weights = form.partition(" ")
            report = build_engine(
                variant,
                BuildOptions("rtx", precision),
                calibration=images if precision == "int8" else None,
                quantization=QuantizeOptions(samples=SAMPLES, weights=weights or "per-channel"),
                out=f"{folder}/",
                force=True,
            ).report
            assert isinstance(report, EngineReport)
            yield Engine.of(variant, form, report)


def _print(results: Sequence[Engine]) -> None:
    header = ("variant", "form", "build", "engine", "activations", "in int8", "SQNR")
    rows = [
        (
            row.variant,
            row.form,
            f"{row.build_seconds:.1f} s",
            f"{row.plan_bytes / 2**20:.1f} MiB",
            "unknown" if row.activation_bytes is None else f"{row.activation_bytes / 2**20:.1f} MiB",
            f"{row.share_of_macs.get('int8', 0):.1%}",
            "" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB",
        )
        for row in results
    ]
    print_table(header, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=["121", "169", "201", "264"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--images", type=Path, default=IMAGES, help="calibration images")
    parser.add_argument("--output", type=Path, default=RESULTS / "engines.json")
    return parser


if __name__ == "__main__":
    main()
