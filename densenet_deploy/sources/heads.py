"""What stands behind the last dense block, read from the names and shapes of its parameters.

Linear layers and BatchNormalization are put in the order in which their widths fit together, whatever they are called:
`classifier.1`, `fc1` and `fc2`, `class_layers.out`, `bottleneck`. Layers without parameters leave no trace: Dropout
computes nothing, and a ReLU between two linear layers is assumed where there is room for one.

A single 1x1 convolution is a linear layer: the mean over an image of a linear map is the linear map of the mean, so it
makes no difference whether the code pools before or after it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from densenet_deploy.errors import CheckpointError
from densenet_deploy.variants.hidden import HiddenLayer, hidden_text
from densenet_deploy.variants.infer import Shapes
from densenet_deploy.variants.spec import MOST_CLASSES

WAY_OUT: Final = (
    "load the module itself, densenet_deploy.load(module), or give the .onnx file that torch.onnx.export writes"
)

_MOST_LAYERS: Final = 12
_LINEAR: Final = {"weight", "bias"}
_NORM: Final = {"weight", "bias", "running_mean", "running_var"}
_UNUSED: Final = re.compile(
    r"criterion\w*|\w*loss(es|_fn|_func|_function)?|\w*metrics?|(train|val|valid|validation|test)_\w+|\w*acc(uracy)?"
    r"|\w*auroc|\w*auc|\w*f1(_score)?|confmat|(pixel|image|input|rgb)?_?(mean|std)|(pos|class)_weights?|centers?"
    r"|optimizers?|\w*schedulers?|global_step|n_averaged|best"
)
_MARGIN: Final = re.compile(
    r"\w*(arc_?(face|margin|head|product)|cos_?(face|ine)|margin|sphere_?face|ada_?(face|cos)|curricular|am_?softmax"
    r"|norm(ed|alized)?_?linear)\w*|arc|metric_?fc"
)
_MARGIN_WEIGHTS: Final = {"weight": (0, 1), "W": (0, 1), "kernel": (1, 0)}  # which axes are (classes, features)
_OURS: Final = re.compile(r"head\.(linear|norm)\d+")


@dataclass(frozen=True)
class HeadConventions:
    """What a library's code does behind the last norm: the `pooling`, and whether ReLUs follow hidden layers."""

    pooling: str = "relu-avg"
    relus: bool = True


@dataclass(frozen=True)
class Head:
    """A head as `DenseNetSpec` describes it.

    Attributes:
        head: `classifier`, `features` or `multiscale`.
        num_classes: None without a classifier.
        hidden, bias, pooling: see `DenseNetSpec`.
        names: our name of each parameter.
        assumed: what the weights of its hidden layers do not show, as phrases.
        classifier_assumed: what those of its last linear layer do not show.
        unused: names of what is not part of a network.
        cosine: the name of a last layer that compares directions (ArcFace, CosFace), which is not linear; None without.
    """

    head: str = "features"
    num_classes: int | None = None
    hidden: str = ""
    bias: bool = True
    pooling: str = "relu-avg"
    names: Mapping[str, str] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    classifier_assumed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    cosine: str | None = None


@dataclass(frozen=True)
class _Layer:
    """A layer called `owner`: it reads rows of `entering` numbers and makes rows of `leaving`.

    `kind` is `linear`, `norm` or `1x1 convolution`.
    """

    owner: str
    kind: str
    entering: int
    leaving: int
    bias: bool

    @property
    def is_margin(self) -> bool:
        """Whether its name is one of a head that is trained with a margin between angles; a lone `weight` is one."""
        return not self.bias and (not self.owner or _is_margin(self.owner))

    @property
    def container(self) -> str:
        return self.owner.rpartition(".")[0]

    @property
    def index(self) -> int | None:
        """Its place in an `nn.Sequential`."""
        last = self.owner.rpartition(".")[2]
        return int(last) if last.isdecimal() else None


def is_unused(name: str) -> bool:
    """Whether `name` says that a tensor belongs to a loss, a metric or the preparation of images.

    >>> is_unused("criterion.pos_weight"), is_unused("val_acc.tp"), is_unused("global_pool.p")
    (True, True, False)
    """
    return any(_UNUSED.fullmatch(part) for part in name.lower().split("."))


