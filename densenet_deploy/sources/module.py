"""Networks in memory: an `nn.Module`, whatever its class.

A module is a known DenseNet if its parameters have the names and shapes of one, and if it computes what our network
with the same parameters computes: a module without the stem's pool, or with a Sigmoid at its end, has the same
parameters and is another network. Such a module is taken as it is, and nothing is claimed about its architecture.
Images of two sizes are compared, which a module that resizes them does not survive, and the classifier is compared with
its opposite, too, which a final ReLU does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard

from densenet_deploy.errors import CheckpointError, InputError, UsageError, printable
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import WeightsOrigin
from densenet_deploy.models.operations import NORM_EPSILON
from densenet_deploy.packages import imported
from densenet_deploy.runtime.backends.torch import exported_shape
from densenet_deploy.sources.arrays import Array
from densenet_deploy.sources.config_file import facts_of_config, fitting
from densenet_deploy.sources.layout import Layout, layout_of
from densenet_deploy.sources.reparametrized import (
    copied,
    name_of_sign,
    with_affine_norms,
    with_computed_weights,
    without_parametrizations,
)
from densenet_deploy.sources.source import LoadedNetwork, Match, Source, WeightsConstraint, sources
from densenet_deploy.sources.weights import (
    casting_note,
    computing_note,
    fitted_model,
    require_numbers,
    shapes_of,
    weights_of,
    weights_sha256,
)
from densenet_deploy.variants import Variant, variant_for

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

_COMPARED_SIZE: Final = 64
_PROBED_SIZES: Final = (224, 64, 32, 256, 384, 512)
_PROGRAM_NOTE: Final = "a {} program: the network that it computes was built with its weights"
_QUANTIZED: Final = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_OBSERVERS: Final = ("torch.ao.quantization.observer", "torch.ao.quantization.fake_quantize", "torchao.quantization")
# The same operations in another order or memory format differ by float32 rounding, some 1e-6 of the largest output.
_TOLERANCE: Final = 1e-4


@sources.register("module")
class ModuleSource(Source):
    """Take a module in memory, or a copy in eval mode and float32 if it is not; the module itself does not change.

    So are programs of TorchScript and of `torch.export` taken.
    """

    def matches(self, source: object) -> Match:
        torch = imported("torch")  # a module can only be there if torch is
        if torch is None:
            return Match.NO
        return Match.CERTAIN if isinstance(source, torch.nn.Module) or _is_exported(source) else Match.NO

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        from torch import nn

        source = source.module() if _is_exported(source) else source
        assert isinstance(source, nn.Module)
        source = _unwrapped(source)
        kind = type(source).__name__
        module, done = _ready(source)
        floats = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
        tensors, _ = with_affine_norms(with_computed_weights(floats)[0])
        found = _recognised(module, tensors)
        if not constraint.allow_nonfinite:
            kept = found.module.state_dict().items()
            require_numbers(kind, {name: tensor for name, tensor in kept if tensor.is_floating_point()})
        variant, facts = found.variant, found.facts
        _require(constraint, kind, variant)
        return LoadedNetwork(
            name=variant.artifact_name if variant else kind.lower(),
            origin=WeightsOrigin(f"{kind} in memory", weights_sha256(found.module.state_dict())),
            module=found.module,
            weights=found.weights,
            variant=variant,
            labels=facts.labels or (),
            facts=facts,
            output_names=(variant.spec.output_name,)
            if variant
            else _output_names(module, constraint.channels or facts.channels),
            notes=(*done, *found.notes),
        )


@dataclass(frozen=True)
class _Recognised:
    """A module with what is known of it; `variant` is None if it is not a known DenseNet.

    `weights` are those of `variant` with which our network computes exactly the same.
    """

    module: nn.Module
    variant: Variant | None
    facts: ModelFacts
    weights: Mapping[str, Array] | None = None
    notes: tuple[str, ...] = ()


def _is_exported(source: object) -> TypeGuard[ExportedProgram]:
    """Whether it is what `torch.export.export` returns."""
    export = imported("torch.export")
    return export is not None and isinstance(source, export.ExportedProgram)


def _unwrapped(source: nn.Module) -> nn.Module:
    """Return the network inside of what runs it on several devices, averages it or compiles it."""
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while True:
        inner = source.module if isinstance(source, wrappers) else getattr(source, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return source
        source = inner


def _ready(source: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """(the module in eval mode and float32 with weights of its own, notes on what had to change)."""
    import torch

    kind = type(source).__name__
    _refuse_quantized(kind, source)
    tensors = [value for value in source.state_dict().values() if isinstance(value, torch.Tensor)]
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise InputError(kind, "has lazy parameters without a shape", "run one batch of images through it first")
    if any(tensor.is_meta for tensor in tensors):
        raise InputError(kind, "has parameters on the meta device, without values", "load its weights")
    note = casting_note(tensor for tensor in source.parameters() if tensor.is_floating_point())
    if note or any(getattr(inner, "training", False) for inner in source.modules()):
        source = copied(source).eval().to(torch.float32)
    module, count = without_parametrizations(source)
    return module, (*note, *filter(None, [computing_note(count)]))


def _refuse_quantized(kind: str, source: nn.Module) -> None:
    """Refuse layers of PyTorch's quantization, and observers, which change or measure values."""
    fix = "give the float module and quantize it here: densenet_deploy.quantize"
    for name, layer in source.named_modules():
        where, what = type(layer).__module__, f"{name} is a {type(layer).__name__}"
        if where.startswith(_QUANTIZED):
            raise InputError(kind, f"is quantized by PyTorch: {what}", fix)
        if where.startswith(_OBSERVERS):
            raise InputError(kind, f"is prepared for PyTorch's quantization: {what}", fix)


