"""What `tune` starts from: a file where one holds the same, else a model in memory, or the name of a network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.artifacts import sha256_of
from densenet_deploy.errors import OutputExistsError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.samples import natural_images
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.tune.cache import ResultCache
from densenet_deploy.workflows.tune.candidates import PrecisionOption
from densenet_deploy.workflows.tune.models import BuildFailure, ModelBuilder, Source
from tests.pruning.test_reconstruction import weights_of


def test_a_file_is_its_own_source_and_its_weights_are_its_bytes(tiny_onnx: Path, checkpoint: Path) -> None:
    for path, is_float_file in ((tiny_onnx, True), (checkpoint, False)):
        source = Source.of(str(path))
        assert source == Source(path.stem, path)
        assert (source.is_float_file, source.weights, source.notes) == (is_float_file, sha256_of(path), ())


def test_a_network_has_no_weights() -> None:
    source = Source.of("cifar-bc-10-4")
    assert source == Source("densenet-cifar-bc-10-4", variant="cifar-bc-10-4")
    assert (source.is_float_file, source.weights) == (False, None)


def test_a_model_is_its_file_unless_facts_were_stated(tiny_onnx: Path) -> None:
    model = load(tiny_onnx)
    assert Source.of(model) == Source("tiny", tiny_onnx)
    stated = Source.of(model, task="multilabel")
    assert (stated.path, stated.model.manifest.task) == (None, "multilabel")
    assert stated.weights == sha256_of(tiny_onnx)


def test_a_module_has_the_weights_that_its_facts_state(checkpoint: Path) -> None:
    module = load(checkpoint)
    source = Source.of(module)
    assert (source.path, source.model) == (None, module)
    assert source.weights == module.manifest.weights.sha256 is not None
    assert dataclasses.replace(source, model=module.replaced(manifest=None)).weights is None


def test_half_weights_are_tuned_from_their_float32_form(tiny_onnx: Path, tmp_path: Path) -> None:
    path = cast(tiny_onnx, CastOptions("fp16"), out=tmp_path / "tiny.fp16.onnx").path
    source = Source.of(path)
    assert (source.path, source.stem, source.model.precision) == (None, "tiny", "fp32")
    assert "fp16" in source.notes[-1]


def test_a_precision_that_could_not_be_written_is_named() -> None:
    failure = BuildFailure("net", PrecisionOption("int8.openvino", "int8", ("openvino",)), "it gains nothing")
    assert str(failure) == "net in int8.openvino is not tried: it gains nothing"


@pytest.mark.filterwarnings("ignore::densenet_deploy.UntrainedWeightsWarning")
def test_a_pruned_network_replaces_one_that_was_made_with_other_options(tmp_path: Path) -> None:
    """A file of somebody else at its path is left alone."""
    spec = DenseNetSpec(growth_rate=4, blocks=(2,), init_features=8, bn_size=2, stem="cifar", num_classes=5)
    source = export(load(weights_of(spec), image_size=16), out=tmp_path / "net.onnx").path
    images = tmp_path / "images.npy"
    np.save(images, np.concatenate(list(natural_images(40, Preprocessing.default(16), 3))))
    builder = ModelBuilder(tmp_path / "out", ResultCache(tmp_path / "state.json"), images)
    model, hashes = builder.float_model(Source.of(source)), set()
    for samples in (32, 40):
        form = PrecisionOption("pruned-0.5", "fp32", (), prune=PruneOptions(ratio=0.5, samples=samples))
        hashes.add(builder.build(model, form).sha256)
    assert len(hashes) == 2
    (tmp_path / "out" / "net.pruned-0.5.onnx").write_bytes(source.read_bytes())
    other = PrecisionOption("pruned-0.5", "fp32", (), prune=PruneOptions(ratio=0.5, samples=36))
    with pytest.raises(OutputExistsError):
        builder.build(model, other)
