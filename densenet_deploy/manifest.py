"""What travels with an artifact: typed facts, and the strings that carry them in a file.

An ONNX file holds the facts in `metadata_props`, one key a fact, each value JSON::

    densenet_deploy.schema         1
    densenet_deploy.variant        "121"
    densenet_deploy.preprocessing  {"image_size":224,"resize":256,...}

JSON is parsed, never evaluated, and every field is checked for its type before it is believed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from densenet_deploy.errors import DensenetDeployError, ManifestError, UsageError
from densenet_deploy.records import Choice, Range, fields_to_plain, from_plain, parse_json, write_json

SCHEMA: Final = 1
PREFIX: Final = "densenet_deploy."

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic")
THIRD_PARTY: Final = "third-party"
"""The variant of a network that is not one of our DenseNets; its `spec` is empty."""
TASKS: Final = ("multiclass", "multilabel", "regression", "features")
INPUT_TYPES: Final = ("float32", "uint8")
"""What a network takes: normalized values (N, C, H, W), or the pixels (N, H, W, C) that its graph normalizes."""

Pixels = Annotated[int, Range(1, 65536)]
Size = Pixels | tuple[Pixels, Pixels]
"""One number for both sides, or height and width."""

ImageShape = tuple[int | None, int | None, int | None]
"""Channels, height and width; None for what may vary."""

NO_RESIZE: Final = "none"

Positive = Annotated[float, Range(low=5e-324)]
Scalar = str | int | float | bool | None
SpecFacts = Mapping[str, Scalar | tuple[int, ...]]

_FIX: Final = "export the model again"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: resized, center-cropped to `image_size`, normalized.

    The result is `(value / 255 - mean) / std` per channel, float32, (C, H, W). Of a graph that normalizes by itself, it
    is the pixels, uint8, (H, W, C); `mean` and `std` are then those in the graph.

    >>> load("digits.onnx").manifest.preprocessing.mean
    (0.306, 0.306, 0.306)

    Attributes:
        image_size: of the input in pixels: one number, or (height, width).
        resize: before the crop: the shorter side, or (height, width) whatever the image's proportions, or "none".
        mean, std: of values in 0..1, one per channel; as many as there are channels.
        interpolation: nearest, bilinear or bicubic.
        dtype: float32, or uint8 of a graph that normalizes by itself.

    Raises:
        UsageError: if there are not as many standard deviations as means, or none.
    """

    image_size: Size = 224
    resize: Size | Literal["none"] = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD
    interpolation: Annotated[str, Choice(*INTERPOLATIONS)] = "bilinear"
    dtype: Annotated[str, Choice(*INPUT_TYPES)] = "float32"

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise UsageError("std", f"holds {len(self.std)} numbers for {len(self.mean)} means", "give one per channel")
        object.__setattr__(self, "image_size", _plain(self.image_size))

    @classmethod
    def default(cls, image_size: Size = 224, channels: int = 3) -> Preprocessing:
        """Return what is assumed where nothing is known.

        Square images are resized to 256/224 of their size first, others to their size; three channels are normalized
        as ImageNet's, any other number of them stays in 0..1.

        >>> Preprocessing.default(32).resize, Preprocessing.default((256, 128), channels=1).mean
        (36, (0.0,))
        """
        size = _plain(image_size)
        resize = size * 256 // 224 if isinstance(size, int) else size
        if channels == len(IMAGENET_MEAN):
            return cls(size, resize)
        return cls(size, resize, (0.0,) * channels, (1.0,) * channels)

    @classmethod
    def for_shape(cls, shape: ImageShape) -> Preprocessing:
        """Return the default for images of a `shape`; an unknown side is that of the other, or 224 pixels.

        >>> Preprocessing.for_shape((1, None, 64)).shape
        (1, 64, 64)
        """
        channels, height, width = shape
        size = (height or width or cls.image_size, width or height or cls.image_size)
        return cls.default(size, channels or len(cls.mean))  # type: ignore[arg-type]  # of an annotated default

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an input."""
        return len(self.mean), *sides(self.image_size)

    @property
    def takes_pixels(self) -> bool:
        """Whether the graph normalizes by itself."""
        return self.dtype == "uint8"

    @property
    def layout(self) -> str:
        """`NCHW` of normalized values, `NHWC` of pixels."""
        return "NHWC" if self.takes_pixels else "NCHW"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one input: (channels, height, width), or (height, width, channels) of pixels."""
        channels, height, width = self.shape
        return (height, width, channels) if self.takes_pixels else (channels, height, width)

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value that a normalized image can hold."""
        low = min(-m / s for m, s in zip(self.mean, self.std, strict=True))
        high = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return low, high

    def __str__(self) -> str:
        size = f"{'x'.join(map(str, self.input_shape))}{' uint8' if self.takes_pixels else ''}, {self._resizing()}"
        where = " in the graph" if self.takes_pixels else ""
        if (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            return f"{size}, ImageNet mean/std{where}"
        mean, std = (" ".join(f"{value:.4g}" for value in _shortened(values)) for values in (self.mean, self.std))
        return f"{size}, mean {mean}, std {std}{where}"

    def _resizing(self) -> str:
        if self.resize == NO_RESIZE:
            return "no resize"
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        return f"resize {'x'.join(map(str, sides))} {self.interpolation}"


def sides(size: Size) -> tuple[int, int]:
    """Return height and width.

    >>> sides(224), sides((256, 128))
    ((224, 224), (256, 128))
    """
    return size if isinstance(size, tuple) else (size, size)


def _plain(size: Size) -> Size:
    """Return one number for a square."""
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


def _shortened(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return one value for many equal ones."""
    return values[:1] if len(set(values)) == 1 else values


