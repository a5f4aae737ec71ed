"""The folder of a training: the state that it resumes from, and the files that are made from it.

::

    state.pt            all that `--resume` needs
    best.safetensors    the weights of the best epoch with all facts: what `export` takes
    last.safetensors    those of the last epoch
    metrics.jsonl       one line per epoch
    curves.png          loss and accuracy, drawn at the end
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densenet_deploy.artifacts import os_errors_about, require_room, write_file
from densenet_deploy.errors import OutputExistsError
from densenet_deploy.manifest import Manifest
from densenet_deploy.packages import is_installed
from densenet_deploy.records import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from densenet_deploy.training.state import TrainingState


class TrainingFolder:
    """The places of the files, all of which are written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state, self.best, self.last = (
            path / name for name in ("state.pt", "best.safetensors", "last.safetensors")
        )
        self.metrics, self.curves = path / "metrics.jsonl", path / "curves.png"
        self.results = (self.best, self.last, self.metrics, self.curves)

    def check(self, size_bytes: int, *, force: bool, resume: bool) -> None:
        """Check before the work that the results may be written, and that `size_bytes` fit.

        Raises:
            OutputExistsError: if another training is there, and it is neither resumed nor replaced.
            ResourceError: if the folder cannot be written, or has no room.
        """
        with os_errors_about(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise OutputExistsError(self.path, "is a file", "name a folder with -o")
            may_stay = force or (resume and self.state.exists())
        self.require_none((self.state, *self.results), may_stay=may_stay)
        require_room(self.state, size_bytes)

    def require_none(self, files: Iterable[Path], *, may_stay: bool) -> None:
        """Check that none of `files` is there, or that it may be.

        Raises:
            OutputExistsError: naming the first that is.
        """
        with os_errors_about(self.path):
            existing = next((file for file in files if file.exists()), None)
        if existing is not None and not may_stay:
            fix = "go on with it by --resume, replace it with --force, or choose another -o"
            raise OutputExistsError(existing, "is of another training", fix)

    def clean(self) -> None:
        """Remove what a killed process left of files that it was writing."""
        for file in (self.state, *self.results):
            for left in self.path.glob(f".{file.name}.*.tmp"):
                left.unlink(missing_ok=True)

    def write(self, state: TrainingState, manifests: Mapping[str, Manifest]) -> None:
        """Write the state first, then what is made from it; `manifests` are those of `best` and `last`.

        Raises:
            ResourceError: if the disk is full, read-only or not permitted.
        """
        state.write(self.state)
        if not state.records:
            for file in self.results:  # of a training that is replaced
                with os_errors_about(file):
                    file.unlink(missing_ok=True)
            return
        if state.best_epoch == state.epochs or not self.best.exists():
            self._write_weights(self.best, state.best, manifests["best"])
        self._write_weights(self.last, _result(state), manifests["last"])
        write_file(self.metrics, "".join(f"{write_json(record)}\n" for record in state.records).encode())

    def rewrite(self, state: TrainingState, manifests: Mapping[str, Manifest]) -> None:
        """Write what is made from a state that was read: the run that wrote it may have ended before it could."""
        if state.records:
            self._write_weights(self.best, state.best, manifests["best"])
        self.write(state, manifests)

    def draw(self, records: list[dict[str, Any]], title: str) -> Path | None:
        """Draw the curves, and return the file; None where matplotlib is not installed."""
        if not is_installed("matplotlib"):
            return None
        from densenet_deploy.analysis.plots.plot import draw, rendered
        from densenet_deploy.analysis.plots.training import TrainingCurves

        figure = draw("training", TrainingCurves.of(title, records))
        write_file(self.curves, rendered(figure, "png", f"training of {title}"))
        return self.curves

    @staticmethod
    def _write_weights(path: Path, weights: Mapping[str, Tensor], manifest: Manifest) -> None:
        from densenet_deploy.sources.checkpoint_file import float32_bytes

        write_file(path, float32_bytes(weights, manifest.to_strings()))


def _result(state: TrainingState) -> Mapping[str, Tensor]:
    """The weights that are evaluated: the moving average if there is one."""
    weights: Mapping[str, Tensor] = state.trainer["average"] or state.trainer["network"]
    return weights
