"""Triton: models → a model repository of NVIDIA's Triton Inference Server, complete and checked against the graphs.

For every model and backend there is a folder with `config.pbtxt`, one version, and labels. Each folder is written
beside its place and then renamed, so that a server that watches the repository never sees half of one.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Unpack

from densenet_deploy.artifacts import StrPath, data_files, folder_beside, os_errors_about, require_room, write_file
from densenet_deploy.errors import DeviceError, ModelFileError, OutputExistsError, UsageError, counted, printable
from densenet_deploy.manifest import Manifest, Preprocessing
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.options import or_default, require_choice, require_range
from densenet_deploy.reports import Report, line, table
from densenet_deploy.runtime.batching import takes_any_batch
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.meaning import OutputMeaning
from densenet_deploy.runtime.sidecar import Sidecar, read_records, sidecar_path
from densenet_deploy.runtime.trt import FLAVOURS
from densenet_deploy.serving.triton_config import ANY_SIZE, LABELS_FILE, ModelConfig, ServedTensor, Step
from densenet_deploy.serving.triton_python import BEST, FACTS_FILE, IMAGE, POSITIVE, SCORES, ImageFacts
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.load import LoadOptions, load, preprocessing_of, several
from densenet_deploy.workflows.stages import Listener, Stages, in_notebook

BACKENDS: Final = ("onnxruntime", "openvino", "tensorrt", "python")
DEVICES: Final = ("cpu", "gpu")

_READ_BY: Final = {
    "onnx": ("onnxruntime", "openvino", "python"),
    "openvino": ("openvino", "python"),
    "engine": ("tensorrt", "python"),
}
_MARK: Final = "config.pbtxt"
_OPENVINO_REMARK: Final = (
    "On CPUs with bfloat16 units OpenVINO may run float32 files in bfloat16; Triton has no setting against it."
)


@dataclass(frozen=True)
class TritonOptions:
    """How models are served.

    >>> TritonOptions(("onnxruntime", "python"), ensemble=True).max_batch
    16

    Attributes:
        backends: of Triton, each of which gets a folder; empty: the one that each file is for.
        max_batch: the most images that the server puts together.
        max_delay_ms: how long a request waits for others, in milliseconds.
        instances: copies that answer at the same time, on each device.
        device: `cpu` or `gpu`; None: the GPU for TensorRT, otherwise the CPU.
        ensemble: whether there is also a model from images of any size to scores, for every network.

    Raises:
        UsageError: if a value is out of range.
        UnknownNameError: if a backend or device is unknown.
    """

    backends: Sequence[str] = ()
    max_batch: int = 16
    max_delay_ms: float = 1.0
    instances: int = 1
    device: str | None = None
    ensemble: bool = False

    def __post_init__(self) -> None:
        for backend in self.backends:
            require_choice("backend", backend, BACKENDS)
        twice = next((one for one in self.backends if list(self.backends).count(one) > 1), None)
        if twice is not None:
            raise UsageError(f"backend={twice}", "is given twice", "name each backend once")
        require_range("max-batch", self.max_batch, 1, 4096)
        require_range("max-delay-ms", self.max_delay_ms, 0.0, 60_000.0)
        require_range("instances", self.instances, 1, 1024)
        if self.device is not None:
            require_choice("device", self.device, DEVICES)


@dataclass(frozen=True)
class ServedModel:
    """A folder of the repository.

    Attributes:
        name: in requests.
        backend: of Triton, or `ensemble`.
        source: the model's file; None of what is written around it.
        max_batch: 0 where requests are answered one by one.
    """

    name: str
    backend: str
    source: Path | None
    max_batch: int


@dataclass(frozen=True, kw_only=True)
class TritonReport(Report):
    """A model repository.

    Attributes:
        repository: its folder.
        files: all that were written.
        models: its folders.
    """

    kind: ClassVar[str] = "triton"

    repository: Path
    files: tuple[Path, ...]
    models: tuple[ServedModel, ...]

    def to_text(self) -> str:
        """Return lines for people."""
        rows = [[one.name, one.backend, str(one.max_batch or "as requested")] for one in self.models]
        start = f"tritonserver --model-repository={shlex.quote(printable(self.repository))}"
        return "\n".join(
            [
                f"wrote {printable(self.repository)}, {counted(len(self.files), 'file')}",
                *table(("model", "backend", "batch"), rows),
                line("start", start),
            ]
        )


@dataclass(frozen=True)
class _Network:
    """A model to serve: its file, its inputs and outputs, and what they mean."""

    name: str
    path: Path
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    manifest: Manifest | None
    activations: Mapping[str, str] | None
    preprocessing: Preprocessing | None
    sidecar: Sidecar | None = None
    data: bytes | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return () if self.manifest is None else self.manifest.labels

    @property
    def is_free(self) -> bool:
        """Whether every input and output has a first dimension of any size."""
        return takes_any_batch(self.inputs, self.outputs)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The outputs without any dimension, which the protocol of the server does not have."""
        return tuple(spec.name for spec in self.outputs if spec.shape == ())

    def meaning(self) -> OutputMeaning:
        return OutputMeaning.of(self, self.labels)  # type: ignore[arg-type]  # it has what is read of a runner


