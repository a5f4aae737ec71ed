"""Read an ONNX file into the onnx package, refusing what is broken or reaches outside its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from densenet_deploy.artifacts import onnx_metadata, os_errors_about, require_file
from densenet_deploy.errors import ModelFileError


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model with its external data, after checking it.

    Raises:
        InputError: if there is no such file.
        ModelFileError: if it is no valid ONNX model, or names external data outside its own folder.
    """
    require_file(path)
    onnx_metadata(path)  # refuses what is no ONNX envelope before a full parse
    try:
        with os_errors_about(path):
            model = onnx.load(path, load_external_data=False)
        _refuse_escaping_data(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except ModelFileError:
        raise
    except Exception as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ModelFileError(path, f"is no valid ONNX model: {reason}", "export or download it again") from exc
    return model


def image_size_of(model: onnx.ModelProto, path: Path) -> int:
    """Return the height and width in pixels of the pictures that `model` takes.

    Raises:
        ModelFileError: if it does not take one float (N, 3, S, S) input of fixed S.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3 or shapes[0][2] != shapes[0][3] or not shapes[0][2]:
        found = ", ".join(f"{value.name} {shape}" for value, shape in zip(inputs, shapes, strict=True)) or "no input"
        why = f"takes {found}, expected one (N, 3, S, S) input"
        raise ModelFileError(path, why, "give an image classifier in NCHW layout")
    return int(shapes[0][2])


def operators(model: onnx.ModelProto) -> Mapping[str, int]:
    """Count the nodes of `model` by operator, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def _refuse_escaping_data(model: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors stored outside the folder of the model: by `..`, an absolute path or a link."""
    folder = path.parent.resolve()
    for tensor in model.graph.initializer:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is None:
            continue
        target = path.parent / location
        is_plain = not PurePosixPath(location).is_absolute() and not PureWindowsPath(location).is_absolute()
        if not is_plain or ".." in Path(location).parts or target.resolve().parent != folder or target.is_symlink():
            why = f"keeps {tensor.name} outside its folder ({location})"
            raise ModelFileError(path, why, "put the data file beside the model")
        if not target.is_file():
            raise ModelFileError(path, f"its data file {location} is missing", "put the data file beside the model")
        if target.stat().st_nlink > 1:
            raise ModelFileError(
                path, f"its data file {location} is a hard link", "copy the data file beside the model"
            )
