"""The whole road to a small and fast file: train, prune, distil, quantize, fine-tune, race.

    python -m examples.smaller_and_faster                                # handwritten digits, a small network
    python -m examples.smaller_and_faster --data flowers/ --variant 121  # class folders of yours, hours on a CPU

Every step is one call. Labels serve the first one and the last measurement alone: pruning, its distillation and INT8
fine-tuning learn from the network that was trained. A tenth of each class of `--data` chooses the best epoch;
`--held-out` are images that nothing was chosen on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import densenet_deploy as dd
from examples.digits_data import PREPROCESSING, digits_split, write_images

OUTPUT: Final = Path("artifacts") / "smaller_and_faster"
DIGITS_VARIANT: Final = "cifar-bc-40-12"


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        epochs: of training.
        ratio: share of the bottleneck channels to remove.
        recipe: the INT8 recipe, which is also the backend of the race.
        finetune_seconds: of each fine-tuning, at most; 0 leaves both out.
        samples: images to prune, calibrate and fine-tune on.
        seconds: of the race, for each file.
    """

    epochs: int = 30
    ratio: float = 0.5
    recipe: str = "auto"
    finetune_seconds: float = 120.0
    samples: int = 256
    seconds: float = 3.0


def digits(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Write scikit-learn's digits; return class folders to train on and held out, and facts of the images."""
    for name, data in zip(("training", "held_out"), digits_split(), strict=True):
        write_images(folder / name, data)
    facts = {name: getattr(PREPROCESSING, name) for name in ("image_size", "resize", "mean", "std")}
    return folder / "training", folder / "held_out", facts


def road(data: Path, held_out: Path, folder: Path, plan: Plan, **network: Any) -> list[tuple[str, float, float, float]]:
    """Make the files in `folder`; return each with its size in MiB, top-1 on `held_out`, and milliseconds per image."""
    options = dd.TrainOptions(epochs=plan.epochs, optimizer="adamw", schedule="cosine", flip=False)
    trained = dd.train(data, options, out=folder / "training", force=True, **network)
    whole = dd.export(trained, out=folder / "whole.onnx", force=True)

    learns: dict[str, Any] = {"samples": plan.samples, "finetune": plan.finetune_seconds > 0}
    if learns["finetune"]:
        learns["finetune_seconds"] = plan.finetune_seconds
    fewer = dd.PruneOptions(ratio=plan.ratio, widths="per-layer", **learns)
    small = dd.prune(whole, data, fewer, out=folder / "small.onnx", force=True)
    print(small.report)

    int8 = dd.QuantizeOptions(recipe=plan.recipe, never_slower=False, **learns)
    files = {"whole, float": whole, "small, float": small}
    for name, model in (("whole", whole), ("small", small)):
        files[f"{name}, INT8"] = dd.quantize(model, data, int8, out=folder / f"{name}.int8.onnx", force=True)
    backend = files["small, INT8"].report.recipe
    race = dd.benchmark(
        [model.path for model in files.values()], dd.BenchmarkOptions(backends=(backend,), seconds=plan.seconds)
    )
    print(race)
    return [
        (name, model.path.stat().st_size / 2**20, dd.evaluate(model, held_out).top1, timed.latency_ms.p50)
        for (name, model), timed in zip(files.items(), race.results, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Go the road, and print what it brought."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="class folders (default: handwritten digits)")
    parser.add_argument("--held-out", type=Path, help="class folders that nothing is chosen on (default: --data)")
    parser.add_argument("--variant", default=DIGITS_VARIANT)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args(arguments))
    plan = Plan(**{name: given[name] for name in vars(Plan())})
    data, held_out, facts = given["data"], given["held_out"] or given["data"], {}
    if data is None:
        data, held_out, facts = digits(given["output"] / "images")
    rows = road(data, held_out, given["output"], plan, variant=given["variant"], **facts)
    print(f"\n{'file':14} {'MiB':>6} {'top-1':>8} {'ms':>7}")
    for name, size, top1, milliseconds in rows:
        print(f"{name:14} {size:6.2f} {top1:8.2%} {milliseconds:7.2f}")


if __name__ == "__main__":
    main()