def head_from(shapes: Shapes, width: int, conventions: HeadConventions) -> Head:
    """Return the head whose parameters have these names and `shapes`, behind maps of `width` channels.

    Raises:
        CheckpointError: if it is not a chain of linear layers and norms; it names what is in the way.
    """
    unused = tuple(name for name in shapes if is_unused(name))
    used = {name: shape for name, shape in shapes.items() if name not in unused}
    if any(name.startswith("head.reduce") for name in used):
        return _multiscale(used, unused)
    layers = _layers(used)
    if len(layers) > 1 and (kernels := [layer.owner for layer in layers if layer.kind == "1x1 convolution"]):
        raise _refused(f"{kernels[0]} behind the last dense block is a convolution beside other layers")
    pooled = 2 * width if conventions.pooling == "max-avg" else width
    chain = _chain(layers, pooled)
    if chain is None and conventions.pooling == "max-avg" and (chain := _chain(layers, width)):
        conventions = HeadConventions("avg", conventions.relus)  # the same library, told to pool the means alone
    if chain is None:
        raise _refused(_disorder(layers, pooled))
    hidden, assumed = _hidden(chain, conventions)
    classifier = chain[-1] if chain and chain[-1].kind != "norm" else None
    if classifier is not None and not 1 <= classifier.leaving <= MOST_CLASSES:
        raise _refused(f"{classifier.owner} has {classifier.leaving} outputs")
    return Head(
        head="classifier" if classifier is not None else "features",
        num_classes=classifier.leaving if classifier is not None else None,
        hidden=hidden_text(layer for layer, _ in hidden),
        bias=classifier.bias if classifier is not None else True,
        pooling=conventions.pooling,
        names=dict(_names(used, hidden, classifier)),
        assumed=assumed,
        classifier_assumed=tuple(_assumed_of(classifier)) if classifier is not None else (),
        unused=unused,
        cosine=_name_of(classifier) if classifier is not None and classifier.is_margin else None,
    )


def _multiscale(shapes: Shapes, unused: tuple[str, ...]) -> Head:
    classes = shapes.get("classifier.weight", (0,))[0]
    if not 1 <= classes <= MOST_CLASSES:
        raise _refused(f"classifier has {classes} outputs")
    return Head("multiscale", classes, names={name: name for name in shapes}, unused=unused)


def _layers(shapes: Shapes) -> list[_Layer]:
    owners: defaultdict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in shapes.items():
        owner, _, parameter = name.rpartition(".")
        owners[owner][parameter] = shape
    return sorted((_layer(owner, found) for owner, found in owners.items()), key=_natural_order)


def _layer(owner: str, parameters: Mapping[str, tuple[int, ...]]) -> _Layer:
    weight = parameters.get("weight", ())
    if len(parameters) == 1 and _is_margin(owner):
        ((name, shape),) = parameters.items()
        if name in _MARGIN_WEIGHTS and len(shape) == 2:
            classes, features = (shape[axis] for axis in _MARGIN_WEIGHTS[name])
            return _Layer(owner, "linear", features, classes, bias=False)
    if set(parameters) <= _LINEAR and len(weight) == 2:
        return _Layer(owner, "linear", weight[1], weight[0], bias="bias" in parameters)
    if set(parameters) <= _LINEAR and weight[2:] == (1, 1):
        return _Layer(owner, "1x1 convolution", weight[1], weight[0], bias="bias" in parameters)
    if set(parameters) == _NORM and len(weight) == 1:
        return _Layer(owner, "norm", weight[0], weight[0], bias=True)
    name, shape = next((f"{owner}.{parameter}".lstrip("."), shape) for parameter, shape in parameters.items())
    if set(parameters) == {"p"}:
        raise _refused(f"{name} is the exponent of GeM pooling, which is not supported")
    what = "a convolution" if len(weight) == 4 else "not a linear layer or a BatchNormalization"
    raise _refused(f"{name} of shape {shape} behind the last dense block is {what}")


def _is_margin(owner: str) -> bool:
    return any(_MARGIN.fullmatch(part) for part in owner.lower().split("."))


def _name_of(layer: _Layer) -> str:
    return layer.owner or "weight"


