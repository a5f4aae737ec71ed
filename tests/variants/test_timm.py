"""timm's own DenseNets: numbers, names of parameters and outputs are those of the library."""

import pytest
import torch

from densenet_deploy.models.build import build_model, empty_model
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec

timm = pytest.importorskip("timm")


def test_variants_are_these():
    assert find_variant("densenetblur121d").spec == DenseNetSpec(stem="deep-blur")
    assert find_variant("264d").spec == DenseNetSpec(48, (6, 12, 64, 48), 96, stem="deep")
    assert find_variant("264d").preprocessing.interpolation == "bicubic"
    assert find_variant("densenet264") != find_variant("densenet264d")


@pytest.mark.parametrize("name", ["densenetblur121d", "densenet264d"])
def test_names_and_shapes_are_those_of_timm(name):
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    ours = empty_model(find_variant(name).spec).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("stem", ["deep", "deep-blur"])
def test_small_networks_compute_what_those_of_timm_do(stem):
    from timm.layers import BlurPool2d
    from timm.models.densenet import DenseNet

    aa_layer = BlurPool2d if stem == "deep-blur" else None
    theirs = DenseNet(growth_rate=4, block_config=(2, 3), num_classes=7, stem_type="deep", aa_layer=aa_layer).eval()
    ours = build_model(DenseNetSpec(4, (2, 3), 8, stem=stem, num_classes=7), seed=1)
    generator = torch.Generator().manual_seed(4)
    for name, tensor in ours.state_dict().items():
        if tensor.is_floating_point() and "norm" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 45, 61, generator=generator)
    with torch.inference_mode():
        # float32 rounding: the same operations, in other shapes of memory
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)
