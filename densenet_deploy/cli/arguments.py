"""Arguments that several commands share, and how words become values."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from densenet_deploy.errors import UsageError

if TYPE_CHECKING:
    from densenet_deploy.facts import Architecture
    from densenet_deploy.manifest import Triple
    from densenet_deploy.workflows.stages import Listener

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx, .xml, .engine, .pth or .safetensors file.")]
Variant = Annotated[str | None, typer.Option(help="121, 161, 169, 201, 264, cifar-L-k or cifar-bc-L-k.")]
Backend = Annotated[str, typer.Option(help="onnxruntime, openvino, rtx, tensorrt, torch or auto.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, gpu, npu or auto; a named one is never replaced.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default all this process may use.")]
TrustEngine = Annotated[
    bool, typer.Option("--trust-engine", help="Load a TensorRT plan that no sidecar vouches for: it is native code.")
]
Out = Annotated[str | None, typer.Option("-o", "--out", metavar="FILE|DIR", help="Where to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace whatever stands where the output goes.")]

GrowthRate = Annotated[int | None, typer.Option(help="Channels that each layer adds.")]
Blocks = Annotated[str | None, typer.Option(metavar="A,B,...", help="Layers of each block.")]
InitFeatures = Annotated[int | None, typer.Option(help="Channels after the stem.")]
Compression = Annotated[float | None, typer.Option(help="Fraction of channels that a transition keeps.")]
BnSize = Annotated[int | None, typer.Option(help="Bottleneck width in growth rates; 0 for plain layers.")]
DropRate = Annotated[float | None, typer.Option(help="Dropout in training.")]
Stem = Annotated[str | None, typer.Option(help="imagenet or cifar.")]

_TRIPLES: Final = ("--mean", "--std")
_NUMBER: Final = re.compile(r"-?[\d.][\d.eE+-]*")


def architecture(
    growth_rate: int | None,
    blocks: str | None,
    init_features: int | None,
    compression: float | None,
    bn_size: int | None,
    drop_rate: float | None,
    stem: str | None,
) -> Architecture:
    """Put the options of a custom network together."""
    from densenet_deploy.facts import Architecture

    return Architecture(growth_rate, _block_sizes(blocks), init_features, compression, bn_size, drop_rate, stem)


def triple(option: str, text: str | None) -> Triple | None:
    """Read three numbers, one an RGB channel.

    Raises:
        UsageError: if they are not three numbers.
    """
    if text is None:
        return None
    try:
        red, green, blue = (float(word) for word in text.split(","))
    except ValueError as exc:
        raise UsageError(f"{option}={text}", "is not three numbers", f"write {option} 0.5 0.5 0.5") from exc
    return red, green, blue


def listed(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a repeatable option, each of which may be a list separated by commas; `auto` adds none.

    >>> listed(["onnxruntime,openvino", "torch", "auto"])
    ('onnxruntime', 'openvino', 'torch')
    """
    parts = [part.strip() for word in words for part in word.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part not in ("", "auto")))


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas.

    Raises:
        UsageError: if they are not whole numbers.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as exc:
        raise UsageError(f"{option}={text}", "is not whole numbers", f"write {option} 1,8,32") from exc


def join_triples(words: Sequence[str]) -> list[str]:
    """Write `--mean 0.5 0.5 0.5` as `--mean 0.5,0.5,0.5`, so that commas and spaces both work.

    >>> join_triples(["export", "--mean", "0.5", "0.5", "0.5", "-q"])
    ['export', '--mean', '0.5,0.5,0.5', '-q']
    """
    joined: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        joined.append(word)
        values: list[str] = []
        while word in _TRIPLES and len(values) < 3 and remaining and _NUMBER.fullmatch(remaining[0]):
            values.append(remaining.pop(0))
        if values:
            joined.append(",".join(values))
    return joined


@contextlib.contextmanager
def progress() -> Iterator[Listener]:
    """Show the stage under way, and its steps if it counts them, when stderr is a terminal and nobody wants silence."""
    if not sys.stderr.isatty() or {"-q", "--quiet", "--json"} & set(sys.argv):
        yield lambda _stage, _done=0, _total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}")
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, count="")

        def show(stage: str, done: int = 0, total: int | None = None) -> None:
            count = f"{done}/{total}" if total is not None else ""
            bar.update(task, description=stage, completed=done, count=count)
            bar.tasks[0].total = total  # update() cannot take a total away again

        yield show


def _block_sizes(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else whole_numbers("--blocks", text)
