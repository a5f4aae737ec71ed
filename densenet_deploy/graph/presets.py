"""Named orders of passes. A preset is an explicit tuple: what runs, and in which order, is read here."""

from __future__ import annotations

from typing import Final

EXACT: Final = ("remove-single-concat", "fold-batchnorm", "pool-before-conv", "concat-incremental")
"""What every exported or simplified file gets: rewrites that help each backend and change nothing but rounding."""
