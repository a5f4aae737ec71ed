"""One number of an architecture with several values, as a person writes it: `growth-rate=12,24,32,48`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.options import require_range
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec

_MOST_VALUES: Final = 12


def _depth(base: DenseNetSpec, value: str) -> dict[str, Any]:
    factor = require_range("depth", float(value), 0.01, 16.0)
    return {"blocks": tuple(max(1, round(layers * factor)) for layers in base.blocks)}


_CHANGES: Final[Mapping[str, Callable[[DenseNetSpec, str], dict[str, Any]]]] = {
    "growth-rate": lambda _, value: {"growth_rate": int(value)},
    "compression": lambda _, value: {"compression": float(value)},
    "bn-size": lambda _, value: {"bn_size": int(value)},
    "init-features": lambda _, value: {"init_features": int(value)},
    "depth": _depth,
    "variant": lambda base, value: {
        **find_variant(value).spec.to_facts(),
        "num_classes": base.num_classes,
        "head": base.head,
        "in_channels": base.in_channels,
    },
}


@dataclass(frozen=True)
class Sweep:
    """Which number takes which values, as written."""

    name: str
    values: tuple[str, ...]
    option: str = "sweep"

    @classmethod
    def parse(cls, text: str, option: str = "sweep") -> Sweep:
        """Read `growth-rate=12,24,32,48`, the value of `--option`.

        Raises:
            UnknownNameError: if no number of that name can be changed.
            UsageError: if values are missing, or too many.
        """
        name, _, words = text.partition("=")
        if name not in _CHANGES:
            raise UnknownNameError.among(option, name, _CHANGES)
        values = tuple(word.strip() for word in words.split(",") if word.strip())
        if not 1 <= len(values) <= _MOST_VALUES:
            fix = f"write 1 to {_MOST_VALUES}, such as --{option} growth-rate=12,24,32,48"
            raise UsageError(f"--{option} {text}", f"has {len(values)} values", fix)
        return cls(name, values, option)

    def specs(self, base: DenseNetSpec) -> dict[str, DenseNetSpec]:
        """Return value → `base` with that value.

        Raises:
            UsageError: if a value is not a number, or out of range.
        """
        return {value: dataclasses.replace(base, **self.changes(base, value)) for value in self.values}

    def changes(self, base: DenseNetSpec, value: str) -> dict[str, Any]:
        """Return what `value` changes in `base`, by the names of the spec.

        Raises:
            UsageError: if it is not a number, or out of range.
        """
        try:
            return _CHANGES[self.name](base, value)
        except ValueError as exc:
            fix = "write numbers, separated by commas"
            raise UsageError(f"--{self.option} {self.name}={value}", "is not a number", fix) from exc
