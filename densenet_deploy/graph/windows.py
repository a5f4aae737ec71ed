"""What a convolution reads for each pixel of its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.nodes import constant

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """How the window of a 2-D convolution moves: (rows, columns) each, pads (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @classmethod
    def of(cls, conv: ir.Node) -> Window:
        """Return the window of `conv`, which must have constant weights (M, C, rows, columns) and explicit pads."""
        weight, ints = constant(conv.inputs[1]), conv.attributes.get_ints
        assert weight is not None
        return cls(
            weight.shape[2:],
            tuple(ints("strides", (1, 1))),  # type: ignore[arg-type]
            tuple(ints("dilations", (1, 1))),  # type: ignore[arg-type]
            tuple(ints("pads", (0, 0, 0, 0))),  # type: ignore[arg-type]
        )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the output for an input of this size.

        >>> Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1)).output_size(8, 7)
        (4, 4)
        """
        padded = (height + self.pads[0] + self.pads[2], width + self.pads[1] + self.pads[3])
        reach = [dilation * (size - 1) + 1 for dilation, size in zip(self.dilations, self.kernel, strict=True)]
        rows, columns = ((p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True))
        return rows, columns

    def patches(self, maps: Array, pixels: tuple[Array, Array, Array]) -> Array:
        """Return what is read of `maps` (N, C, H, W) for `pixels` (image, row, column): (pixels, C·kernel)."""
        top, left, bottom, right = self.pads
        padded = np.pad(maps, ((0, 0), (0, 0), (top, bottom), (left, right)))
        image, row, column = (array[:, None, None] for array in pixels)
        rows = row * self.strides[0] + (np.arange(self.kernel[0]) * self.dilations[0])[None, :, None]
        columns = column * self.strides[1] + (np.arange(self.kernel[1]) * self.dilations[1])[None, None, :]
        taken = padded[image, :, rows, columns]  # (pixels, kernel rows, kernel columns, C)
        return taken.transpose(0, 3, 1, 2).reshape(len(taken), -1)
