"""Discover plug-ins: one file in a package registers one class, and nothing else has to be changed.

>>> fruits: Registry[type] = Registry("fruit")
>>> @fruits.register("apple")
... class Apple: ...
>>> fruits.names()
('apple',)
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from densenet_deploy.errors import UnknownNameError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one `kind` of plug-in.

    With `package`, all modules of that package are imported at the first lookup, so that adding a file adds its
    plug-in. Such modules keep heavy imports inside functions.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self._kind = kind
        self._package = package
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under `name`.

        Raises:
            UsageError: if another plug-in already has that name.
        """

        def add(item: T) -> T:
            if self._items.get(name, item) is not item:
                raise UsageError(name, f"is already a {self._kind}", "choose another name")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """Return the plug-in called `name`.

        Raises:
            UnknownNameError: naming the nearest known name.
        """
        self._discover()
        if name not in self._items:
            raise UnknownNameError.among(self._kind, name, self._items)
        return self._items[name]

    def names(self) -> tuple[str, ...]:
        """Return the known names, sorted."""
        return tuple(self.items())

    def items(self) -> dict[str, T]:
        """Return a copy of the table, sorted: name → plug-in."""
        self._discover()
        return dict(sorted(self._items.items()))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Forget, on leaving, what was registered inside."""
        before = self.items()
        try:
            yield
        finally:
            self._items = before

    def _discover(self) -> None:
        if self._package is None:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
        self._package = None  # only now: another thread, or a lookup after a failed import, must not see half of it
