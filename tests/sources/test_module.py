"""Modules in memory: known DenseNets are recognised by what they compute, every other module is taken as it is."""

import copy
import dataclasses
import sys

import pytest
import torch
import torchvision
from torch import nn

from densenet_deploy.errors import CheckpointError, InputError, UsageError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import WeightsOrigin
from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.sources import CheckpointFormat, Match, WeightsConstraint, formats, load
from densenet_deploy.sources.module import ModuleSource
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import find_variant, variant_for
from densenet_deploy.variants.spec import DenseNetSpec


@pytest.fixture(scope="module")
def torchvision_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=7).eval()


def changed(net, name, layer):
    other = copy.deepcopy(net)
    owner, _, leaf = name.rpartition(".")
    setattr(other.get_submodule(owner), leaf, layer)
    return other


def test_our_own_network_keeps_its_spec(model):
    loaded = load(model)
    assert loaded.module is model
    assert loaded.variant.spec == model.spec
    assert (loaded.output_names, loaded.facts.channels, loaded.notes) == (("logits",), 3, ())
    dropping = build_model(dataclasses.replace(model.spec, drop_rate=0.3, head="features"))
    assert load(dropping).variant.spec == dropping.spec
    assert load(dropping).output_names == ("features",)


def test_a_torchvision_network_is_recognised_with_its_classes(torchvision_net):
    loaded = load(torchvision_net)
    assert loaded.module is torchvision_net
    assert loaded.variant.spec == DenseNetSpec(4, (2, 2), 8, bn_size=2, num_classes=7)
    assert loaded.name == loaded.variant.artifact_name
    assert loaded.origin == WeightsOrigin("DenseNet in memory", weights_sha256(torchvision_net.state_dict()))
    assert (loaded.facts, loaded.output_names) == (ModelFacts(channels=3), ("logits",))


def test_an_arbitrary_linear_head_is_recognised(torchvision_net):
    assert load(changed(torchvision_net, "classifier", nn.Linear(16, 3))).variant.spec.num_classes == 3


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("features.pool0", nn.Identity()),
        ("features.denseblock1.denselayer1.relu1", nn.SiLU()),
        ("features.norm0", nn.BatchNorm2d(8, eps=0.5)),
    ],
)
def test_the_parameters_of_a_densenet_with_another_forward_are_not_called_one(torchvision_net, name, layer):
    if isinstance(layer, nn.BatchNorm2d):
        layer.load_state_dict(torchvision_net.get_submodule(name).state_dict())
    loaded = load(changed(torchvision_net, name, layer).eval())
    assert loaded.variant is None
    name = "densenet-custom-k4-b2.2-i8-c0.5-n2-imagenet"
    assert loaded.notes == (f"DenseNet has the parameters of {name}, but computes something else: taken as it is",)


@pytest.mark.parametrize(
    "head",
    [nn.Sequential(nn.Linear(16, 3), nn.Sigmoid()), nn.Sequential(nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 3))],
)
def test_a_head_that_computes_something_else_is_taken_as_it_is(torchvision_net, head):
    net = changed(torchvision_net, "classifier", head).eval()
    loaded = load(net)
    assert loaded.module is net
    assert (loaded.variant, loaded.name) == (None, "densenet")
    assert loaded.notes[0].endswith("but computes something else: taken as it is")


@pytest.mark.parametrize("head", [nn.Conv1d(16, 3, 1), nn.PReLU()])
def test_a_head_of_other_layers_is_taken_as_it_is(torchvision_net, head):
    loaded = load(changed(torchvision_net, "classifier", head).eval())
    assert (loaded.variant, loaded.name, loaded.notes) == (None, "densenet", ())


@pytest.mark.parametrize(
    ("head", "hidden", "bias"),
    [
        (nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 3)), "", True),
        (nn.Linear(16, 3, bias=False), "", False),
        (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)), "linear:8 relu", True),
        (nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3)), "norm", True),
    ],
)
def test_linear_heads_are_recognised(torchvision_net, head, hidden, bias):
    net = changed(torchvision_net, "classifier", head).eval()
    loaded = load(net)
    assert (loaded.module, loaded.notes) == (net, ())
    spec = loaded.variant.spec
    assert (spec.hidden, spec.bias, spec.num_classes) == (hidden, bias, 3)