@dataclass(frozen=True)
class WeightsOrigin:
    """Where the weights came from. `source` is `none`, a torchvision name, or the name of a file.

    `sha256` is of the parameter bytes (hex); `seed` is set where the weights are random.
    """

    source: str
    sha256: str
    seed: int | None = None

    @property
    def is_trained(self) -> bool:
        return self.source != "none"


@dataclass(frozen=True)
class Manifest:
    """The facts of one artifact. `labels` may be empty; `recipe` names how INT8 was written, if it was.

    >>> load("digits.onnx").manifest.labels[:3]
    ('0', '1', '2')

    Attributes:
        variant, spec: the architecture by name and as numbers.
        weights: where the weights came from.
        preprocessing: how an image becomes an input.
        labels: class names in the order of the outputs.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        recipe: of an INT8 file.
        batch: the fixed batch size; None keeps it dynamic.
        opset: the ONNX operator set.
        tools: versions of the packages that wrote the file.
        task: what the outputs mean (see `TASKS`); None where nobody said.
        thresholds: of a multilabel model, one for all labels, one per label, or none.
        activations: outputs that end in a `softmax` or `sigmoid`, or are computed from such scores (`unknown`), in a
            file whose graph cannot be read.
        assumed: names of the facts that nobody stated (`mean`, `std`, `resize`, ...).
    """

    variant: str
    spec: SpecFacts
    weights: WeightsOrigin
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    precision: str = "fp32"
    recipe: str | None = None
    batch: int | None = None
    opset: int | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    task: Annotated[str | None, Choice(*TASKS, None)] = None
    thresholds: tuple[float, ...] = ()
    activations: Mapping[str, str] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    @property
    def is_third_party(self) -> bool:
        """Whether the network is not one of our DenseNets, so that nothing is known of its structure."""
        return self.variant == THIRD_PARTY

    @property
    def states_normalization(self) -> bool:
        """Whether mean and std were stated, so that arrays can be checked against the range they allow."""
        return not {"mean", "std"} & set(self.assumed)

    def same_artifact(self, other: Manifest) -> bool:
        """Whether both describe the same model in the same form (tool versions may differ)."""
        return dataclasses.replace(self, tools={}) == dataclasses.replace(other, tools={})

    def to_strings(self) -> dict[str, str]:
        """Return the facts as the string pairs that a file carries."""
        facts = {"schema": SCHEMA, **fields_to_plain(self)}
        return {PREFIX + key: write_json(value) for key, value in facts.items()}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Manifest | None:
        """Read the facts back, or return None where `strings` holds none of ours.

        Raises:
            ManifestError: if a fact is missing, malformed, or of a newer schema.
        """
        known = ("schema", *(field.name for field in dataclasses.fields(cls)))
        texts = {key: strings[PREFIX + key] for key in known if PREFIX + key in strings}
        if not texts:
            return None
        facts = {key: _parse(key, text) for key, text in texts.items()}
        check_schema(PREFIX + "schema", facts.pop("schema", None), SCHEMA, _FIX)
        return from_plain(cls, facts, fail=_malformed)


def check_schema(subject: object, schema: object, newest: int, fix: str) -> None:
    """Check the schema number that a file names against the `newest` known here.

    Raises:
        ManifestError: if it is not a number, or of a newer version.
    """
    if type(schema) is not int or schema < 1:
        raise ManifestError(subject, f"is {schema!r:.60}, not a schema number", fix)
    if schema > newest:
        raise ManifestError(
            subject, f"is {schema}, newer than {newest}, the newest known here", "upgrade densenet-deploy"
        )


def _parse(key: str, text: str) -> object:
    try:
        return parse_json(text)
    except ValueError as exc:
        raise ManifestError(PREFIX + key, f"is not JSON: {text[:60]}", _FIX) from exc


def _malformed(where: str, why: str) -> DensenetDeployError:
    return ManifestError(PREFIX + where, why, _FIX)
