"""What Triton's `python` backend runs: a network in our runner, images before it, and scores after it.

`densenet-deploy triton` writes a `model.py` that takes one of these classes as its `TritonPythonModel`. Where it runs,
densenet-deploy, NumPy, Pillow and the backend must be installed. Arrays pass through DLPack alone: servers are built
with a NumPy of their own, and under another one their `as_numpy` may read nonsense without an error.
"""

from __future__ import annotations

import ctypes
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import DataError, DensenetDeployError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.records import from_plain, parse_json, to_plain, write_json
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.meaning import OutputMeaning
from densenet_deploy.runtime.preprocess import prepare_batch
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.serving.dynamic_batching import Answer, answered_together

IMAGE: Final = "image"
SCORES: Final = "scores"
BEST: Final = "best"
POSITIVE: Final = "positive"
FACTS_FILE: Final = "facts.json"

_MARKED_AS_READ: Final = b"used_dlpack"
_READ: Final = b"used_dltensor"


@dataclass(frozen=True)
class ImageFacts:
    """What is done before and after a network.

    Attributes:
        preprocessing: of images.
        task, activation, thresholds: of the output that answers; see `OutputMeaning`.
    """

    preprocessing: Preprocessing
    task: str
    activation: str | None
    thresholds: tuple[float, ...]

    def to_bytes(self) -> bytes:
        """Return the content of `facts.json`."""
        return f"{write_json(to_plain(self), indent=1)}\n".encode()

    @classmethod
    def read(cls, path: Path) -> ImageFacts:
        """Read that file.

        Raises:
            DataError: if it is not one.
        """

        def fail(where: str, why: str) -> DensenetDeployError:
            return DataError(path, f"{where} {why}".strip(), "write the repository again")

        return from_plain(cls, parse_json(path.read_bytes()), fail=fail)


class _Answering(ABC):
    """What the three models share: requests in, answers out, and an error for one that cannot be answered."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load what is needed; `args` are the server's."""
        import triton_python_backend_utils

        self._server: Any = triton_python_backend_utils
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        folder = Path(args["model_repository"]) / args["model_version"]
        self._load(folder, config, args)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests that the server put together, in their order."""
        arrays = [self._arrays(request) for request in requests]
        return [self._response(answer) for answer in self._answered(arrays)]

    @abstractmethod
    def _load(self, folder: Path, config: Mapping[str, Any], args: Mapping[str, str]) -> None:
        """Load what the folder of the version holds."""

    @abstractmethod
    def _run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs of one batch, by name."""

    def _answered(self, arrays: Sequence[Mapping[str, Array]]) -> list[Answer | Exception]:
        return [answer for one in arrays for answer in answered_together(self._run, [one])]

    def _arrays(self, request: Any) -> dict[str, Array]:
        tensors = {name: self._server.get_input_tensor_by_name(request, name) for name in self._inputs}
        return {name: np.from_dlpack(tensor) for name, tensor in tensors.items()}

    def _response(self, answer: Answer | Exception) -> Any:
        if isinstance(answer, Exception):
            return self._server.InferenceResponse(error=self._server.TritonError(str(answer)))
        tensors = [_given(self._server.Tensor, name, array) for name, array in answer.items()]
        return self._server.InferenceResponse(output_tensors=tensors)


class _Lent:
    """An array that is read through DLPack once, and keeps the capsule that was read."""

    def __init__(self, array: Array) -> None:
        self._array = np.ascontiguousarray(array)
        self.capsule: Any = None

    def __dlpack__(self, **options: Any) -> Any:
        self.capsule = self._array.__dlpack__(**options)
        return self.capsule

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def _given(kind: Any, name: str, array: Array) -> Any:
    """Return `array` as a tensor of the server.

    The server marks a capsule as read with a name that NumPy does not know (`used_dlpack`, where DLPack says
    `used_dltensor`), and NumPy would then print an error for every answer. So the name is corrected.
    """
    lent, api = _Lent(array), ctypes.pythonapi
    tensor = kind.from_dlpack(name, lent)
    capsule = ctypes.py_object(lent.capsule)
    if lent.capsule is not None and api.PyCapsule_IsValid(capsule, _MARKED_AS_READ):
        api.PyCapsule_SetName(capsule, _READ)
    return tensor


class NetworkModel(_Answering):
    """A network in our runner. Requests that the server put together run as one batch."""

    def finalize(self) -> None:
        """Close the runner."""
        self._runner.close()

    def _load(self, folder: Path, config: Mapping[str, Any], args: Mapping[str, str]) -> None:
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        threads = parameters.get("threads")
        is_gpu = args.get("model_instance_kind") == "GPU"
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._is_batched = config.get("max_batch_size", 0) > 0
        self._runner = open_runner(
            folder / parameters["file"],
            parameters.get("backend"),
            f"cuda:{args['model_instance_device_id']}" if is_gpu else "cpu",
            RunnerOptions(threads=None if threads is None else int(threads)),
        )

    def _run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        answer = self._runner.run(inputs)
        return {name: answer[name] for name in self._outputs}

    def _answered(self, arrays: Sequence[Mapping[str, Array]]) -> list[Answer | Exception]:
        return answered_together(self._run, arrays) if self._is_batched else super()._answered(arrays)


class ImagesModel(_Answering):
    """Images of any size, (N, H, W, C) uint8, as the network takes them."""

    def _load(self, folder: Path, config: Mapping[str, Any], args: Mapping[str, str]) -> None:  # noqa: ARG002
        self._facts = ImageFacts.read(folder / FACTS_FILE)
        self._output = config["output"][0]["name"]

    def _run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        images = [LoadedImage.from_array(image) for image in inputs[IMAGE]]
        return {self._output: prepare_batch(images, self._facts.preprocessing)}


class ScoresModel(_Answering):
    """The outputs of the network, (N, C), as scores, with the best class or the labels that are positive."""

    def _load(self, folder: Path, config: Mapping[str, Any], args: Mapping[str, str]) -> None:  # noqa: ARG002
        self._facts = ImageFacts.read(folder / FACTS_FILE)

    def _run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        ((name, array),) = inputs.items()
        facts = self._facts
        spec = TensorSpec(name, (None, array.shape[1]), array.dtype)
        meaning = OutputMeaning(spec, facts.task, facts.activation, facts.thresholds)
        rows = meaning.rows(array)
        scores = np.stack([meaning.scores(row) for row in rows]).astype(np.float32)
        found: dict[str, Array] = {SCORES: scores}
        if facts.task == "multiclass":
            found[BEST] = np.argsort(-rows, axis=1, kind="stable")[:, :1].astype(np.int64)
        if facts.task == "multilabel":
            found[POSITIVE] = np.stack([meaning.positive(row) for row in scores]).astype(np.uint8)
        return found