def test_another_module_says_what_it_can():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3)

        def forward(self, images):
            maps = self.stem(images).mean((2, 3))
            return {"grade": maps[:, :3], "age": maps[:, 3:]}

    loaded = load(Net().eval())
    assert (loaded.name, loaded.variant, loaded.facts.channels) == ("net", None, 1)
    assert loaded.output_names == ("grade", "age")
    assert loaded.facts == ModelFacts(channels=1)


class Recording(DenseNet):
    """Our network, which keeps what it is given, and may return something else."""

    def __init__(self, spec, change=None):
        super().__init__(spec)
        self.change, self.given = change or (lambda logits: logits), []

    def forward(self, images):
        self.given.append((tuple(images.shape), torch.is_inference_mode_enabled()))
        return self.change(super().forward(images))


def recording(model, change=None):
    other = Recording(model.spec, change).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(("blocks", "size", "larger"), [((1,), 64, 96), ((1,) * 6, 125, 187)])
def test_it_is_compared_on_64_pixels_or_the_smallest_image_that_it_takes_and_on_half_as_many_more(blocks, size, larger):
    model = Recording(DenseNetSpec(growth_rate=2, blocks=blocks, init_features=8, num_classes=5)).eval()
    assert load(model).variant is not None
    assert model.given == [((1, 3, size, size), True), ((1, 3, larger, larger), True)]


def shifted(share):
    """Add a share of the largest logit to the first one."""

    def change(logits):
        moved = logits.clone()
        moved[0, 0] += share * logits.abs().max()
        return moved

    return change


def unlike(logits):
    raise RuntimeError("64 pixels do not suit me")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (None, True),
        *((shifted(share), True) for share in (0.9e-4, -0.9e-4)),
        *((shifted(share), False) for share in (1.1e-4, -1.1e-4)),
        (torch.zeros_like, False),
        (lambda logits: logits[:, :1].expand(1, 5)[:, :4], False),
        (lambda logits: logits[0], False),
        (lambda logits: {"logits": logits}, False),
        (unlike, False),
    ],
)
@pytest.mark.parametrize("bias", [0.0, -1000.0, 1000.0])
def test_it_is_ours_if_it_differs_by_a_ten_thousandth_of_the_largest_output_at_most(model, change, same, bias):
    with torch.no_grad():
        model.classifier.bias[1:] += bias
    assert (load(recording(model, change)).variant is not None) == same


def test_a_network_of_zeros_is_ours_too(model):
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
    assert load(recording(model)).variant is not None