def _recognised(module: nn.Module, tensors: Mapping[str, Tensor]) -> _Recognised:
    """Compare the module with ours of the same parameters; where a library's module goes on, ours is taken."""
    from densenet_deploy.models.build import DenseNet

    batch, channels, *sides = exported_shape(module) or (None, _channels(module), None, None)
    size = _one_size(sides)
    facts = ModelFacts(channels=channels, image_size=size)
    try:
        layout = _layout(module, tensors)
        plain = layout.arranged(tensors)
        spec = module.spec if isinstance(module, DenseNet) else layout.spec(shapes_of(plain))
        variant = variant_for(spec)
        reference = fitted_model(type(module).__name__, variant, plain)
    except CheckpointError:
        return _Recognised(module, None, facts)
    stated = {**layout.facts.given(), **_stated_by_timm(module).given()}
    facts, notes = fitting(ModelFacts(**stated), spec)
    facts = dataclasses.replace(facts, channels=facts.channels or spec.in_channels, image_size=size or facts.image_size)
    least = max(_COMPARED_SIZE, spec.smallest_image_size)
    shapes = [_sized((batch or 1, spec.in_channels, *sides), side) for side in (least, least * 3 // 2)]
    same = _all_same(_computes_the_same(module, reference, shape) for shape in dict.fromkeys(shapes))
    if same:
        opposite = _with_opposite_classifier(module, layout.names), _with_opposite_classifier(reference)
        same = _computes_the_same(*opposite, shapes[0])
    if same:
        notes = (*notes, *(() if layout.finish else layout.notes))
        if program := _kind_of_program(module):  # PyTorch does not export it again, or for other images
            note = _PROGRAM_NOTE.format(program)
            return _Recognised(reference, variant, facts, weights_of(reference), (*notes, note))
        weights = weights_of(reference) if _has_our_epsilon(module) else None
        return _Recognised(module, variant, facts, weights, notes)
    side = facts.image_size if isinstance(facts.image_size, int) else least
    library_shape = _sized((batch or 1, spec.in_channels, *sides), side)
    if layout.finish and _computes_the_same(module, reference, library_shape, layout.finish):
        return _Recognised(reference, variant, facts, weights_of(reference), (*layout.notes, *notes))
    why = "computes something else" if same is False else f"fails on images of {_text(shapes[0])}"
    note = f"has the parameters of {variant.artifact_name}, but {why}: taken as it is"
    only = ModelFacts(channels=facts.channels, image_size=size)
    return _Recognised(module, None, only, notes=(f"{printable(type(module).__name__)} {note}",))


def _one_size(sides: Sequence[int | None]) -> tuple[int, int] | None:
    """The height and width that a program is for; None if it takes several."""
    height, width = sides
    return None if height is None or width is None else (height, width)


def _sized(shape: Sequence[int | None], side: int) -> tuple[int, ...]:
    return tuple(side if size is None else size for size in shape)


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:]))


