"""A family of DenseNets: the plug-in point of this package, one file each.

To add a family, register a class in a new file::

    @families.register("mine")
    class MineFamily(Family):
        names = ("mine-1", "mine-2")

        def find(self, name: str) -> Variant | None: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.registry import Registry
from densenet_deploy.variants.spec import DenseNetSpec


@dataclass(frozen=True)
class Variant:
    """A DenseNet with a name, and how images are prepared for it."""

    name: str
    spec: DenseNetSpec
    preprocessing: Preprocessing

    @property
    def artifact_name(self) -> str:
        """The name its files start with: `densenet121`, `densenet-cifar-bc-100-12`."""
        return f"densenet{self.name}" if self.name.isdigit() else f"densenet-{self.name}"


class Family(ABC):
    """Variants that share a naming rule. `names` are the ones worth listing; `find` may know more."""

    names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def find(self, name: str) -> Variant | None:
        """Return the variant called `name` (lower case), or None if the name is not of this family.

        Raises:
            UsageError: if the name is of this family, but no such network exists.
        """

    def variants(self) -> list[Variant]:
        """Return the listed variants."""
        return [variant for name in self.names if (variant := self.find(name)) is not None]

    def like(self, spec: DenseNetSpec) -> Variant | None:
        """Return the variant that has the architecture of `spec`, if this family holds one."""
        return next((variant for variant in self.variants() if variant.spec.same_architecture(spec)), None)


families: Final[Registry[type[Family]]] = Registry("DenseNet family", package="densenet_deploy.variants")
