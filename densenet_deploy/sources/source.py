"""A source of networks: the plug-in point of this package, one file each.

A source says whether a value is meant for it, and loads the network::

    @sources.register("mine")
    class MySource(Source):
        def matches(self, source: object) -> Match: ...

        def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork: ...

Another library's checkpoints differ from torchvision's in the names of their parameters. A `CheckpointFormat` knows the
names of one library; the file source and the module source try every format in turn::

    @formats.register("mine")
    class MyFormat(CheckpointFormat):
        def recognises(self, names: Collection[str]) -> bool: ...

        def renames(self, names: Collection[str]) -> Mapping[str, str | None]: ...

The modules of this package keep heavy imports inside functions: an ONNX file is loaded without PyTorch.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

from densenet_deploy.artifacts import Artifact
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import Manifest, WeightsOrigin
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.registry import Registry
from densenet_deploy.sources.arrays import Array
from densenet_deploy.sources.heads import HeadConventions
from densenet_deploy.variants import Variant
from densenet_deploy.variants.spec import HEADS, MOST_CHANNELS, MOST_CLASSES

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn


@dataclass(frozen=True)
class WeightsConstraint:
    """What the loaded network must be; None leaves the choice to the source.

    Attributes:
        variant: the architecture, named or custom. Its class count and head only count for untrained networks.
        num_classes, head: of the classifier.
        channels: of the images.
        architecture: numbers that the weights do not show (`stem`, `drop_rate`), which win over what is assumed.
        seed: of untrained weights.
        allow_nonfinite: accept NaN and Inf among the weights.
        key: which network of a checkpoint that holds several: the name that their error lists.
    """

    variant: Variant | None = None
    num_classes: int | None = None
    head: str | None = None
    channels: int | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    allow_nonfinite: bool = False
    key: str | None = None

    def __post_init__(self) -> None:
        if self.num_classes is not None:
            require_range("num-classes", self.num_classes, 1, MOST_CLASSES)
        if self.head is not None:
            require_choice("head", self.head, HEADS)
        if self.channels is not None:
            require_range("channels", self.channels, 1, MOST_CHANNELS)

    def applied_to(self, variant: Variant) -> Variant:
        """Return `variant` with the requested class count, head and channels."""
        asked = {"num_classes": self.num_classes, "head": self.head, "in_channels": self.channels}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return dataclasses.replace(variant, spec=dataclasses.replace(variant.spec, **changes))


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with what its source knows about it: a `module` in eval mode, or the `artifact` of a graph.

    Of a checkpoint, where PyTorch is not installed, the `weights` alone.

    Attributes:
        name: what files made from it are called, without a suffix: `densenet121`, `chest`.
        weights: of a known DenseNet, float32 by the names of `models.build`; arrays of a module on the CPU share its
            memory. None where the network may compute something else than `variant` with these weights.
        origin: where the weights of a module came from.
        graph: what `artifact` holds, checked, where it has been read.
        variant: the architecture; None if the network is not a known DenseNet.
        manifest: the facts that the file carried, if any.
        labels: class names in the order of the outputs; may be empty.
        facts: what the source knows about images and outputs.
        output_names: of a module, in order.
        notes: what was done to load it, one sentence each.
    """

    name: str
    origin: WeightsOrigin | None = None
    module: nn.Module | None = None
    weights: Mapping[str, Array] | None = field(default=None, repr=False, compare=False)
    artifact: Artifact | None = None
    graph: ModelProto | None = None
    variant: Variant | None = None
    manifest: Manifest | None = None
    labels: tuple[str, ...] = ()
    facts: ModelFacts = field(default_factory=ModelFacts)
    output_names: tuple[str, ...] = ("logits",)
    notes: tuple[str, ...] = ()


class Match(IntEnum):
    """How sure a source is that a value is meant for it; the surest source loads it."""

    NO = 0
    POSSIBLE = 1
    CERTAIN = 2


class Source(ABC):
    """A place where networks come from. `names` are suggested when a name is unknown."""

    names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def matches(self, source: object) -> Match:
        """Say whether `source` is meant for this source, by its type and name alone: no file is read."""

    def check(self, source: object, variant: str | None) -> None:  # noqa: B027 - most sources know it when they load
        """Check that `source` can be of `variant`, by its name alone.

        Raises:
            UsageError: if it cannot.
        """

    @abstractmethod
    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        """Load the network.

        Raises:
            UsageError: if `source` and `constraint` contradict each other.
            InputError: if the file cannot be read, or does not fit `constraint`.
            ResourceError: if weights cannot be downloaded.
            MissingPackageError: if a package is not installed.
        """


class CheckpointFormat(ABC):
    """The parameter names of one library's DenseNets, and what is known about the images that its networks take.

    `head` says what its code does behind the last norm. Several formats may recognise the same names; each renames what
    the one before it made.
    """

    head: ClassVar[HeadConventions] = HeadConventions()
    reads: ClassVar[tuple[str, ...]] = ()
    """Names of tensors that are not weights of the network, and that `facts` uses."""

    @abstractmethod
    def recognises(self, names: Collection[str]) -> bool:
        """Whether `names`, of the parameters and buffers without wrapping prefixes, are of this format."""

    @abstractmethod
    def renames(self, names: Collection[str]) -> Mapping[str, str | None]:
        """Return the torchvision name of every name that differs from it; None if it is not part of the network."""

    def facts(self, tensors: Mapping[str, Tensor | Array]) -> ModelFacts:  # noqa: ARG002 - most formats know it by themselves
        """Return what is known about the images and outputs of a network with these `tensors`."""
        return ModelFacts()

    def notes(self, tensors: Mapping[str, Tensor | Array]) -> tuple[str, ...]:  # noqa: ARG002
        """Return remarks on how the library's own code prepares images and uses a network with these `tensors`."""
        return ()

    def library_output(self, outputs: Tensor, tensors: Mapping[str, Tensor | Array]) -> Tensor:  # noqa: ARG002
        """Return what the library's own module makes of the network's `outputs`, where it goes on with them."""
        return outputs


UNVERIFIED: Final = "verify with --check FILE.npz"
"""The end of a note on what weights do not show."""

sources: Final[Registry[type[Source]]] = Registry("source", package="densenet_deploy.sources")
formats: Final[Registry[type[CheckpointFormat]]] = Registry("checkpoint format", package="densenet_deploy.sources")
