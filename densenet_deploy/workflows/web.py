"""Web: a model → a folder of static files that runs it in a browser, with its preprocessing, labels and thresholds.

The page runs the ONNX file with onnxruntime-web, whose CPU kernels are those of ONNX Runtime compiled to WebAssembly. A
small image with a known answer travels with it, so that every browser checks decoder, preprocessing and model at its
start.
"""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Unpack

import numpy as np
from PIL import Image

from densenet_deploy.artifacts import StrPath, data_files, require_room
from densenet_deploy.errors import ModelFileError, UsageError, counted, printable
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.model import InputDescription, Model, untrained_note
from densenet_deploy.options import or_default
from densenet_deploy.records import fields_to_plain, write_json
from densenet_deploy.reports import TimedReport, line, mib
from densenet_deploy.runtime.batching import fixed_batch
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.runner import Runner, open_runner
from densenet_deploy.serving.batch.rows import RowLayout
from densenet_deploy.serving.web.runtime_files import BINARY, FILES, VERSION, runtime_files
from densenet_deploy.serving.web.site import Site, require_free
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.load import LoadOptions
from densenet_deploy.workflows.stages import Listener, Stages, ignore

LARGEST_MODEL: Final = 2**30
"""In bytes: WebAssembly addresses 4 GiB, and a model is in there up to three times while it is loaded."""

_MODEL: Final = "model.onnx"
_CHECK: Final = "check.png"
_FACTS: Final = "facts.json"
_CHANNELS: Final = (1, 3, 4)
_LARGEST_CHECK: Final = 640  # pixels of a side
_LONGEST_TITLE: Final = 100
_FOR_GPUS: Final = "INT8 of the recipe tensorrt is for GPUs; browsers are CPUs, for which the recipe onnxruntime is"
_TOLERANCE: Final = 1e-2  # of the largest output: kernels for FP16 and INT8 round at different places
_TOLERANCES: Final = {"fp32": 1e-4}


@dataclass(frozen=True)
class WebOptions:
    """What a page shows and runs with.

    >>> WebOptions(title="Chest X-ray").title
    'Chest X-ray'

    Attributes:
        title: of the page; None takes the name of the model.
        runtime: a folder or a `.tgz` archive with onnxruntime-web; None takes the one in the cache, or fetches it with
            npm.

    Raises:
        UsageError: if the title is empty or longer than 100 characters.
    """

    title: str | None = None
    runtime: StrPath | None = None

    def __post_init__(self) -> None:
        if self.title is not None and not 0 < len(self.title.strip()) <= _LONGEST_TITLE:
            raise UsageError("title", f"has {len(self.title.strip())} characters", f"give 1 to {_LONGEST_TITLE}")


@dataclass(frozen=True, kw_only=True)
class WebReport(TimedReport):
    """A page that runs a model.

    Attributes:
        file: the page, `index.html`.
        bytes: the sum of all files.
        files: all that were written.
        model_bytes: the size of the model in it.
        runtime: the version of onnxruntime-web.
        input: how images are prepared.
    """

    kind: ClassVar[str] = "web"

    file: Path
    bytes: int
    files: tuple[Path, ...]
    model_bytes: int
    runtime: str
    input: InputDescription

    def to_text(self) -> str:
        """Return lines for people."""
        folder = shlex.quote(printable(self.file.parent))
        return "\n".join(
            [
                line("wrote", f"{printable(self.file)}, {counted(len(self.files), 'file')}, {mib(self.bytes)}"),
                line("model", f"{mib(self.model_bytes)}, run by onnxruntime-web {self.runtime} (WebAssembly)"),
                line("input", self.input),
                line("try", f"python -m http.server --bind 127.0.0.1 --directory {folder} 8000"),
                line("", "and open http://127.0.0.1:8000 (browsers do not run it from file://)"),
                *self.stage_lines(),
            ]
        )


def web(
    source: Any,
    out: StrPath,
    options: WebOptions | None = None,
    *,
    force: bool = False,
    progress: Listener = ignore,
    **stated: Unpack[LoadOptions],
) -> WebReport:
    """Write a static page that runs a model in a browser.

    >>> web("digits.onnx", "site", WebOptions(runtime="onnxruntime-web")).file
    PosixPath('site/index.html')

    Args:
        source: an ONNX file, or whatever else `load` takes and `export` can make an ONNX file of.
        out: the folder.
        options: see `WebOptions`.
        force: replace a page that is in the folder. Folders with other files are never replaced.
        progress: is called when a stage begins.
        **stated: facts about the model; see `load`.

    Raises:
        ModelFileError: if a browser cannot run the model: an engine, an OpenVINO file, bfloat16, more than 1 GiB,
            channels that no image file has.
        OutputExistsError: if the folder holds a page (without `force`), or other files.
        DataError: if the runtime is not onnxruntime-web of the pinned version.
        MissingPackageError: if ONNX Runtime is not installed, or npm where it is needed.
        ResourceError: if the runtime cannot be fetched, or the folder cannot be written.
    """
    options = or_default(options, WebOptions)
    folder, stages = Path(out), Stages(progress)
    require_free(folder, force=force)
    require_room(folder, sum(pinned.size_bytes for pinned in FILES.values()))
    model = as_onnx(source, stages, **stated)
    _require_runnable(model)
    with stages("runtime"):
        shipped = runtime_files(None if options.runtime is None else Path(options.runtime))
    with stages("check"):
        data = _single_file(model)
        with open_runner(Model.from_bytes(model.name, data), "onnxruntime", "cpu") as runner:
            classify = Classifier(runner)
            files = _model_files(model, data, runner, classify, runtime_bytes=len(shipped[BINARY]))
    with stages("write"):
        site = Site.of(printable((options.title or model.name).strip()), {**shipped, **files})
        written = site.write(folder)
    assumed = model.manifest.assumed if model.manifest is not None else ()
    return WebReport(
        file=folder / "index.html",
        bytes=site.size_bytes,
        files=written,
        model_bytes=len(data),
        runtime=VERSION,
        input=InputDescription.of(classify.preprocessing, assumed),
        stages=stages.seconds,
        notes=tuple(dict.fromkeys((*model.notes, *_notes(model)))),
    )


