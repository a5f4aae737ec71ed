"""What a build is asked for: where its files go, and the graph that it starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest

from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.errors import InputError, ModelFileError, UnknownNameError
from densenet_deploy.model import Model
from densenet_deploy.workflows.build_request import BuildRequest, graph_source, is_parsed
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.load import load

FP16 = BuildOptions("rtx", "fp16")


def request(source: Any, options: BuildOptions = FP16, **stated: Any) -> BuildRequest:
    out = stated.pop("out", None)
    return BuildRequest.of(source, options, None, stated, out=out)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("chest.onnx", "chest"), ("chest.fp32.onnx", "chest"), ("chest.int8.tensorrt.onnx", "chest"), ("a.b.pth", "a.b")],
)
def test_files_are_named_after_the_source_without_its_precision(tmp_path: Path, name: str, stem: str) -> None:
    (tmp_path / name).touch()  # files go beside one that exists
    found = request(tmp_path / name)
    assert (found.path, found.stem) == (tmp_path / name, stem)
    assert found.engine == tmp_path / f"{stem}.fp16.engine"
    assert found.onnx == tmp_path / f"{stem}.fp16.onnx"
    assert found.exported == tmp_path / f"{stem}.onnx"


def test_a_name_of_a_precision_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        request(tmp_path / ".fp16.onnx")
    assert caught.value.subject == str(tmp_path / ".fp16.onnx")


def test_a_model_is_named_as_it_is_and_lies_where_its_file_does(tiny_onnx: Path, checkpoint: Path) -> None:
    known = load(tiny_onnx)
    assert (request(known).source, request(known).path, request(known).stem) == (known, tiny_onnx, "tiny")
    module = load(checkpoint).module
    found = request(module, image_size=32)
    assert isinstance(found.source, Model)
    assert (found.source.module, found.source.manifest.preprocessing.image_size) == (module, 32)
    assert (found.path, found.stated, found.is_network) == (None, {}, True)
    stated = request(known, task="multilabel")
    assert (stated.source.manifest.task, stated.stated) == ("multilabel", {})


def test_a_name_is_that_of_a_network() -> None:
    assert (request(None).source, request(None, variant="169").source) == ("121", "169")
    with pytest.raises(UnknownNameError) as caught:
        request("12l")
    assert caught.value.subject == "12l"


def test_a_file_is_parsed_here_unless_it_states_and_holds_the_precision(tiny_onnx: Path, tmp_path: Path) -> None:
    assert not is_parsed(tiny_onnx, "fp32")
    assert is_parsed(tiny_onnx, "fp16")
    assert is_parsed(tmp_path / "weights.pth", "fp32")
    model = onnx.load(tiny_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "plain.onnx")
    assert is_parsed(tmp_path / "plain.onnx", "fp32")


def test_a_checkpoint_has_no_graph_and_has_to_exist(checkpoint: Path, tmp_path: Path) -> None:
    assert graph_source(request(checkpoint)) is None
    with pytest.raises(InputError) as caught:
        graph_source(request(tmp_path / "missing.pth"))
    assert caught.value.subject == str(tmp_path / "missing.pth")


def test_a_file_of_openvino_is_not_a_graph_for_tensorrt(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text('<?xml version="1.0"?><net name="n" version="11"></net>')
    path.with_suffix(".bin").touch()
    with pytest.raises(ModelFileError) as caught:
        graph_source(request(path))
    assert caught.value.subject == str(path)


@pytest.mark.parametrize(
    ("changes", "stated", "is_found"),
    [
        ({}, {}, True),
        ({}, {"num_classes": 1000}, False),
        ({"variant": "169"}, {}, False),
        ({"precision": "fp16"}, {}, False),
        (None, {}, False),
    ],
)
def test_what_an_earlier_export_of_the_network_left_is_built_from(
    tiny_onnx: Path, tmp_path: Path, changes: dict[str, str] | None, stated: dict[str, Any], is_found: bool
) -> None:
    exported, model = tmp_path / "densenet121.onnx", load(tiny_onnx)
    if changes is not None:
        if "precision" in changes:
            model = cast(model, CastOptions("fp16"), out=tmp_path / "half.onnx")
        manifest = dataclasses.replace(model.manifest, **{"variant": "121", **changes})
        Model.from_onnx("densenet121", model.onnx, manifest).save(exported)
    found = graph_source(request("121", out=f"{tmp_path}/", **stated))
    assert (found is not None) == is_found
    if found is not None:
        assert (found.name, found.path, found.manifest.variant) == ("densenet121", exported, "121")