def _natural_order(layer: _Layer) -> list[tuple[int, str]]:
    """Sort `fc2` before `fc10`, and what is called a classifier behind everything else."""
    parts = re.split(r"(\d+)", layer.owner)
    numbered = [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
    return [(int(layer.owner.startswith(("classifier", "logits", "out"))), ""), *numbered]


def _chain(layers: Sequence[_Layer], width: int) -> list[_Layer] | None:
    """Return all layers in an order in which each reads what the one before makes; None if there is none."""
    if not layers:
        return []
    if len(layers) > _MOST_LAYERS:
        return None
    for index, layer in enumerate(layers):
        if layer.entering != width:
            continue
        rest = _chain([*layers[:index], *layers[index + 1 :]], layer.leaving)
        if rest is not None:
            return [layer, *rest]
    return None


def _disorder(layers: Sequence[_Layer], width: int) -> str:
    linear = [layer for layer in layers if layer.kind != "norm"]
    first = [layer for layer in linear if layer.entering == width]
    if len(first) > 1:
        return f"it has several heads: {_listed(layer.owner for layer in first)}"
    if not first and linear:
        widths = _listed(f"{layer.owner} reads {layer.entering}" for layer in linear)
        return f"its head does not read the {width} features of the last dense block ({widths})"
    found = _listed(f"{layer.owner} {layer.entering} to {layer.leaving}" for layer in layers)
    return f"the layers of its head do not follow one another ({found})"


def _hidden(
    chain: Sequence[_Layer], conventions: HeadConventions
) -> tuple[list[tuple[HiddenLayer, _Layer | None]], tuple[str, ...]]:
    """(the layers before the last linear one, each with the parameters it has; what is assumed of them)."""
    is_classifier = bool(chain) and chain[-1].kind != "norm"
    hidden: list[tuple[HiddenLayer, _Layer | None]] = []
    assumed: list[str] = []
    needs_relu = False  # since a linear layer, none was placed
    for index, layer in enumerate(chain[: len(chain) - is_classifier]):
        following = chain[index + 1] if index + 1 < len(chain) else None
        made = HiddenLayer("norm") if layer.kind == "norm" else HiddenLayer("linear", layer.leaving, layer.bias)
        hidden.append((made, layer))
        needs_relu = conventions.relus and (layer.kind == "linear" or needs_relu)
        if needs_relu and following is not None and _has_room(layer, following):
            hidden.append((HiddenLayer("relu"), None))
            assumed.append(f"ReLU after {layer.owner}")
            needs_relu = False
    return hidden, tuple(assumed)


def _assumed_of(classifier: _Layer) -> Iterator[str]:
    """Yield what is assumed of the last linear layer."""
    if classifier.kind == "1x1 convolution":
        yield f"no activation after {classifier.owner}, a 1x1 convolution"
    elif classifier.index == 0:
        yield f"what follows {classifier.owner} left out"
    if classifier.kind == "linear" and not classifier.bias:
        yield f"features and {_name_of(classifier)}, which has no bias, not normalized"


def _has_room(layer: _Layer, following: _Layer) -> bool:
    """Whether a ReLU may stand between; between a linear layer and its norm only if the numbers leave room."""
    if layer.container == following.container and layer.index is not None and following.index is not None:
        return following.index - layer.index > 1
    return following.kind == "linear"


def _names(
    shapes: Shapes, hidden: Iterable[tuple[HiddenLayer, _Layer | None]], classifier: _Layer | None
) -> Iterator[tuple[str, str]]:
    """(name, ours) of each parameter."""
    counts: defaultdict[str, int] = defaultdict(int)
    ours: dict[str, str] = {} if classifier is None else {classifier.owner: "classifier"}
    for layer, made_of in hidden:
        counts[layer.kind] += 1
        if made_of is not None:
            ours[made_of.owner] = f"head.{layer.kind}{counts[layer.kind]}"
    ours |= {owner: owner for owner in ours if _OURS.fullmatch(owner)}
    for name in shapes:
        owner, _, parameter = name.rpartition(".")
        yield name, f"{ours[owner]}.{parameter}"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _refused(why: str) -> CheckpointError:
    return CheckpointError("weights", why, WAY_OUT)
