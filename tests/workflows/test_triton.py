"""`triton`: repositories that agree with the graphs, for every backend, and what cannot be served is refused."""

import json
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

import densenet_deploy as dd
from densenet_deploy.artifacts import sha256_of
from densenet_deploy.errors import DeviceError, ModelFileError, OutputExistsError, UnknownNameError, UsageError
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.runtime.sidecar import Sidecar, TensorFacts, write_records


def config_of(folder: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def dims(tensors) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in tensors}


def agrees_with_graph(config: model_config_pb2.ModelConfig, model: Path) -> None:
    """Check names, types and sizes against ONNX's own reading of the file."""
    graph, is_batched = onnx.load(model).graph, config.max_batch_size > 0
    types = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.UINT8: "TYPE_UINT8"}
    for served, values in ((config.input, graph.input), (config.output, graph.output)):
        assert [tensor.name for tensor in served] == [value.name for value in values]
        for tensor, value in zip(served, values, strict=True):
            kind = value.type.tensor_type
            sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
            assert list(tensor.dims) == (sizes[1:] if is_batched else sizes)
            assert model_config_pb2.DataType.Name(tensor.data_type) == types[kind.elem_type]


def test_a_network_is_served_by_each_backend_that_reads_it(digits_onnx, tmp_path) -> None:
    options = dd.TritonOptions(("onnxruntime", "openvino", "python"), max_batch=8, max_delay_ms=2.5, instances=2)
    report = dd.triton([digits_onnx], tmp_path / "repo", options, name="chest")
    assert [(one.name, one.backend, one.max_batch) for one in report.models] == [
        ("chest_onnxruntime", "onnxruntime", 8),
        ("chest_openvino", "openvino", 8),
        ("chest_python", "python", 8),
    ]
    for one in report.models:
        folder = tmp_path / "repo" / one.name
        config = config_of(folder)
        assert (config.name, config.backend) == (one.name, one.backend)
        agrees_with_graph(config, folder / "1" / "model.onnx")
        assert (folder / "1" / "model.onnx").read_bytes() == digits_onnx.read_bytes()
        assert config.dynamic_batching.max_queue_delay_microseconds == 2500
        assert config.instance_group[0].count == 2
        assert config.output[0].label_filename == "labels.txt"
        assert (folder / "labels.txt").read_text().split() == list("0123456789")
        assert (folder / "1" / config.default_model_filename).exists()
    files = {path for path in (tmp_path / "repo").rglob("*") if path.is_file()}
    assert set(report.files) == files
    assert json.loads(json.dumps(report.to_json()))["repository"] == str(tmp_path / "repo")
    assert "tritonserver --model-repository" in report.to_text()


def test_one_model_is_given_without_a_list(digits_onnx, tmp_path) -> None:
    for number, one in enumerate((digits_onnx, str(digits_onnx))):
        assert [model.name for model in dd.triton(one, tmp_path / str(number)).models] == ["digits"]


def test_the_backend_is_that_of_the_file(digits_onnx, tmp_path) -> None:
    report = dd.triton([digits_onnx], tmp_path)
    assert [(one.name, one.backend) for one in report.models] == [("digits", "onnxruntime")]
    for_openvino = dd.load(digits_onnx)
    for_openvino = for_openvino.replaced(
        manifest=dd.load(digits_onnx).manifest.__class__(
            **{**vars(for_openvino.manifest), "precision": "int8", "recipe": "openvino"}
        )
    )
    report = dd.triton([for_openvino], tmp_path, name="other")
    assert [(one.name, one.backend) for one in report.models] == [("other", "openvino")]
    kept = dd.load(tmp_path / "other" / "1" / "model.onnx").manifest
    assert kept.recipe == "openvino"  # facts in memory are in the file that is served


