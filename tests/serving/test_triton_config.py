"""`config.pbtxt`: every field where Triton's own message has it, and text that its parser reads."""

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from densenet_deploy.errors import UsageError
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.serving.triton_config import ModelConfig, ServedTensor, Step

IMAGES = ServedTensor("input", "float32", (3, -1, -1))
LOGITS = ServedTensor("logits", "float16", (10,), labels=True)
VECTOR = ServedTensor("vector", "float32", (10,))


def parsed(config: ModelConfig) -> model_config_pb2.ModelConfig:
    return text_format.Parse(config.to_text(), model_config_pb2.ModelConfig())


def test_a_network_is_described_field_by_field() -> None:
    config = ModelConfig(
        name="a.b-c_1",
        backend="python",
        file="model.py",
        max_batch=8,
        inputs=(IMAGES,),
        outputs=(LOGITS,),
        delay_us=1500,
        instances=2,
        device="gpu",
        parameters={"file": 'model "x".onnx'},
        warm_up=(32, 48),
        remark="Read me.",
    )
    found = parsed(config)
    assert config.to_text().startswith("# Read me.\n")
    assert (found.name, found.backend, found.platform) == ("a.b-c_1", "python", "")
    assert (found.default_model_filename, found.max_batch_size) == ("model.py", 8)
    (given,), (answer,) = found.input, found.output
    assert (given.name, given.data_type, list(given.dims)) == ("input", model_config_pb2.TYPE_FP32, [3, -1, -1])
    assert (answer.data_type, list(answer.dims), answer.label_filename) == (
        model_config_pb2.TYPE_FP16,
        [10],
        "labels.txt",
    )
    (group,) = found.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 2)
    assert found.dynamic_batching.max_queue_delay_microseconds == 1500
    assert found.version_policy.latest.num_versions == 1
    assert found.parameters["file"].string_value == 'model "x".onnx'
    assert [warm_up.batch_size for warm_up in found.model_warmup] == [1, 8]
    zeros = found.model_warmup[0].inputs["input"]
    assert (zeros.data_type, list(zeros.dims), zeros.zero_data) == (model_config_pb2.TYPE_FP32, [3, 32, 48], True)


@pytest.mark.parametrize(
    ("max_batch", "delay_us", "batches", "warm_ups"),
    [(1, 1000, False, [1]), (2, 1000, True, [1, 2]), (2, None, False, [1, 2]), (0, 1000, False, [0])],
)
def test_requests_are_put_together_where_that_can_be(max_batch, delay_us, batches, warm_ups) -> None:
    found = parsed(ModelConfig("a", "onnxruntime", "m", max_batch, (VECTOR,), (LOGITS,), delay_us=delay_us, warm_up=()))
    assert found.HasField("dynamic_batching") == batches
    assert [warm_up.batch_size for warm_up in found.model_warmup] == warm_ups


def test_no_wait_is_written_as_such() -> None:
    config = ModelConfig("a", "onnxruntime", "m", 4, (VECTOR,), (LOGITS,), delay_us=0)
    assert "max_queue_delay_microseconds: 0\n" in config.to_text()
    assert parsed(config).HasField("dynamic_batching")
    assert not parsed(config).model_warmup


def test_an_ensemble_has_steps_and_nothing_of_its_own() -> None:
    steps = (Step("one", {"image": "image"}, {"input": "x"}), Step("two", {"input": "x"}, {"logits": "scores"}))
    found = parsed(ModelConfig("a", "ensemble", None, 4, (IMAGES,), (LOGITS,), delay_us=5, steps=steps))
    assert (found.platform, found.backend, found.default_model_filename) == ("ensemble", "", "")
    assert not found.instance_group
    assert not found.HasField("dynamic_batching")
    first, second = found.ensemble_scheduling.step
    assert (first.model_name, first.model_version, dict(first.input_map)) == ("one", -1, {"image": "image"})
    assert dict(first.output_map) == {"input": "x"}
    assert dict(second.output_map) == {"logits": "scores"}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", 11), ("float16", 10), ("uint8", 2), ("int64", 9), ("int32", 8), ("int8", 6), ("bool", 1)],
)
def test_types_are_those_of_the_protocol(dtype, expected) -> None:
    spec = TensorSpec("x", (None, 3), np.dtype(dtype))
    found = parsed(ModelConfig("a", "python", "m", 2, (ServedTensor.of(spec, is_batched=True),), ()))
    assert (found.input[0].data_type, list(found.input[0].dims)) == (expected, [3])


def test_without_batching_the_batch_is_a_dimension_like_others() -> None:
    spec = TensorSpec("x", (4, None, 3), np.dtype("float32"))
    assert ServedTensor.of(spec, is_batched=False).dims == (4, -1, 3)
    assert ServedTensor.of(spec, is_batched=True).dims == (-1, 3)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b", "ä"])
def test_a_name_that_no_url_takes_is_refused(name) -> None:
    with pytest.raises(UsageError) as caught:
        ModelConfig(name, "python", "m", 1, (), ())
    assert caught.value.subject == f"name={name}"


@pytest.mark.parametrize("name", ["a/b", "größe", 'q"uote', "a\\b", "a\nb", "\U0001f600"])
def test_any_name_of_a_tensor_is_read_back(name) -> None:
    found = parsed(ModelConfig("a", "onnxruntime", "m", 2, (ServedTensor(name, "float32", (3,)),), ()))
    assert found.input[0].name == name


def test_a_number_per_image_has_a_dimension_for_the_server_alone() -> None:
    spec = TensorSpec("best", (None,), np.dtype("int64"))
    served = ServedTensor.of(spec, is_batched=True)
    (output,) = parsed(ModelConfig("a", "onnxruntime", "m", 2, (), (served,))).output
    assert (list(output.dims), output.HasField("reshape"), list(output.reshape.shape)) == ([1], True, [])


@pytest.mark.parametrize(("profiles", "expected"), [(1, []), (2, ["0", "1"])])
def test_all_profiles_of_an_engine_are_named(profiles, expected) -> None:
    found = parsed(ModelConfig("a", "tensorrt", "m", 2, (), (), profiles=profiles))
    assert list(found.instance_group[0].profile) == expected
