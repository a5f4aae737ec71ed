"""The least program that exports a DenseNet: PyTorch's own `torch.onnx.export` and a save, and nothing else.

`export_time.py` runs it as `bare_export.py VARIANT FILE`, against `densenet-deploy export`.
"""

from __future__ import annotations

import sys

import torch

from densenet_deploy.models.build import build_model
from densenet_deploy.variants import find_variant


def main(variant_name: str, file: str) -> None:
    variant = find_variant(variant_name)
    size = variant.preprocessing.image_size
    program = torch.onnx.export(
        build_model(variant.spec, seed=0).eval(),
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["input"],
        output_names=["logits"],
    )
    assert program is not None
    program.save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