def test_an_ensemble_leads_from_images_to_scores(digits_onnx, tmp_path) -> None:
    dd.triton([digits_onnx], tmp_path, dd.TritonOptions(("python",), ensemble=True))
    whole = config_of(tmp_path / "digits_classify")
    assert whole.platform == "ensemble"
    assert dims(whole.input) == {"image": [-1, -1, 3]}
    assert dims(whole.output) == {"scores": [10], "best": [1]}
    known = {"image"}
    for step in whole.ensemble_scheduling.step:
        config = config_of(tmp_path / step.model_name)
        assert set(step.input_map) == {tensor.name for tensor in config.input}
        assert set(step.output_map) <= {tensor.name for tensor in config.output}
        assert set(step.input_map.values()) <= known
        known |= set(step.output_map.values())
    assert {"scores", "best"} <= known
    assert (tmp_path / "digits_classify" / "1").is_dir()
    assert (tmp_path / "digits_classify" / "labels.txt").exists()
    facts = json.loads((tmp_path / "digits_images" / "1" / "facts.json").read_text())
    assert facts["preprocessing"]["image_size"] == 32
    assert facts["task"] == "multiclass"


def graph_file(path: Path, shape, outputs, *, dtype=TensorProto.FLOAT, tail="Identity") -> Path:
    """A third-party graph: the mean over the sides, or a sigmoid of it, as each of `outputs`."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["pooled"], keepdims=0)]
    nodes += [helper.make_node(tail, ["pooled"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, [shape[0], shape[1]]) for name in outputs],
        [axes],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_a_third_party_graph_with_free_sides_and_two_outputs(tmp_path) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 3, "h", "w"], ["a", "b"])
    dd.triton([model], tmp_path / "repo")
    config = config_of(tmp_path / "repo" / "m")
    agrees_with_graph(config, model)
    assert dims(config.input) == {"x": [3, -1, -1]}
    assert dims(config.output) == {"a": [3], "b": [3]}
    assert list(config.model_warmup[0].inputs["x"].dims) == [3, 224, 224]
    assert not (tmp_path / "repo" / "m" / "labels.txt").exists()


def test_a_fixed_batch_is_answered_as_it_comes_and_said(tmp_path) -> None:
    model = graph_file(tmp_path / "m.onnx", [4, 3, 8, 8], ["a"])
    report = dd.triton([model], tmp_path / "repo", image_size=8)
    config = config_of(tmp_path / "repo" / "m")
    agrees_with_graph(config, model)
    assert (config.max_batch_size, dims(config.input)) == (0, {"x": [4, 3, 8, 8]})
    assert not config.HasField("dynamic_batching")
    assert any("fixed" in note for note in report.notes)
    with pytest.raises(ModelFileError):
        dd.triton([model], tmp_path / "repo2", dd.TritonOptions(ensemble=True), image_size=8)
    assert not (tmp_path / "repo2").exists()


def test_a_multilabel_ensemble_says_which_labels_hold(tmp_path) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 3, 8, 8], ["a"], tail="Sigmoid")
    facts = {"labels": ("x", "y", "z"), "task": "multilabel", "thresholds": (0.2, 0.5, 0.7)}
    dd.triton([model], tmp_path / "repo", dd.TritonOptions(ensemble=True), **facts)
    assert dims(config_of(tmp_path / "repo" / "m_classify").output) == {"scores": [3], "positive": [3]}
    kept = json.loads((tmp_path / "repo" / "m_scores" / "1" / "facts.json").read_text())
    assert (kept["thresholds"], kept["activation"]) == ([0.2, 0.5, 0.7], "sigmoid")


@pytest.mark.slow
def test_a_graph_of_pixels_is_served_as_such(tmp_path) -> None:
    pixels = tmp_path / "pixels.onnx"
    dd.export(
        architecture=dd.Architecture(4, (1, 1), 8, stem="cifar"),
        num_classes=3,
        image_size=16,
        options=dd.ExportOptions(input="uint8"),
        out=pixels,
    )
    dd.triton([pixels], tmp_path / "repo", dd.TritonOptions(ensemble=True))
    config = config_of(tmp_path / "repo" / "pixels")
    agrees_with_graph(config, pixels)
    assert dims(config.input) == {"input": [16, 16, 3]}
    prepared = config_of(tmp_path / "repo" / "pixels_images").output[0]
    assert (prepared.data_type, list(prepared.dims)) == (model_config_pb2.TYPE_UINT8, [16, 16, 3])


def engine_file(folder: Path, flavour: str, *profiles: BatchProfile) -> Path:
    engine = folder / "m.engine"
    engine.write_bytes(b"plan")
    record = Sidecar(
        sha256=sha256_of(engine),
        size=4,
        flavour=flavour,
        version="10.1",
        targets=("8.7",),
        precision="fp16",
        onnx_sha256="0",
        inputs=(TensorFacts("input", "float32", (None, 3, 8, 8)),),
        outputs=(TensorFacts("logits", "float32", (None, 5)),),
        profiles=profiles or (BatchProfile(1, 4, 6),),
    )
    write_records(engine, {record.sha256: record})
    return engine


def test_an_engine_is_served_by_what_its_sidecar_says(tmp_path) -> None:
    engine = engine_file(tmp_path, "tensorrt", BatchProfile(1, 4, 6), BatchProfile(1, 8, 12))
    report = dd.triton([engine], tmp_path / "repo")
    config = config_of(tmp_path / "repo" / "m")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 12)
    assert (dims(config.input), dims(config.output)) == ({"input": [3, 8, 8]}, {"logits": [5]})
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert (tmp_path / "repo" / "m" / "1" / "model.plan").read_bytes() == b"plan"
    assert report.models[0].source == engine


@pytest.mark.parametrize(
    ("profiles", "largest"),
    [([(8, 8), (1, 4)], 4), ([(1, 4), (5, 8)], 8), ([(1, 4), (6, 8)], 4), ([(1, 4), (2, 8)], 8)],
)
def test_the_server_makes_no_batch_that_no_profile_accepts(profiles, largest, tmp_path) -> None:
    engine = engine_file(tmp_path, "tensorrt", *(BatchProfile(least, most, most) for least, most in profiles))
    dd.triton([engine], tmp_path / "repo", dd.TritonOptions(("tensorrt", "python")))
    found = config_of(tmp_path / "repo" / "m_tensorrt")
    assert (found.max_batch_size, list(found.instance_group[0].profile)) == (largest, ["0", "1"])
    assert config_of(tmp_path / "repo" / "m_python").max_batch_size == 8
    assert not config_of(tmp_path / "repo" / "m_python").instance_group[0].profile


def test_an_engine_that_takes_no_single_image_is_refused(tmp_path) -> None:
    engine = engine_file(tmp_path, "tensorrt", BatchProfile(2, 4, 6))
    with pytest.raises(ModelFileError) as caught:
        dd.triton([engine], tmp_path / "repo")
    assert "no batch below 2" in caught.value.why
    dd.triton([engine], tmp_path / "repo", dd.TritonOptions(("python",)))


def test_weights_in_another_file_are_served_with_the_graph(tmp_path) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 3, 8, 8], ["a"])
    graph = onnx.load(model)
    data = helper.make_tensor("w", TensorProto.FLOAT, [3], b"0" * 12, raw=True)
    graph.graph.initializer.append(data)
    graph.graph.node[-1].CopyFrom(helper.make_node("Add", ["pooled", "w"], ["a"]))
    onnx.save(graph, model, save_as_external_data=True, location="w.bin", size_threshold=1)
    dd.triton([model], tmp_path / "repo")
    version = tmp_path / "repo" / "m" / "1"
    assert (version / "w.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()
    assert open_runner(version / "model.onnx").outputs[0].name == "a"


@pytest.mark.parametrize("shape", [[], [2]])
def test_an_output_without_the_batch_takes_batching_away_and_no_more(shape, tmp_path) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 3, 8, 8], ["a"])
    graph = onnx.load(model)
    graph.graph.initializer.append(helper.make_tensor("c", TensorProto.FLOAT, shape, [1.0] * (2 if shape else 1)))
    graph.graph.node.append(helper.make_node("Identity", ["c"], ["w"]))
    graph.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, shape))
    onnx.save(graph, model)
    report = dd.triton([model], tmp_path / "repo", image_size=8)
    config = config_of(tmp_path / "repo" / "m")
    assert (config.max_batch_size, dims(config.input)) == (0, {"x": [-1, 3, 8, 8]})
    assert dims(config.output) == {"a": [-1, 3]} | ({"w": shape} if shape else {})
    assert list(config.model_warmup[0].inputs["x"].dims) == [1, 3, 8, 8]
    assert any("w is a single number" in note for note in report.notes) == (not shape)


def test_a_label_of_two_lines_takes_one(tmp_path) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 3, 8, 8], ["a"])
    dd.triton([model], tmp_path / "repo", labels=("x\ny", "b, c", "z"))
    assert (tmp_path / "repo" / "m" / "labels.txt").read_text() == "x y\nb, c\nz\n"


def test_engines_that_triton_does_not_run_are_refused(tmp_path) -> None:
    with pytest.raises(DeviceError) as caught:
        dd.triton([engine_file(tmp_path, "rtx")], tmp_path / "repo")
    assert "TensorRT-RTX" in caught.value.why
    bare = tmp_path / "bare.engine"
    bare.write_bytes(b"plan")
    with pytest.raises(ModelFileError) as caught:
        dd.triton([bare], tmp_path / "repo")
    assert "bare.engine.json" in caught.value.why
    assert not (tmp_path / "repo").exists()


def test_a_folder_is_replaced_by_force_alone_and_whole(digits_onnx, tmp_path) -> None:
    dd.triton([digits_onnx], tmp_path)
    left = tmp_path / "digits" / "1" / "old.bin"
    left.write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        dd.triton([digits_onnx], tmp_path)
    assert left.exists()
    dd.triton([digits_onnx], tmp_path, force=True)
    assert not left.exists()
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputExistsError):
        dd.triton([digits_onnx], tmp_path, name="mine", force=True)  # not a model of a repository
    with pytest.raises(OutputExistsError):
        dd.triton([digits_onnx], digits_onnx)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"backends": ("onnx",)}, UnknownNameError),
        ({"backends": ("python", "python")}, UsageError),
        ({"max_batch": 0}, UsageError),
        ({"max_batch": 4097}, UsageError),
        ({"max_delay_ms": -0.1}, UsageError),
        ({"instances": 0}, UsageError),
        ({"device": "tpu"}, UnknownNameError),
    ],
)
def test_options_out_of_range_are_refused(options, error) -> None:
    with pytest.raises(error):
        dd.TritonOptions(**options)


def test_what_cannot_be_served_is_refused_before_anything_is_written(digits_onnx, tmp_path) -> None:
    repository = tmp_path / "repo"
    for models, options, name, error in (
        ([], {}, None, UsageError),
        ([digits_onnx, digits_onnx], {}, None, UsageError),
        ([digits_onnx, digits_onnx], {}, "one", UsageError),
        ([digits_onnx], {"backends": ("tensorrt",)}, None, ModelFileError),
        ([digits_onnx], {}, "a/b", UsageError),
    ):
        with pytest.raises(error):
            dd.triton(models, repository, dd.TritonOptions(**options), name=name)
        assert not repository.exists()


def test_a_checkpoint_is_exported_first(tmp_path) -> None:
    weights = Path(__file__).parents[2] / "examples" / "digits" / "densenet_digits.safetensors"
    report = dd.triton([weights], tmp_path / "repo")
    served = tmp_path / "repo" / "densenet_digits" / "1" / "model.onnx"
    agrees_with_graph(config_of(tmp_path / "repo" / "densenet_digits"), served)
    assert [one.backend for one in report.models] == ["onnxruntime"]
    assert dd.load(served).manifest.labels == tuple("0123456789")


def test_a_file_that_was_adopted_is_served_as_adopted_and_said(tmp_path) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 3, 8, 8], ["a"], dtype=TensorProto.FLOAT16)
    report = dd.triton([model], tmp_path / "repo")
    served = tmp_path / "repo" / "m" / "1" / "model.onnx"
    agrees_with_graph(config_of(tmp_path / "repo" / "m"), served)
    assert served.read_bytes() != model.read_bytes()
    assert set(dd.load(model).notes) <= set(report.notes)
    assert report.notes
