"""Plot: one figure of a model, as a matplotlib figure or as a PNG, JPEG or SVG file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from densenet_deploy.analysis.plots.plot import SUFFIXES, draw, plots, rendered, require_matplotlib
from densenet_deploy.artifacts import StrPath, output_path, require_room, write_file
from densenet_deploy.errors import UsageError, printable
from densenet_deploy.reports import Report
from densenet_deploy.workflows.outputs import refuse_other_file
from densenet_deploy.workflows.plot.data import PlotRequest, gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class PlotReport(Report):
    """The figure called `plot` was written to `file`."""

    kind: ClassVar[str] = "plot"

    plot: str
    file: Path
    bytes: int

    def to_text(self) -> str:
        """Return a line for people."""
        return f"wrote {printable(self.file)}"


def plot_figure(name: str, request: PlotRequest) -> Figure:
    """Return the figure called `name` of what `request` describes.

    >>> figure = plot_figure("cost", PlotRequest(variant="121"))    # doctest: +SKIP

    Raises:
        UnknownNameError: naming the nearest known figure.
        UsageError, InputError: if the request is invalid, or a file of it cannot be used.
        MissingPackageError: if matplotlib, or a package that reads the model, is not installed.
    """
    plots.get(name)
    require_matplotlib()
    return draw(name, gather(name, request).data)


def plot(name: str, request: PlotRequest, out: StrPath | None = None, *, force: bool = False) -> PlotReport:
    """Write the figure called `name` to `out`, by default `artifacts/MODEL.NAME.png`; the suffix selects the format.

    A file that holds the same figure of a model is replaced, and anything else only with `force`.

    Raises:
        OutputExistsError: if another file exists where the figure should go.
        UnknownNameError, UsageError, InputError, MissingPackageError: see `plot_figure`.
        ResourceError: if the file cannot be written.
    """
    plots.get(name)
    require_matplotlib()
    path, description = _target(name, request, out), f"densenet-deploy plot {name}"
    refuse_other_file(path, description.encode(), "this figure", force=force)
    require_room(path)
    gathered = gather(name, request)
    data = rendered(draw(name, gathered.data), path.suffix[1:].lower(), description)
    write_file(path, data)
    return PlotReport(plot=name, file=path, bytes=len(data), notes=gathered.notes)


def _target(name: str, request: PlotRequest, out: StrPath | None) -> Path:
    suffix = Path(out or "").suffix.lower()
    model = Path(request.models[0]).stem if request.models else request.title
    try:
        default_name = f"{model}.{name}{suffix if suffix in SUFFIXES else SUFFIXES[0]}"
        return output_path(None if out is None else str(out), default_name)
    except UsageError as exc:
        raise UsageError(out, exc.why, f"name a file with one of {', '.join(SUFFIXES)}, or a folder") from exc
