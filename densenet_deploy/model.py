"""One network in memory: what the workflows take and return.

A `Model` holds an `nn.Module`, an ONNX graph, or a file that only a backend reads, and the facts that travel with it.
Files are read once, where they enter, and written once, where `save` is called::

    model = load("densenet_digits.safetensors")      # a module
    onnx = export(model)                             # an ONNX graph
    onnx.save("digits.onnx")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from densenet_deploy.artifacts import Artifact, StrPath, prepare_output, write_file
from densenet_deploy.errors import ModelFileError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, Size
from densenet_deploy.notebook import preformatted
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.packages import require_packages
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from onnx import ModelProto
    from onnx_ir import Model as GraphModel

    from densenet_deploy.reports import Report
    from densenet_deploy.runtime.runner import ModuleSource, Runner, RunnerOptions


class UntrainedWeightsWarning(UserWarning):
    """The weights are random: predictions are meaningless, timings are not.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     model = load("cifar-bc-40-12")
    >>> caught[0].category.__name__
    'UntrainedWeightsWarning'
    """


_MOST_NAMED: Final = 3
_CHECKPOINT: Final = ".safetensors"


def untrained_note(manifest: Manifest | None) -> tuple[str, ...]:
    """Return the line that every workflow reports for an untrained model, or nothing."""
    if manifest is None or manifest.weights.is_trained:
        return ()
    return (f"untrained weights (random, seed {manifest.weights.seed}): predictions are meaningless",)


@dataclass(frozen=True)
class InputDescription:
    """What the network takes, and which of these facts nobody stated.

    Attributes:
        shape: channels, height and width of one image.
        resize: before the center crop: the shorter side in pixels, or (height, width), or "none".
        mean, std: per channel, of values in 0..1.
        assumed: names of the facts that are defaults.
        dtype: `float32` of normalized values, or `uint8` of pixels, which the graph normalizes.
        layout: `NCHW`, or `NHWC` of pixels.
        fast_decode: whether images were decoded at a reduced scale, which is faster and not exact.
    """

    shape: tuple[int, int, int]
    resize: Size | Literal["none"]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    assumed: tuple[str, ...] = ()
    dtype: str = "float32"
    layout: str = "NCHW"
    fast_decode: bool = False

    @classmethod
    def of(
        cls, preprocessing: Preprocessing, assumed: tuple[str, ...], *, fast_decode: bool = False
    ) -> InputDescription:
        """Describe `preprocessing`."""
        kept = preprocessing
        facts = (kept.shape, kept.resize, kept.interpolation, kept.mean, kept.std, assumed, kept.dtype, kept.layout)
        return cls(*facts, fast_decode=fast_decode)

    def __str__(self) -> str:
        text = str(Preprocessing(self.shape[1:], self.resize, self.mean, self.std, self.interpolation, self.dtype))
        text += ", decoded fast" if self.fast_decode else ""
        if not self.assumed:
            return text
        return (
            f"{text} (assumed)" if len(self.assumed) > _MOST_NAMED else f"{text} (assumed: {', '.join(self.assumed)})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A network, the facts that travel with it, and the report of the workflow that made it.

    >>> model = densenet_deploy.load("digits.onnx")
    >>> model.runner().run(np.zeros((8, 3, 32, 32), np.float32))["logits"].shape
    (8, 10)

    Attributes:
        name: what files made of it are called (`densenet121`, `chest`).
        manifest: the facts; None of a third-party file that states none.
        module: the network in PyTorch, in eval mode, where there is one.
        weights: of a known DenseNet, float32 arrays by name, which an export writes without tracing the module. Of a
            checkpoint, where PyTorch is not installed, they are all there is.
        artifact: the file or the bytes that hold it, where there are some.
        report: what the workflow that made it did and measured.
        notes: remarks made while it was loaded or made.
        output_names: of the module, in order; empty leaves the naming to the runner.
    """

    name: str
    manifest: Manifest | None = None
    module: torch.nn.Module | None = None
    weights: Mapping[str, npt.NDArray[Any]] | None = None
    artifact: Artifact | None = None
    report: Report | None = None
    notes: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()

    @classmethod
    def from_onnx(
        cls, name: str, proto: ModelProto, manifest: Manifest | None, module: torch.nn.Module | None = None
    ) -> Model:
        """Return the model of a graph, which is serialized with its facts inside.

        Args:
            name: what files made of it are called.
            proto: the graph, which must not change any more.
            manifest: the facts; None leaves those in the graph.
            module: the same network in PyTorch.
        """
        facts = manifest.to_strings() if manifest is not None else {}
        kept = [entry for entry in proto.metadata_props if entry.key not in facts]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        data = append_metadata(proto.SerializeToString(), facts)
        return cls.from_bytes(name, data).replaced(module=module, manifest=manifest).holding(proto)

    @classmethod
    def from_bytes(cls, name: str, data: bytes) -> Model:
        """Return the model in the bytes of an ONNX file.

        Raises:
            ModelFileError: if they are not one.
            ManifestError: if it carries facts that cannot be read.
        """
        artifact = dataclasses.replace(Artifact.open(data), path=Path(f"{name}.onnx"))
        return cls(name, artifact.manifest, artifact=artifact)

    @property
    def spec(self) -> DenseNetSpec | None:
        """The architecture as numbers; None where the network is not a known DenseNet.

        Raises:
            ManifestError: if the manifest holds other numbers.
        """
        facts = self.manifest.spec if self.manifest is not None else {}
        return DenseNetSpec.from_facts(facts) if facts else None

    @property
    def path(self) -> Path | None:
        """The file that holds it; None while it is only in memory."""
        return self.artifact.path if self.artifact is not None and self.artifact.data is None else None

    @property
    def precision(self) -> str:
        """`fp32`, `fp16`, `bf16`, `int8` or `unknown`: what the weights are stored in."""
        return "fp32" if self.artifact is None else self.artifact.precision

    @property
    def is_onnx(self) -> bool:
        """Whether it holds an ONNX graph."""
        return self.artifact is not None and self.artifact.kind == "onnx"

    @functools.cached_property
    def onnx(self) -> ModelProto:
        """The ONNX graph, checked; not to be changed in place.

        Raises:
            ModelFileError: if there is none, or it is not valid.
        """
        from densenet_deploy.graph.onnx_file import load_onnx

        if self.artifact is None or not self.is_onnx:
            found = "PyTorch module" if self.artifact is None else f"{self.artifact.kind} file"
            raise ModelFileError(self.name, f"is a {found}, not an ONNX graph", "export it first")
        return load_onnx(self.artifact)

    def ir(self) -> GraphModel:
        """Return a copy of the graph to rewrite. Errors as `onnx`."""
        import onnx_ir

        return onnx_ir.from_proto(self.onnx)

    def to_bytes(self) -> bytes:
        """Return the bytes of its file, with the facts of `manifest` inside, and all weights.

        Raises:
            ModelFileError: if it is a module without a file.
        """
        if self.artifact is None:
            raise ModelFileError(
                self.name, "is a PyTorch module without a file", "export it first, or save its weights"
            )
        data = self.onnx.SerializeToString() if self.artifact.is_split else self.artifact.read_bytes()
        if not self.is_onnx or self.manifest is None or self.manifest == Artifact.open(data).manifest:
            return data
        proto = type(self.onnx)()
        proto.CopyFrom(self.onnx)
        return Model.from_onnx(self.name, proto, self.manifest).to_bytes()

    def runner_source(self) -> Artifact | ModuleSource:
        """Return what `open_runner` opens: the file or graph, else the module."""
        if self.artifact is not None and self.artifact.kind != "checkpoint":
            return self.artifact
        if self.module is None:
            self._require_torch()
            raise ModelFileError(self.name, "holds neither a module nor a file", "load it again")
        from densenet_deploy.runtime.runner import ModuleSource

        channels = self.manifest.preprocessing.shape[0] if self.manifest is not None else None
        return ModuleSource(self.module, self.manifest, self.output_names, channels)

    def runner(
        self, backend: str | None = None, device: str | None = None, options: RunnerOptions | None = None
    ) -> Runner:
        """Open it for inference; errors as for `open_runner`.

        Args:
            backend: as for `open_runner`.
            device: as for `open_runner`.
            options: as for `open_runner`.
        """
        from densenet_deploy.runtime.runner import open_runner

        return open_runner(self, backend, device, options)

    def save(self, path: StrPath, *, force: bool = False) -> Path:
        """Write the file, whole or not at all, and return its path.

        An ONNX graph goes to `.onnx`; a module to `.safetensors`, its weights and facts. A model that has both, such as
        `export` returns of a checkpoint, goes to either.

        Raises:
            UsageError: if the suffix is another one.
            OutputExistsError: if another artifact stands there, unless `force`.
            ResourceError: if it cannot be written.
        """
        target = Path(path)
        wanted = _CHECKPOINT if self.artifact is None else ".onnx" if self.is_onnx else self.artifact.path.suffix
        has_both = self.artifact is not None and self.module is not None and not self._takes_pixels
        if has_both and target.suffix.lower() == _CHECKPOINT:
            wanted = _CHECKPOINT
        if target.suffix.lower() != wanted:
            raise UsageError(path, f"is not a {wanted} file", f"name a {wanted} file")
        if wanted == _CHECKPOINT:
            self._save_weights(target, force=force)
            return target
        prepare_output(target, self.manifest, force=force, size_bytes=len(self.to_bytes()))
        write_file(target, self.to_bytes())
        return target

    @property
    def _takes_pixels(self) -> bool:
        return self.manifest is not None and self.manifest.preprocessing.takes_pixels

    def _save_weights(self, path: Path, *, force: bool) -> None:
        from densenet_deploy.sources.file import save_weights

        if self.module is None or self.manifest is None:
            self._require_torch()
            raise ModelFileError(self.name, "holds no weights", "load it again")
        if self.manifest.is_third_party:
            why = "is not a known DenseNet, which its weights alone could restore"
            raise ModelFileError(self.name, why, "export it, and save the ONNX graph")
        prepare_output(path, self.manifest, force=force)
        save_weights(path, self.module, self.manifest)

    def _require_torch(self) -> None:
        """Raise a MissingPackageError if there are weights, which only PyTorch makes a module of."""
        if self.weights is not None:
            require_packages("export", "torch")

    def written_to(self, path: Path) -> Model:
        """Write the graph to `path`, which was checked before, and return the model as that file."""
        write_file(path, self.to_bytes())
        assert self.artifact is not None
        return self.replaced(
            name=path.stem, artifact=dataclasses.replace(self.artifact, path=path, data=None, original=None)
        )

    def replaced(self, **changes: Any) -> Model:
        """Return a copy with other values for the given attributes, which shares the parsed graph."""
        model = dataclasses.replace(self, **changes)
        if "onnx" in self.__dict__:
            model.__dict__["onnx"] = self.onnx
        return model

    def holding(self, proto: ModelProto) -> Model:
        """Return it with the graph of its file, which is then not read again; `proto` must not change any more."""
        model = dataclasses.replace(self)
        model.__dict__["onnx"] = proto
        return model

    def _repr_html_(self) -> str:
        """Return the facts of the model for a notebook, and what the workflow that made it reports."""
        manifest, artifact = self.manifest, self.artifact
        facts: list[tuple[str, object]] = [("model", f"{self.name}, {self.precision}")]
        if manifest is not None:
            facts.append(("variant", manifest.variant))
        if manifest is not None and self.report is None:
            facts.append(("input", manifest.preprocessing))
            facts += [("labels", len(manifest.labels))] if manifest.labels else []
        size = "" if artifact is None or artifact.data is None else f", {len(artifact.data) / 2**20:.1f} MiB"
        facts.append(("file", self.path or f"in memory{size}"))
        known = () if self.report is None else self.report.notes
        facts += [("note", note) for note in self.notes if note not in known]
        shown = preformatted("\n".join(f"{label:12}{value}" for label, value in facts))
        return shown if self.report is None else f"{shown}{self.report._repr_html_()}"

    def __repr__(self) -> str:
        variant = self.manifest.variant if self.manifest is not None else "third-party"
        place = "in memory" if self.path is None else str(self.path)
        return f"<Model {self.name}: {variant}, {self.precision}, {place}>"
