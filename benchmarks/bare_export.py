"""A minimal program that exports a DenseNet: `torch.onnx.export` and a save.

`export_time.py` runs it as `bare_export.py VARIANT FILE` and compares it with `densenet-deploy export`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from densenet_deploy.models.build import build_model
from densenet_deploy.variants import find_variant


def export_plainly(module: torch.nn.Module, size: int, path: Path) -> None:
    """Export `module` with PyTorch's own exporter, for square images of `size` pixels and any batch size."""
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["input"],
        output_names=["logits"],
    )
    assert program is not None
    program.save(path)


def main(variant_name: str, file: str) -> None:
    variant = find_variant(variant_name)
    export_plainly(build_model(variant.spec, seed=0).eval(), variant.preprocessing.image_size, Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