class Choosy(nn.Module):
    """Takes images of one shape only."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.given = shape, []

    def forward(self, images):
        self.given.append((tuple(images.shape), torch.is_inference_mode_enabled()))
        if images.shape != self.shape:
            raise RuntimeError("another size, please")
        return {"score": images.mean((2, 3))}


def test_outputs_are_named_by_the_first_size_that_suits():
    sizes = (224, 64, 32, 256, 384, 512)
    for tried, size in enumerate(sizes, start=1):
        net = Choosy((1, 3, size, size)).eval()
        loaded = load(net)
        assert (loaded.output_names, loaded.facts.channels, loaded.name) == (("score",), None, "choosy")
        assert net.given == [((1, 3, side, side), True) for side in sizes[:tried]]
    assert load(Choosy((1, 3, 5, 5)).eval()).output_names == ("logits",)


class ByFormat(CheckpointFormat):
    def recognises(self, names):
        return "unused" in names

    def renames(self, names):
        return {"unused": None}

    def facts(self, tensors):
        return ModelFacts(image_size=48)


def test_a_format_says_what_is_no_part_of_the_network_and_what_it_takes(model):
    with formats.restored():
        formats.register("mine")(ByFormat)
        other = recording(model)
        other.register_buffer("unused", torch.ones(1))
        loaded = load(other)
        assert (loaded.variant.spec, loaded.facts) == (model.spec, ModelFacts(channels=3, image_size=48))


def test_only_modules_are_modules(model, monkeypatch):
    assert ModuleSource().matches(model) is Match.CERTAIN
    for other in ("DenseNet", b"", type(model), None):
        assert ModuleSource().matches(other) is Match.NO
    monkeypatch.setitem(sys.modules, "torch", None)
    assert ModuleSource().matches(model) is Match.NO


def test_a_training_or_half_precision_module_is_copied_and_stays_as_it_is(model):
    training = copy.deepcopy(model).train()
    loaded = load(training)
    assert training.training
    assert not any(inner.training for inner in loaded.module.modules())
    half = copy.deepcopy(model).half()
    loaded = load(half)
    assert loaded.notes == ("float16 weights cast to float32",)
    assert next(half.parameters()).dtype == torch.float16
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    partly = copy.deepcopy(model)
    partly.features.conv0.train()
    assert not load(partly).module.features.conv0.training


def test_whole_numbers_among_the_parameters_are_not_cast():
    net = nn.Conv2d(3, 4, 3).eval()
    net.count = nn.Parameter(torch.tensor(3), requires_grad=False)
    assert (load(net).notes, load(net).module.count.dtype) == ((), torch.int64)


def test_the_global_random_state_does_not_move(model):
    before = torch.get_rng_state()
    load(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_nonfinite_weights_are_refused_unless_accepted(model):
    model.classifier.bias.data[1] = float("nan")
    with pytest.raises(CheckpointError) as caught:
        load(model)
    assert caught.value.subject == "DenseNet"
    load(model, WeightsConstraint(allow_nonfinite=True))


OTHER = nn.Conv2d(3, 4, 3).eval()


@pytest.mark.parametrize(
    ("head", "wrong", "why"),
    [
        ("classifier", {"variant": find_variant("169")}, "is NAME, not densenet169"),
        ("classifier", {"num_classes": 9}, "has 5 classes, not 9"),
        ("classifier", {"head": "features"}, "does not have the head features"),
        ("features", {"num_classes": 5}, "is NAME"),
        ("features", {"head": "classifier"}, "does not have the head classifier"),
        (None, {"variant": find_variant("169")}, "is not a known DenseNet, not densenet169"),
        (None, {"num_classes": 4}, "is not a known DenseNet"),
        (None, {"head": "classifier"}, "does not have the head classifier"),
    ],
)
def test_a_module_that_is_not_what_was_asked_for_is_refused(model, head, wrong, why):
    net = OTHER if head is None else build_model(dataclasses.replace(model.spec, head=head))
    with pytest.raises(UsageError) as caught:
        load(net, WeightsConstraint(**wrong))
    assert caught.value.subject == type(net).__name__
    assert caught.value.why == why.replace("NAME", variant_for(model.spec).artifact_name)


def test_a_module_that_is_what_was_asked_for_is_taken(model):
    asked = WeightsConstraint(variant=variant_for(model.spec), num_classes=5, head="classifier")
    assert load(model, asked).variant.spec == model.spec
    features = build_model(dataclasses.replace(model.spec, head="features"))
    assert load(features, WeightsConstraint(head="features")).variant.spec.head == "features"


def test_a_module_without_values_is_refused():
    with torch.device("meta"):
        inner = nn.Conv2d(4, 4, 3)
    with pytest.raises(InputError) as caught:
        load(nn.Sequential(nn.Conv2d(3, 4, 3), inner))
    assert caught.value.subject == "Sequential"


@pytest.mark.parametrize("training", [True, False])
def test_a_lazy_module_is_refused_until_it_has_run(training):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)).train(training)
    with pytest.raises(InputError) as caught:
        load(net)
    assert caught.value.subject == "Sequential"
    net(torch.zeros(1, 3, 64, 64))
    assert load(net).facts.channels == 3


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("compiled", ["script", "trace"])
def test_a_torchscript_program_becomes_the_network_that_it_computes(torchvision_net, compiled):
    images = torch.zeros(2, 3, 64, 64)
    program = torch.jit.script(torchvision_net) if compiled == "script" else torch.jit.trace(torchvision_net, images)
    loaded = load(program)
    assert isinstance(loaded.module, DenseNet)
    assert loaded.variant.spec.num_classes == 7
    assert loaded.notes == ("a TorchScript program: the network that it computes was built with its weights",)


class Ending(nn.Module):
    """A network and what is done to its images or outputs."""

    def __init__(self, net, before=lambda images: images, after=lambda outputs: outputs):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images):
        return self.after(self.net(self.before(images)))


def resized(images):
    return nn.functional.interpolate(images, (64, 64))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("bias", "change", "is_known"),
    [
        (0.0, {}, True),
        (0.0, {"before": resized}, False),
        (1000.0, {}, True),
        (1000.0, {"after": torch.relu}, False),
        (-1000.0, {"after": lambda outputs: outputs.clamp(-1e6, 0)}, False),
    ],
)
def test_what_a_single_image_would_not_show_is_seen(torchvision_net, traced, bias, change, is_known):
    net = changed(torchvision_net, "classifier", nn.Linear(16, 1))
    with torch.no_grad():
        net.classifier.bias.fill_(bias)
    module = Ending(net, **change).eval()
    module = torch.jit.trace(module, torch.rand(2, 3, 64, 64)) if traced else module
    assert (load(module).variant is not None) == is_known
    assert float(net.classifier.bias.detach()) == bias


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        torch.compile,
        pytest.param(
            lambda net: torch.compile(nn.DataParallel(net)), marks=pytest.mark.slow, id="compiled and parallel"
        ),
    ],
)
def test_what_runs_a_network_is_not_part_of_it(torchvision_net, wrap):
    loaded = load(wrap(torchvision_net).eval())
    assert type(loaded.module) is type(torchvision_net)
    assert loaded.variant == load(torchvision_net).variant
    assert loaded.origin == load(torchvision_net).origin


def exported(net, batch, size=64, *, dynamic=()):
    dims = {axis: torch.export.Dim(f"d{axis}") for axis in dynamic}
    return torch.export.export(net, (torch.randn(batch, 3, size, size),), dynamic_shapes=(dims,))


@pytest.mark.parametrize(("batch", "dynamic"), [(1, ()), (2, ()), (2, (0,))])
@pytest.mark.parametrize("as_module", [False, True])
def test_a_program_of_torch_export_becomes_the_network_that_it_computes(torchvision_net, batch, dynamic, as_module):
    program = exported(torchvision_net, batch, dynamic=dynamic)
    loaded = load(program.module() if as_module else program)
    assert loaded.variant.spec == load(torchvision_net).variant.spec
    assert loaded.notes == ("a torch.export program: the network that it computes was built with its weights",)
    assert loaded.facts == ModelFacts(channels=3, image_size=64)
    images = torch.randn(3, 3, 96, 96)
    torch.testing.assert_close(loaded.module(images), torchvision_net(images))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("compile_", [exported, lambda net, batch: torch.jit.trace(net, torch.randn(batch, 3, 64, 64))])
def test_a_program_that_computes_something_else_is_taken_as_it_is(torchvision_net, compile_):
    loaded = load(compile_(nn.Sequential(torchvision_net, nn.Sigmoid()).eval(), 2))
    assert loaded.variant is None
    assert "computes something else: taken as it is" in loaded.notes[0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_frozen_program_has_no_parameters_and_is_taken_as_it_is(torchvision_net):
    loaded = load(torch.jit.freeze(torch.jit.trace(torchvision_net, torch.randn(2, 3, 64, 64))))
    assert (loaded.variant, loaded.notes, loaded.output_names) == (None, (), ("logits",))


def test_a_module_that_fails_on_the_images_of_the_comparison_is_not_said_to_compute_something_else(model):
    note = load(recording(model, unlike)).notes[0]
    assert note.endswith("but fails on images of 3x64x64: taken as it is")


def quantized_dynamically(net):
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


def observed(net):
    net.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    return torch.ao.quantization.prepare(net.train(False))


def fake_quantized(net):
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(net.train()).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("way", "says"),
    [
        (quantized_dynamically, "is quantized by PyTorch: classifier is a Linear"),
        (observed, "is prepared for PyTorch's quantization: "),
        (fake_quantized, "is prepared for PyTorch's quantization: "),
    ],
)
def test_layers_of_pytorchs_quantization_are_named(torchvision_net, way, says):
    with pytest.raises(InputError) as caught:
        load(way(copy.deepcopy(torchvision_net)))
    assert caught.value.why.startswith(says)
    assert "float" in caught.value.fix


def test_stubs_for_quantization_compute_nothing(torchvision_net):
    net = nn.Sequential(torch.ao.quantization.QuantStub(), torchvision_net, torch.ao.quantization.DeQuantStub()).eval()
    assert load(net).variant.spec == load(torchvision_net).variant.spec


@pytest.mark.parametrize("change", [lambda logits: {"logits": logits}, lambda logits: logits[0], torch.zeros_like])
def test_a_module_with_other_outputs_is_said_to_compute_something_else(model, change):
    assert load(recording(model, change)).notes[0].endswith("but computes something else: taken as it is")