def _all_same(results: Iterable[bool | None]) -> bool | None:
    """Return the first result that is not True, or True."""
    return next((result for result in results if not result), True)


def _has_our_epsilon(module: nn.Module) -> bool:
    """Whether all norms have the epsilon of ours; the comparison may not tell another one from rounding."""
    epsilons = {getattr(inner, "eps", NORM_EPSILON) for inner in module.modules()}
    return epsilons == {NORM_EPSILON}


def _with_opposite_classifier(module: nn.Module, names: Mapping[str, str] | None = None) -> nn.Module:
    """Return a copy whose last linear layer, the `classifier` among our `names` of its parameters, is negated."""
    other = copied(module)
    tensors = other.state_dict()
    for name in tensors if names is None else names:
        if (name if names is None else names[name]) in ("classifier.weight", "classifier.bias"):
            tensors[name_of_sign(name, tensors)].neg_()
    return other


def _kind_of_program(module: nn.Module) -> str | None:
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    return "torch.export" if exported_shape(module) is not None else None


def _layout(module: nn.Module, tensors: Mapping[str, Tensor]) -> Layout:
    """Return where the parameters lie; those of our own class have our names, whatever its spec says about the head."""
    from densenet_deploy.models.build import DenseNet

    try:
        return layout_of(tensors)
    except CheckpointError:
        if not isinstance(module, DenseNet):
            raise
        return Layout.ours(tensors)


def _stated_by_timm(module: nn.Module) -> ModelFacts:
    """What timm's `pretrained_cfg` says about the images of its module."""
    config = getattr(module, "pretrained_cfg", None)
    return facts_of_config(config) if isinstance(config, Mapping) else ModelFacts()


def _computes_the_same(
    module: nn.Module,
    reference: nn.Module,
    shape: tuple[int, ...],
    finish: Callable[[Tensor], Tensor] = lambda outputs: outputs,
) -> bool | None:
    """Compare both on a batch (N, C, H, W); None if the module does not take it."""
    import torch

    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(reference.parameters()).device)
    try:
        with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):  # some modules print warnings
            output, expected = module(images), finish(reference(images))
    except Exception:  # noqa: BLE001 - any code may run here; what fails on these images is not our network
        return None
    if not isinstance(output, torch.Tensor) or output.shape != expected.shape:
        return False
    return bool((output - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _require(constraint: WeightsConstraint, kind: str, variant: Variant | None) -> None:
    """Refuse a module that is not what was asked for."""
    requested, name = constraint.variant, variant.artifact_name if variant else "not a known DenseNet"
    if requested is not None and (variant is None or not variant.spec.same_architecture(requested.spec)):
        raise UsageError(kind, f"is {name}, not {requested.artifact_name}", "leave out the variant")
    classes = variant.spec.num_classes if variant and variant.spec.head != "features" else None
    if constraint.num_classes not in (None, classes):
        found = f"has {classes} classes, not {constraint.num_classes}" if classes else f"is {name}"
        raise UsageError(kind, found, "leave out the class count")
    if constraint.head is not None and (variant is None or variant.spec.head != constraint.head):
        raise UsageError(kind, f"does not have the head {constraint.head}", "leave out the head")


def _channels(module: nn.Module) -> int | None:
    """The channels that the first 2-D convolution reads, which are those of the images unless layers precede it."""
    from torch import nn

    return next((layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)


def _output_names(module: nn.Module, channels: int | None) -> tuple[str, ...]:
    """Run the module on one black image, of the first size that it accepts, and name what it returns."""
    import torch

    from densenet_deploy.runtime.backends.torch import named_tensors

    device = next((tensor.device for tensor in module.state_dict().values()), None)
    shape = exported_shape(module) or (None, channels, None, None)
    for size in _PROBED_SIZES:
        images = torch.zeros(_sized((shape[0] or 1, shape[1] or channels or 3, *shape[2:]), size), device=device)
        with contextlib.suppress(Exception), torch.inference_mode():  # any code may run here; another size may suit it
            result = module(images)
            return tuple(name for name, _ in named_tensors(result, LoadedNetwork.output_names))
    return LoadedNetwork.output_names
