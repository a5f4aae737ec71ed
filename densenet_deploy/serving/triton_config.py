"""What Triton reads of a model: `config.pbtxt`, in the text form of protocol buffers.

Sources: the server's model_configuration.md and the READMEs of its backends (https://github.com/triton-inference-server).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from densenet_deploy.errors import UsageError
from densenet_deploy.runtime.feeds import TensorSpec

LABELS_FILE: Final = "labels.txt"
ANY_SIZE: Final = -1

_TYPES: Final = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "uint8": "UINT8",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Word:
    """A value that is written without quotes, such as KIND_CPU."""

    text: str


@dataclass(frozen=True)
class ServedTensor:
    """An input or output of a served model.

    Attributes:
        name: in requests and answers.
        dtype: NumPy's name of the type (`float32`).
        dims: sizes without the batch where the server batches, else with it; -1 is any.
        labels: whether `labels.txt` names its numbers.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    labels: bool = False

    @classmethod
    def of(cls, spec: TensorSpec, *, is_batched: bool, labels: bool = False) -> ServedTensor:
        """Return what a server says of `spec`; `is_batched` leaves out the first dimension.

        >>> import numpy as np
        >>> ServedTensor.of(TensorSpec("input", (None, 3, 32, 32), np.dtype("float32")), is_batched=True).dims
        (3, 32, 32)
        """
        shape = spec.shape[1:] if is_batched else spec.shape
        return cls(spec.name, str(spec.dtype), tuple(ANY_SIZE if size is None else size for size in shape), labels)

    def entry(self) -> dict[str, Any]:
        """Return its fields in `input` or `output`."""
        labels = {"label_filename": LABELS_FILE} if self.labels else {}
        dims = {"dims": list(self.dims)} if self.dims else {"dims": [1], "reshape": {"shape": []}}
        return {"name": self.name, "data_type": self._type, **dims, **labels}

    def zeros(self, sizes: Sequence[int]) -> dict[str, Any]:
        """Return its fields in a warm-up request; `sizes` stand for those that may be any."""
        left = iter(sizes)
        dims = [next(left) if size == ANY_SIZE else size for size in self.dims]
        return {"data_type": self._type, "dims": dims, "zero_data": True}

    @property
    def _type(self) -> Word:
        return Word(f"TYPE_{_TYPES[self.dtype]}")


@dataclass(frozen=True)
class Step:
    """A step of an ensemble: the model, and the tensors of the ensemble that its inputs and outputs are."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of one served model.

    Attributes:
        name: of its folder.
        backend: `onnxruntime`, `openvino`, `tensorrt`, `python`, or `ensemble`.
        file: the model's file in the folder of its version; None of an ensemble.
        max_batch: the largest batch that the server makes of several requests; 0 leaves requests as they are.
        inputs, outputs: as the model has them.
        delay_us: how long a request may wait for others, in microseconds; None batches nothing.
        instances: how many copies answer at the same time, on each device.
        device: `cpu` or `gpu`.
        profiles: of a TensorRT engine; the server takes the first alone, unless it is told.
        parameters: of the backend, by name.
        steps: of an ensemble.
        warm_up: sizes for a warm-up with zeros, in place of those that may be any; None makes none.
        remark: a sentence for readers of the file.
    """

    name: str
    backend: str
    file: str | None
    max_batch: int
    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    delay_us: int | None = None
    instances: int = 1
    device: str = "cpu"
    profiles: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    warm_up: tuple[int, ...] | None = None
    remark: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            fix = "give --name letters, digits, '.', '_' and '-'"
            raise UsageError(f"name={self.name}", "is not a name that servers and URLs take", fix)

    def to_text(self) -> str:
        """Return the file."""
        remark = f"# {self.remark}\n" if self.remark else ""
        return remark + "".join(f"{line}\n" for line in _lines(self._fields()))

    def _fields(self) -> dict[str, Any]:
        is_ensemble = self.backend == "ensemble"
        fields: dict[str, Any] = {"name": self.name}
        fields |= {"platform": "ensemble"} if is_ensemble else {"backend": self.backend}
        if self.file is not None:
            fields["default_model_filename"] = self.file
        fields["max_batch_size"] = self.max_batch
        fields["input"] = [tensor.entry() for tensor in self.inputs]
        fields["output"] = [tensor.entry() for tensor in self.outputs]
        fields["version_policy"] = {"latest": {"num_versions": 1}}
        if is_ensemble:
            fields["ensemble_scheduling"] = {"step": [_step(step) for step in self.steps]}
            return fields
        kind = Word("KIND_GPU" if self.device == "gpu" else "KIND_CPU")
        profiles = {"profile": [str(number) for number in range(self.profiles)]} if self.profiles > 1 else {}
        fields["instance_group"] = [{"kind": kind, "count": self.instances, **profiles}]
        if self.delay_us is not None and self.max_batch > 1:
            fields["dynamic_batching"] = {"max_queue_delay_microseconds": self.delay_us}
        if self.parameters:
            fields["parameters"] = [
                {"key": name, "value": {"string_value": value}} for name, value in self.parameters.items()
            ]
        if self.warm_up is not None:
            fields["model_warmup"] = [self._warm_up(size) for size in sorted({min(1, self.max_batch), self.max_batch})]
        return fields

    def _warm_up(self, batch: int) -> dict[str, Any]:
        inputs = [{"key": tensor.name, "value": tensor.zeros(self.warm_up or ())} for tensor in self.inputs]
        return {"name": f"zeros, batch {batch}", "batch_size": batch, "inputs": inputs}


def _step(step: Step) -> dict[str, Any]:
    maps = {"input_map": step.inputs, "output_map": step.outputs}
    entries = {name: [{"key": own, "value": value} for own, value in pairs.items()] for name, pairs in maps.items()}
    return {"model_name": step.model, "model_version": -1, **entries}


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the lines of a message; a list of messages repeats its field, a list of numbers stays in one line."""
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            for one in value:
                yield from _message(name, one, indent)
        elif isinstance(value, Mapping):
            yield from _message(name, value, indent)
        else:
            yield f"{indent}{name}: {_shown(value)}"


def _message(name: str, fields: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}{name} {{"
    yield from _lines(fields, f"{indent}  ")
    yield f"{indent}}}"


def _shown(value: object) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, list):
        return f"[ {', '.join(map(_shown, value))} ]"
    return json.dumps(value, ensure_ascii=False)  # true and false, numbers, quoted text: escapes have no pairs
