"""No number on a page is written by hand, unless it is a limit in the code or in a test.

What was measured is generated (see `docs/measurements.py`), and what commands print is compared where they run
(`test_readme.py`, `test_errors_page.py`). Every other number with a unit is listed here with the line that holds it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PACKAGE = "densenet_deploy"
NUMBER = re.compile(
    r"\b\d[\d.,]*\s?(?:dB|ms|µs|s|images/s|[KMG]i?B|minutes?|hours?|seconds?|times|points?|%|×|(?<= )x)(?![\w.])"
)

MEASURED = "docs/reference/benchmarks.md"
ROUNDS = f"{PACKAGE}/bench/rounds.py"
HELD = {
    ("README.md", "20 dB"): (f"{PACKAGE}/parity/compare.py", "10 log₁₀(Σr² / Σ(r − c)²)"),
    ("README.md", "0.2 ms"): (MEASURED, "| onnxruntime | densenet121 | 1 | 19.44 ms | 101 [55, 144] µs |"),
    ("concepts/compress.md", "512 MiB"): (f"{PACKAGE}/pruning/reconstruction.py", "STATE_BYTES: Final = 512 * 2**20"),
    ("concepts/int8.md", "95 %"): (ROUNDS, "_TAILS: Final = (2.5, 97.5)"),
    ("concepts/int8.md", "2 %"): (f"{PACKAGE}/workflows/quantize/layer_choice.py", "_TIE: Final = 0.02"),
    ("concepts/int8.md", "60 dB"): (f"{PACKAGE}/quantization/half_classifier.py", "_MOST_NOISE: Final = 1e-6"),
    ("concepts/int8.md", "0.5 dB"): (f"{PACKAGE}/workflows/quantize/layer_choice.py", "_BEHIND_DB: Final = 0.5"),
    ("concepts/parity.md", "20 dB"): (f"{PACKAGE}/parity/compare.py", "10 log₁₀(Σr² / Σ(r − c)²)"),
    ("concepts/parity.md", "40 dB"): (f"{PACKAGE}/parity/compare.py", "10 log₁₀(Σr² / Σ(r − c)²)"),
    ("concepts/reliability.md", "5 s"): ("tests/faults/test_46_to_54_system.py", "assert ended.seconds < 5"),
    ("how-to/calibration.md", "40 dB"): ("calibration/recipes/accurate.toml", "min-sqnr = 40.0"),
    ("how-to/figures.md", "2 points"): (f"{PACKAGE}/analysis/plots/pareto.py", "_LEAST_SPAN: Final = 2.0"),
    ("how-to/measure.md", "95 %"): (ROUNDS, "_TAILS: Final = (2.5, 97.5)"),
    ("how-to/measure.md", "5 %"): (ROUNDS, "_STEADY_SPREAD: Final = 1.05"),
    ("how-to/measure.md", "10 %"): (f"{PACKAGE}/bench/measurement.py", "NOTICEABLE_OVERHEAD: Final = 0.1"),
    ("how-to/serving.md", "64 KiB"): (f"{PACKAGE}/serving/http_limits.py", "_LARGEST_HEADER: Final = 65536"),
    ("how-to/serving.md", "16 times"): (f"{PACKAGE}/serving/http_server.py", "_BODIES_HELD: Final = 16"),
    ("how-to/serving.md", "30 seconds"): (f"{PACKAGE}/serving/server.py", "stuck_s: float = 30.0"),
    ("how-to/serving.md", "0.1 s"): (f"{PACKAGE}/serving/processes.py", "_FIRST_PAUSE_S: Final = 0.1"),
    ("how-to/serving.md", "30 s"): (f"{PACKAGE}/serving/processes.py", "_LONGEST_PAUSE_S: Final = 30.0"),
    ("how-to/tensorrt.md", "100.0%"): ("README.md", "convolutions: 39 in fp16 (100.0% of MACs)"),
    ("how-to/training.md", "100 %"): (f"{PACKAGE}/training/augment.py", "_AREA: Final = (0.08, 1.0)"),
    ("how-to/training.md", "50 %"): (f"{PACKAGE}/training/options.py", "_STEPS: Final = (0.5, 0.75)"),
    ("how-to/training.md", "75 %"): (f"{PACKAGE}/training/options.py", "_STEPS: Final = (0.5, 0.75)"),
    ("how-to/tune.md", "95 %"): (ROUNDS, "_TAILS: Final = (2.5, 97.5)"),
    ("how-to/tune.md", "5 %"): (f"{PACKAGE}/workflows/decision.py", "NOISE_IMAGES: Final = 5"),
    ("how-to/tune.md", "6.3 %"): (f"{PACKAGE}/workflows/decision.py", "NOISE_IMAGES: Final = 5"),
    ("how-to/tune.md", "60 dB"): (f"{PACKAGE}/analysis/choice.py", "EQUAL_SQNR_DB: Final = 60.0"),
    ("how-to/tune.md", "2 %"): (f"{PACKAGE}/workflows/tune/report.py", "_EQUAL: Final = 1.02"),
    ("how-to/web.md", "0.01 %"): (f"{PACKAGE}/workflows/web.py", '_TOLERANCES: Final = {"fp32": 1e-4}'),
    ("how-to/web.md", "1 %"): (f"{PACKAGE}/workflows/web.py", "_TOLERANCE: Final = 1e-2"),
    ("how-to/web.md", "1 GiB"): (f"{PACKAGE}/workflows/web.py", "LARGEST_MODEL: Final = 2**30"),
    ("how-to/web.md", "4 GiB"): (f"{PACKAGE}/workflows/web.py", "WebAssembly addresses 4 GiB"),
    ("reference/benchmarks.md", "95 %"): (ROUNDS, "_TAILS: Final = (2.5, 97.5)"),
}
"""(page, number) → (file, the line in it that holds the number)."""


def _by_hand(page: Path) -> str:
    """The text of a page without its generated parts and code."""
    text = re.sub(r"<!-- generated: (.+?) -->.*?<!-- end of \1 -->", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_number_with_a_unit_is_held_by_code(page):
    name = page.relative_to(ROOT).as_posix().removeprefix("docs/")
    shown = {" ".join(found.split()) for found in NUMBER.findall(_by_hand(page))}
    assert shown == {number for where, number in HELD if where == name}


@pytest.mark.parametrize(("file", "line"), sorted(set(HELD.values())))
def test_the_code_that_holds_a_number_is_there(file, line):
    assert line in (ROOT / file).read_text()


def test_a_number_with_a_unit_is_found():
    assert NUMBER.findall("a call of 1.5 ms, 12,5 dB, 3 %, 2 x and 640x480, 8 images, 2019.") == [
        "1.5 ms",
        "12,5 dB",
        "3 %",
        "2 x",
    ]