def _require_runnable(model: Model) -> None:
    """Refuse what no browser runs, before anything is fetched."""
    if not model.is_onnx:
        kind = model.artifact.kind if model.artifact is not None else "module"
        subject = model.path or model.name
        raise ModelFileError(subject, f"is of the kind {kind}; browsers run ONNX files", "give the .onnx file")
    if model.precision == "bf16":
        why = "is in bfloat16, for which onnxruntime-web has no kernels"
        raise ModelFileError(model.path or model.name, why, "give the FP32, FP16 or INT8 file")
    size = _size_bytes(model)
    if size > LARGEST_MODEL:
        why = f"has {mib(size)}, more than the {mib(LARGEST_MODEL)} that fit into a browser's memory"
        raise ModelFileError(model.path or model.name, why, "give a smaller model")


def _size_bytes(model: Model) -> int:
    assert model.artifact is not None
    path = model.path
    if path is None:
        return len(model.artifact.read_bytes())
    return sum((path.parent / name).stat().st_size for name in (path.name, *data_files(path)))


def _single_file(model: Model) -> bytes:
    """Return the bytes of an ONNX file with the facts and all weights inside."""
    if model.path is None or not data_files(model.path):
        return model.to_bytes()
    proto = type(model.onnx)()
    proto.CopyFrom(model.onnx)
    return Model.from_onnx(model.name, proto, model.manifest).to_bytes()


def _model_files(
    model: Model, data: bytes, runner: Runner, classify: Classifier, *, runtime_bytes: int
) -> dict[str, bytes]:
    """Return the model, the image with a known answer, and the facts that the page needs."""
    preprocessing, channels = classify.preprocessing, classify.preprocessing.shape[0]
    if channels not in _CHANNELS:
        raise ModelFileError(model.name, f"takes {channels} channels, which no image file has", "run it in Python")
    image = check_image(preprocessing)
    row = classify.logits(classify.prepare(image).pixels[None])[0]
    facts = {
        "model": _described(model, len(data)),
        "input": {
            "name": runner.inputs[0].name,
            "dtype": preprocessing.dtype,
            "shape": [fixed_batch(runner) or 1, *preprocessing.input_shape],
            "description": str(preprocessing),
        },
        "preprocessing": fields_to_plain(preprocessing),
        "meaning": {
            "output": classify.meaning.output.name,
            "task": classify.meaning.task,
            "activation": classify.meaning.activation or "none",
            "thresholds": list(classify.meaning.thresholds),
        },
        "names": list(RowLayout.of(classify, len(row), 1).outputs),
        "notes": [*_notes(model), *classify.assumptions],
        "sizes": {BINARY: runtime_bytes, _MODEL: len(data), _CHECK: len(image)},
        "check": {"outputs": row.tolist(), "tolerance": _TOLERANCES.get(model.precision, _TOLERANCE)},
    }
    return {_MODEL: data, _CHECK: image, _FACTS: write_json(facts).encode()}


def _described(model: Model, size_bytes: int) -> str:
    known = model.manifest is not None and not model.manifest.is_third_party
    variant = [f"DenseNet {model.manifest.variant}"] if known and model.manifest is not None else []
    return ", ".join([*variant, model.precision.upper(), f"{size_bytes / 1e6:.1f} MB"])


def _notes(model: Model) -> tuple[str, ...]:
    """Return what visitors of the page, too, should know of the model."""
    recipe = model.manifest.recipe if model.manifest is not None else None
    return (*untrained_note(model.manifest), *((_FOR_GPUS,) if recipe == "tensorrt" else ()))


def check_image(preprocessing: Preprocessing) -> bytes:
    """Return a PNG of slopes and edges, larger than the input and of other proportions, in the model's channels."""
    side = min(max(preprocessing.shape[1:]), _LARGEST_CHECK * 2 // 3)
    y, x = np.mgrid[: side + side // 4, : side * 3 // 2]
    bands = [(x * (3 + band) + y * (5 - band) + 85 * band) % 256 for band in range(preprocessing.shape[0])]
    pixels = np.stack(bands, axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels if len(bands) > 1 else pixels[..., 0]).save(file, "PNG")
    return file.getvalue()