def triton(
    models: Any,
    out: StrPath,
    options: TritonOptions | None = None,
    *,
    name: str | None = None,
    force: bool = False,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> TritonReport:
    """Write a model repository for Triton.

    >>> triton(["digits.onnx"], "repository", TritonOptions(("onnxruntime",)), force=True).models[0].name
    'digits'

    Args:
        models: one or several of ONNX and OpenVINO files, engines with their sidecar, or whatever else `load` takes and
            `export` can make an ONNX file of.
        out: the repository; folders of other models in it stay.
        options: see `TritonOptions`.
        name: of the only model; None takes the names of the files without their suffix. With several backends, each
            folder's name ends in that of its backend.
        force: replace folders of the same names.
        progress: is called when a stage of an export begins.
        **stated: facts about the models; see `load`.

    Raises:
        UsageError: if a name cannot be that of a served model, two are the same, or an option is invalid.
        ModelFileError: if a model cannot be served by a backend that was named, or an engine has no sidecar.
        DeviceError: if an engine is of TensorRT-RTX, which Triton does not run.
        OutputExistsError: if a folder is there already.
        ResourceError: if the repository cannot be written.
    """
    options, models = or_default(options, TritonOptions), several(models)
    if not models:
        raise UsageError("models", "names none", "give at least one model file")
    if name is not None and len(models) > 1:
        raise UsageError(f"name={name}", f"is one name for {len(models)} models", "leave it out, or serve one model")
    repository, notes = Path(out), list[str]()
    folders: dict[str, _Folder] = {}
    for source in models:
        model = load(source, **stated)
        if model.artifact is None or model.artifact.kind not in _READ_BY:
            model = as_onnx(model, Stages(progress))
        notes += [*model.notes, *untrained_note(model.manifest)]
        network = _network(model, name)
        for folder in _folders_of(network, options, notes):
            if folder.config.name in folders:
                fix = "rename a file, or write them into different repositories"
                raise UsageError(f"name={folder.config.name}", "is that of two models", fix)
            folders[folder.config.name] = folder
    _check(repository, folders, force=force)
    files = [file for folder in folders.values() for file in folder.write(repository)]
    return TritonReport(
        repository=repository,
        files=tuple(files),
        models=tuple(folder.served() for folder in folders.values()),
        notes=tuple(dict.fromkeys(notes)),
    )


def _network(model: Model, name: str | None) -> _Network:
    artifact = model.artifact
    assert artifact is not None  # what is none was exported
    own = name or model.name
    if artifact.kind == "engine":
        return _engine(model, artifact.path, own)
    with model.runner() as runner:
        preprocessing = preprocessing_of(model) if len(runner.inputs) == 1 else None
        data = None if model.path is not None and artifact.manifest == model.manifest else model.to_bytes()
        known = (runner.inputs, runner.outputs, model.manifest, runner.activations, preprocessing)
        return _Network(own, artifact.path, artifact.kind, *known, data=data)


def _engine(model: Model, path: Path, name: str) -> _Network:
    """Read what the sidecar says: without its GPU, an engine cannot be opened."""
    from densenet_deploy.artifacts import sha256_of

    record = (read_records(path) or {}).get(sha256_of(path))
    if record is None:
        why = f"has no {sidecar_path(path).name} that says its inputs and outputs"
        raise ModelFileError(path, why, "keep the sidecar beside the engine, or build it again")
    if record.flavour != FLAVOURS[0]:
        fix = "build it with --flavour tensorrt on the GPU that will serve it"
        raise DeviceError(path, "is an engine of TensorRT-RTX, which Triton does not run", fix)
    manifest = model.manifest or record.manifest
    return _Network(
        name,
        path,
        "engine",
        tuple(one.spec() for one in record.inputs),
        tuple(one.spec() for one in record.outputs),
        manifest,
        {} if manifest is not None and not manifest.is_third_party else None,
        None if manifest is None else manifest.preprocessing,
        record,
    )


@dataclass(frozen=True)
class _Folder:
    """A folder to write: its configuration, and the files of its version and beside it, by name."""

    config: ModelConfig
    source: Path | None
    version: Mapping[str, bytes | Path]
    beside: Mapping[str, bytes]

    @property
    def size_bytes(self) -> int:
        return sum(item.stat().st_size if isinstance(item, Path) else len(item) for item in self.version.values())

    def served(self) -> ServedModel:
        """Return what the report says of it."""
        return ServedModel(self.config.name, self.config.backend, self.source, self.config.max_batch)

    def write(self, repository: Path) -> Iterator[Path]:
        """Write the folder beside its place, put it there, and yield its files."""
        target = repository / self.config.name
        files: dict[str, bytes | Path] = {f"1/{name}": item for name, item in self.version.items()}
        files |= {_MARK: self.config.to_text().encode(), **self.beside}
        with folder_beside(target) as temporary:
            for name, item in files.items():
                write_file(temporary / name, item.read_bytes() if isinstance(item, Path) else item)
            (temporary / "1").mkdir(exist_ok=True)  # an ensemble has an empty version
            if target.exists():
                shutil.rmtree(target)
            temporary.replace(target)
        yield from sorted(path for path in target.rglob("*") if path.is_file())


def _check(repository: Path, folders: Mapping[str, _Folder], *, force: bool) -> None:
    with os_errors_about(repository):
        if repository.exists() and not repository.is_dir():
            raise OutputExistsError(repository, "is a file", "name a folder with -o")
        for name in folders:
            target = repository / name
            if target.exists() and not (force and (target / _MARK).exists()):
                known = (target / _MARK).exists()
                why = "is there already" if known else "is there, and is not a model of a repository"
                fix = "replace it with --force, or choose another -o" if known else "choose another -o or --name"
                raise OutputExistsError(target, why, fix)
    require_room(repository, sum(folder.size_bytes for folder in folders.values()))


def _folders_of(network: _Network, options: TritonOptions, notes: list[str]) -> Iterator[_Folder]:
    """Yield a folder per backend, and what an ensemble needs."""
    able = _READ_BY[network.kind]
    backends = options.backends or (_backend_of(network),)
    for backend in backends:
        if backend not in able:
            fix = f"name {' or '.join(able)}"
            raise ModelFileError(network.path, f"is not a file that Triton's {backend} backend reads", fix)
    served = []
    for backend in backends:
        own = network.name if len(backends) == 1 else f"{network.name}_{backend}"
        folder = _served(network, own, backend, options)
        served.append(folder)
        yield folder
        if backend == "openvino" and network.kind == "onnx":
            notes.append(_OPENVINO_REMARK)
    if not network.is_free:
        why = "the batch size of an input or output is fixed, so the server puts no requests together"
        notes.append(f"{network.name}: {why}")
        notes += [
            f"{network.name}: {name} is a single number, which Triton does not answer with; it was left out"
            for name in network.left_out
        ]
    if options.ensemble:
        yield from _ensembles(network, served, options)


def _backend_of(network: _Network) -> str:
    """The backend that a file is for: its recipe's, or the one of its kind."""
    recipe = network.manifest.recipe if network.manifest is not None else None
    return recipe if network.kind == "onnx" and recipe == "openvino" else _READ_BY[network.kind][0]


def _served(network: _Network, name: str, backend: str, options: TritonOptions) -> _Folder:
    answering = None
    with contextlib.suppress(ModelFileError, UsageError):
        answering = network.meaning().output.name
    max_batch = _max_batch(network, backend, options)
    is_batched = max_batch > 0
    outputs = tuple(
        ServedTensor.of(spec, is_batched=is_batched, labels=bool(network.labels) and spec.name == answering)
        for spec in network.outputs
        if spec.name not in network.left_out
    )
    if not outputs:
        raise ModelFileError(network.path, "answers with single numbers alone", "export it with an output per image")
    inputs = tuple(ServedTensor.of(spec, is_batched=is_batched) for spec in network.inputs)
    device = options.device or ("gpu" if backend == "tensorrt" else "cpu")
    file = "model.plan" if backend == "tensorrt" else f"model{network.path.suffix}"
    data: bytes | Path = network.path if network.data is None else network.data
    version: dict[str, bytes | Path] = {file: data}
    parameters: dict[str, str] = {}
    if network.data is None:
        version |= {beside: network.path.parent / beside for beside in data_files(network.path)}
    if network.kind == "openvino":
        version[f"{Path(file).stem}.bin"] = network.path.with_suffix(".bin")
    if network.sidecar is not None and backend == "python":
        version[f"{file}.json"] = sidecar_path(network.path)
    if backend == "openvino":
        parameters = {"ENABLE_BATCH_PADDING": "YES"} if is_batched and not network.is_free else {}
    if backend == "python":
        parameters = {"file": file} | ({"backend": "openvino"} if _backend_of(network) == "openvino" else {})
        version["model.py"] = _python_model("NetworkModel")
    config = ModelConfig(
        name=name,
        backend=backend,
        file="model.py" if backend == "python" else file,
        max_batch=max_batch,
        inputs=inputs,
        outputs=outputs,
        delay_us=round(options.max_delay_ms * 1e3),
        instances=options.instances,
        device=device,
        profiles=len(network.sidecar.profiles) if network.sidecar is not None and backend == "tensorrt" else 1,
        parameters=parameters,
        warm_up=_warm_up_sizes(network, inputs),
        remark=_OPENVINO_REMARK if backend == "openvino" else "",
    )
    return _Folder(config, network.path, version, _labels_file(network, outputs))


def _max_batch(network: _Network, backend: str, options: TritonOptions) -> int:
    """The most images that the server may put together; 0 where the graph has a batch size of its own.

    Our runner fills up a batch that no profile of an engine accepts. TensorRT's backend does not, so there every batch
    from 1 on must be in a profile.
    """
    if not network.is_free:
        return 0
    if network.sidecar is None:
        return options.max_batch
    if backend != "tensorrt":
        return min(options.max_batch, max(profile.max for profile in network.sidecar.profiles))
    largest = 0
    for profile in sorted(network.sidecar.profiles, key=lambda profile: profile.min):
        largest = max(largest, profile.max) if profile.min <= largest + 1 else largest
    if not largest:
        least = min(profile.min for profile in network.sidecar.profiles)
        fix = "build it with profiles from batch 1, or serve it with --backend python"
        raise ModelFileError(network.path, f"accepts no batch below {least}, and a request may hold one image", fix)
    return min(options.max_batch, largest)


def _warm_up_sizes(network: _Network, inputs: Sequence[ServedTensor]) -> tuple[int, ...] | None:
    """Sizes for what may be of any, from the image that the network is for; None where they are unknown."""
    free = sum(size == ANY_SIZE for tensor in inputs for size in tensor.dims)
    if not free:
        return ()
    if network.preprocessing is None or len(inputs) != 1:
        return None
    dims, shape = inputs[0].dims, (1, *network.preprocessing.input_shape)
    if len(dims) not in (len(shape), len(shape) - 1):
        return None
    return tuple(size for size, served in zip(shape[-len(dims) :], dims, strict=True) if served == ANY_SIZE)


def _labels_file(network: _Network, outputs: Sequence[ServedTensor]) -> dict[str, bytes]:
    if not any(tensor.labels for tensor in outputs):
        return {}
    lines = (" ".join(label.splitlines()) for label in network.labels)
    return {LABELS_FILE: "".join(f"{text}\n" for text in lines).encode()}


def _python_model(cls: str) -> bytes:
    text = f'''"""Triton's python backend over densenet-deploy, which has to be installed where the server runs."""

from densenet_deploy.serving.triton_python import {cls} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
    return text.encode()


def _ensembles(network: _Network, served: Sequence[_Folder], options: TritonOptions) -> Iterator[_Folder]:
    """Yield what goes from images to inputs and from outputs to scores, and an ensemble around every served network."""
    if network.preprocessing is None or len(network.inputs) != 1 or not network.is_free:
        why = "does not take one batch of images of any number"
        raise ModelFileError(network.path, why, "leave out the ensemble, or export with --batch dynamic")
    meaning, max_batch = network.meaning(), max(folder.config.max_batch for folder in served)
    facts = ImageFacts(network.preprocessing, meaning.task, meaning.activation, meaning.thresholds).to_bytes()
    classes = ANY_SIZE if meaning.classes is None else meaning.classes
    channels = network.preprocessing.shape[0]
    image = ServedTensor(IMAGE, "uint8", (ANY_SIZE, ANY_SIZE, channels))
    (given,) = served[0].config.inputs
    answer = next(one for one in served[0].config.outputs if one.name == meaning.output.name)
    best, positive = ServedTensor(BEST, "int64", (1,)), ServedTensor(POSITIVE, "uint8", (classes,))
    verdict = {"multiclass": (best,), "multilabel": (positive,)}.get(meaning.task, ())
    scores = (ServedTensor(SCORES, "float32", (classes,), answer.labels), *verdict)
    plain = ModelConfig("x", "python", "model.py", max_batch, (), (), delay_us=round(options.max_delay_ms * 1e3))
    names = {part: f"{network.name}_{part}" for part in ("images", "scores")}
    images = replace(plain, name=names["images"], inputs=(image,), outputs=(given,))
    after = replace(plain, name=names["scores"], inputs=(replace(answer, labels=False),), outputs=scores)
    labels = _labels_file(network, scores)
    yield _Folder(images, None, {"model.py": _python_model("ImagesModel"), FACTS_FILE: facts}, {})
    yield _Folder(after, None, {"model.py": _python_model("ScoresModel"), FACTS_FILE: facts}, labels)
    for folder in served:
        steps = (
            Step(names["images"], {IMAGE: IMAGE}, {given.name: "prepared"}),
            Step(folder.config.name, {given.name: "prepared"}, {answer.name: "answered"}),
            Step(names["scores"], {answer.name: "answered"}, {tensor.name: tensor.name for tensor in scores}),
        )
        name = f"{folder.config.name}_classify"
        config = ModelConfig(name, "ensemble", None, folder.config.max_batch, (image,), scores, steps=steps)
        yield _Folder(config, None, {}, labels)
