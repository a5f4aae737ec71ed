"""What a rewrite made of a tensor, so that a layer-by-layer comparison can undo it or say why it cannot.

A tensor that changed its meaning gets a new name; `metadata_props` of the model hold one JSON object of the changes::

    densenet_deploy.tensors  {"pool0:scaled": {"of": "pool0", "factor": [0.5, 3.25, …], "moved": null}, …}

`factor` holds one positive number per channel and `offset`, where there is one, any number per channel: tensor `of` of
the original model = this tensor · factor + offset. `moved` is a sentence about a tensor that has another place in the
computation than its original, and so cannot be compared. `low` and `high`, where they are given, are one number per
channel: values of `of` beyond them may have been cut off, since no reader tells them apart. A tensor of 8-bit quantized
values also has a `scale` and a `zero_point`: `of` = (value − zero_point) · scale · factor + offset, and `of` may be a
tensor that was changed itself.

A quantized DenseNet-121 has 230 000 such numbers, many of them again in every Concat of their block: as text, a quarter
of its file. `pack` compresses them there, "zlib+base85:" and the JSON.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import json
import zlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import ManifestError
from densenet_deploy.records import Range, fields_to_plain, from_plain, parse_json

if TYPE_CHECKING:
    import onnx_ir as ir

    from densenet_deploy.graph.nodes import Float

KEY: Final = "densenet_deploy.tensors"
_SCALED: Final = ":scaled"
_SHIFTED: Final = ":shifted"
_PACKED: Final = "zlib+base85:"
_MOST_BYTES: Final = 64 * 2**20
"""Of JSON: a quantized DenseNet-121 has 3 MiB."""

Positive = Annotated[float, Range(low=5e-324)]


@dataclass(frozen=True)
class TensorChange:
    """How the tensor `of` of the original model follows from this one: tensor · factor + offset, unless it `moved`.

    A tensor of quantized values has a `scale`: `of` = (tensor − zero_point) · scale · factor + offset.
    """

    of: str
    factor: tuple[Positive, ...] | None = None
    moved: str | None = None
    scale: Positive | None = None
    zero_point: int = 0
    offset: tuple[float, ...] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @functools.cached_property
    def text(self) -> str:
        """The change as JSON."""
        absent = {"scale", "zero_point"} if self.scale is None else set()
        absent |= {name for name in ("offset", "low", "high") if getattr(self, name) is None}
        facts = {name: value for name, value in fields_to_plain(self).items() if name not in absent}
        return json.dumps(facts, separators=(",", ":"), allow_nan=False)

    def undone(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values of `of`, (N, C, …), from those of this tensor."""
        if self.scale is not None:
            array = ((array.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)
        if self.factor is not None:
            array = array * _per_channel(self.factor, array)
        if self.offset is not None:
            array = array + _per_channel(self.offset, array)
        return np.asarray(array)

    def needed(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values of `of`, (N, C, …), without values that may have been cut off."""
        if self.low is None or self.high is None:
            return array
        return np.asarray(np.clip(array, _per_channel(self.low, array), _per_channel(self.high, array)))

    def made_from(self, channels: Float) -> Float:
        """Return what this tensor holds where `of` holds `channels`, one number per channel (C,), not rounded."""
        shifted = channels if self.offset is None else channels - np.array(self.offset, np.float32)
        return shifted if self.factor is None else np.asarray(shifted / np.array(self.factor, np.float32), np.float32)


class TensorChanges:
    """The changes of one model by the tensors' present names: read once, added to, written back.

    As text they are long: rewrites that follow each other share them inside `written_once`.
    """

    def __init__(self, changes: Mapping[str, TensorChange]) -> None:
        self._changes = dict(changes)

    @classmethod
    def of(cls, model: ir.Model) -> TensorChanges:
        """Read what earlier rewrites wrote into `model`.

        Raises:
            ManifestError: if it is malformed.
        """
        shared = _shared.get()
        return (
            shared[1] if shared is not None and shared[0] is model else cls(read_tensor_changes(model.metadata_props))
        )

    def items(self) -> tuple[tuple[str, TensorChange], ...]:
        """Return the present name of each tensor that was changed, and how."""
        return tuple(self._changes.items())

    def scale(self, graph: ir.Graph, value: ir.Value, factor: Float) -> None:
        """Rename `value`, which holds what it held divided by `factor` (C,); factors of several rewrites multiply."""
        known = self._known(value)
        total = factor if known.factor is None else factor * np.array(known.factor, np.float32)
        self._rename(graph, value, _SCALED, dataclasses.replace(known, factor=_numbers(total)))

    def shift(self, graph: ir.Graph, value: ir.Value, amount: Float) -> None:
        """Rename `value`, which holds what it held plus `amount` (C,); amounts of several rewrites add up."""
        known = self._known(value)
        taken = amount if known.factor is None else amount * np.array(known.factor, np.float32)
        offset = -taken if known.offset is None else np.array(known.offset, np.float32) - taken
        self._rename(graph, value, _SHIFTED, dataclasses.replace(known, offset=_numbers(offset)))

    def cut_off(self, value: str, low: Float, high: Float) -> None:
        """Record that values of the tensor called `value` beyond `low` and `high`, (C,) each, are not needed."""
        known = self._changes.get(value, TensorChange(value))
        self._changes[value] = dataclasses.replace(known, low=_numbers(low), high=_numbers(high))

    def copy(self, value: str, origin: str) -> None:
        """Record that the tensor called `value` holds what the one called `origin` holds; later changes are its own."""
        self._changes[value] = TensorChange(origin)

    def origin(self, value: str) -> str:
        """Return the name of the tensor that the one called `value` follows from, which may be itself."""
        return self._changes[value].of if value in self._changes else value

    def move(self, value: str, origin: str, why: str) -> None:
        """Record that the tensor called `value` has the place of `origin` in the original model."""
        self._changes[value] = dataclasses.replace(self._changes.get(origin, TensorChange(origin)), moved=why)

    def pool(self, value: str, origin: str, conv: str) -> None:
        """Record that the tensor called `value` is `origin` pooled, which `conv` read before its pool."""
        self.move(value, origin, f"pooled before {conv}, which was pooled after")

    def quantize(self, value: str, of: str, scale: float, zero_point: int) -> None:
        """Record that the tensor called `value` holds the 8-bit quantized values of the tensor called `of`."""
        self._changes[value] = TensorChange(of, scale=scale, zero_point=zero_point)

    def to_strings(self) -> dict[str, str]:
        """Return the changes as metadata of a model; nothing if there are none."""
        texts = (f"{json.dumps(name)}:{change.text}" for name, change in self._changes.items())
        return {KEY: f"{{{','.join(texts)}}}"} if self._changes else {}

    def write_to(self, model: ir.Model) -> None:
        """Store the changes in the metadata of `model`, if there are any; inside `written_once` that is left to it."""
        shared = _shared.get()
        if shared is None or shared[0] is not model:
            model.metadata_props.update(self.to_strings())

    def _known(self, value: ir.Value) -> TensorChange:
        return self._changes.get(str(value.name), TensorChange(str(value.name)))

    def _rename(self, graph: ir.Graph, value: ir.Value, suffix: str, change: TensorChange) -> None:
        from densenet_deploy.graph.nodes import unused_name  # onnx-ir takes half a second to import

        self._changes.pop(str(value.name), None)
        if not str(value.name).endswith(suffix):
            value.name = unused_name(graph, f"{value.name}{suffix}")
        self._changes[str(value.name)] = change


_shared: ContextVar[tuple[ir.Model, TensorChanges] | None] = ContextVar("tensor_changes", default=None)


@contextlib.contextmanager
def written_once(model: ir.Model) -> Iterator[None]:
    """Let all rewrites of `model` in the block share its changes, which are written into its metadata at the end.

    Until then `metadata_props` holds what it held before. Errors as of `TensorChanges.of`.
    """
    changes = TensorChanges.of(model)
    token = _shared.set((model, changes))
    try:
        yield
    finally:
        _shared.reset(token)
    changes.write_to(model)


def read_tensor_changes(strings: Mapping[str, str]) -> dict[str, TensorChange]:
    """Return the changes that the metadata `strings` of a model hold, by tensor name; there may be none.

    Raises:
        ManifestError: if they are not JSON, or not in the form that `TensorChanges` writes.
    """
    return dict(_parsed(strings.get(KEY, "{}")))


def pack(strings: MutableMapping[str, str]) -> None:
    """Compress the changes in `strings`, the metadata of a model, which `read_tensor_changes` reads too."""
    text = strings.get(KEY, _PACKED)
    if not text.startswith(_PACKED):
        strings[KEY] = _PACKED + base64.b85encode(zlib.compress(text.encode())).decode()


def _unpacked(text: str) -> str:
    if not text.startswith(_PACKED):
        return text
    stream = zlib.decompressobj()
    found = stream.decompress(base64.b85decode(text.removeprefix(_PACKED)), _MOST_BYTES)
    if not stream.eof:
        raise ValueError("it is cut off, or longer than any network's")
    return found.decode()


@functools.lru_cache(maxsize=2)  # every pass reads what the one before it wrote
def _parsed(text: str) -> Mapping[str, TensorChange]:
    try:
        facts = parse_json(_unpacked(text))
    except (ValueError, zlib.error) as exc:
        raise _malformed("is not JSON") from exc
    if not isinstance(facts, dict):
        raise _malformed("is not an object")
    return {name: _change(name, fact) for name, fact in facts.items()}


def _change(name: str, fact: object) -> TensorChange:
    change = from_plain(TensorChange, fact, name, lambda where, why: _malformed(f"{where} {why}"), strict=True)
    given = cast("dict[str, object]", fact)  # or `from_plain` would have refused it
    if ("scale" in given) != ("zero_point" in given):
        raise _malformed(f"{name} has one of scale and zero_point, not both")
    return change


def _per_channel(numbers: Sequence[float], array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `numbers`, one per channel, in the shape that broadcasts with `array`, (N, C, …)."""
    if array.ndim < 2 or len(numbers) != array.shape[1]:
        raise _malformed(f"holds {len(numbers)} numbers for a tensor of shape {array.shape}")
    return np.array(numbers, array.dtype).reshape(1, len(numbers), *[1] * (array.ndim - 2))


def _malformed(why: str) -> ManifestError:
    return ManifestError(KEY, why, "export the model again")


def _numbers(array: Float) -> tuple[float, ...]:
    """Return the shortest decimal numbers that read back as the same float32."""
    return tuple(float(str(number)) for number in array)
