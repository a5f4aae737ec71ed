"""Build an engine with TensorRT-RTX and nothing else: `python bare_build.py MODEL.onnx ENGINE`.

The baseline of `build_time.py`: the shortest program that builds the same engine.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx as trt


def main(onnx: Path, engine: Path) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.read_bytes()):
        raise SystemExit(parser.get_error(0).desc())
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    shape = (1, *tuple(network.get_input(0).shape)[1:])
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    engine.write_bytes(builder.build_serialized_network(network, config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
