"""Networks of every family, exported once for all tests."""

from __future__ import annotations

from tests.exported_networks import exported

__all__ = ["exported"]
