"""Heads from names and shapes: the order of their layers, what is assumed between them, and what is refused."""

import pytest

from densenet_deploy.errors import CheckpointError
from densenet_deploy.sources.heads import Head, HeadConventions, head_from, is_unused

WIDTH = 32
PLAIN = HeadConventions()


def linear(owner, entering, leaving, *, bias=True):
    shapes = {f"{owner}.weight": (leaving, entering)}
    return shapes | ({f"{owner}.bias": (leaving,)} if bias else {})


def norm(owner, width):
    return {f"{owner}.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}


def read(*parts, conventions=PLAIN):
    return head_from({name: shape for part in parts for name, shape in part.items()}, WIDTH, conventions)


def refusal(*parts, conventions=PLAIN):
    with pytest.raises(CheckpointError) as caught:
        read(*parts, conventions=conventions)
    assert caught.value.fix.startswith("load the module itself")
    return caught.value.why


def test_no_layers_are_features():
    assert read() == Head()


@pytest.mark.parametrize(
    "owner", ["classifier", "fc", "classifier.1", "class_layers.out", "head.fc", "4", "last_linear"]
)
def test_one_linear_layer_is_the_classifier(owner):
    head = read(linear(owner, 32, 7))
    names = {f"{owner}.weight": "classifier.weight", f"{owner}.bias": "classifier.bias"}
    assert head == Head("classifier", 7, names=names)


def test_no_bias_and_one_output():
    head = read(linear("fc", 32, 1, bias=False))
    assert (head.num_classes, head.bias, dict(head.names)) == (1, False, {"fc.weight": "classifier.weight"})


@pytest.mark.parametrize(
    ("parts", "hidden", "assumed"),
    [
        ((linear("c.fc1", 32, 9), linear("c.fc2", 9, 4)), "linear:9 relu", ("ReLU after c.fc1",)),
        ((linear("c.2", 9, 4), linear("c.0", 32, 9)), "linear:9 relu", ("ReLU after c.0",)),
        ((linear("c.0", 32, 9), linear("c.1", 9, 4)), "linear:9", ()),
        (
            (linear("c.10", 9, 4), linear("c.9", 9, 9), linear("c.2", 32, 9)),
            "linear:9 relu linear:9",
            ("ReLU after c.2",),
        ),
        ((linear("fc.0", 32, 9), norm("fc.1", 9), linear("out", 9, 4)), "linear:9 norm relu", ("ReLU after fc.1",)),
        ((linear("c.0", 32, 9), norm("c.2", 9), linear("c.3", 9, 4)), "linear:9 relu norm", ("ReLU after c.0",)),
        ((linear("c.0", 32, 9), norm("c.1", 9), linear("c.3", 9, 4)), "linear:9 norm relu", ("ReLU after c.1",)),
        ((linear("c.0", 32, 9), norm("c.1", 9), linear("c.2", 9, 4)), "linear:9 norm", ()),
        ((norm("bottleneck", 32), linear("classifier", 32, 4)), "norm", ()),
        ((linear("classifier", 32, 4), norm("zz", 32)), "norm", ()),
    ],
)
def test_layers_come_in_the_order_of_their_widths(parts, hidden, assumed):
    head = read(*parts)
    assert (head.hidden, head.assumed, head.head) == (hidden, assumed, "classifier")


@pytest.mark.parametrize("last", ["classifier", "classifier.1", "logits", "out", "output"])
def test_of_layers_that_fit_in_any_order_the_classifier_comes_last(last):
    assert read(linear(last, 32, 32), linear("zz", 32, 32)).names[f"{last}.weight"] == "classifier.weight"
    assert read(linear("fc1", 32, 32), linear("fc2", 32, 32)).names["fc2.weight"] == "classifier.weight"


def test_layers_are_named_by_kind_and_number():
    head = read(linear("fc.0", 32, 9, bias=False), norm("fc.1", 9), linear("out", 9, 4))
    assert head.names["fc.0.weight"] == "head.linear1.weight"
    assert head.names["fc.1.running_var"] == "head.norm1.running_var"
    assert head.names["out.bias"] == "classifier.bias"
    assert head.hidden == "linear:9:nobias norm relu"


def test_our_own_names_stay():
    parts = (norm("head.norm1", 32), linear("head.linear1", 32, 9), linear("classifier", 9, 4))
    head = read(*parts)
    assert all(name == ours for name, ours in head.names.items())
    assert head.hidden == "norm linear:9 relu"


def test_a_norm_at_the_end_makes_features():
    head = read(linear("fc.0", 32, 9), norm("fc.1", 9))
    assert (head.head, head.num_classes, head.hidden, head.assumed) == ("features", None, "linear:9 norm", ())


def test_a_lone_first_layer_of_a_sequential_is_followed_by_something():
    assert read(linear("classifier.0", 32, 4)).classifier_assumed == ("what follows classifier.0 left out",)
    assert read(linear("classifier.1", 32, 4)).classifier_assumed == ()


def test_a_linear_layer_without_bias_may_be_a_comparison_of_directions():
    assert read(linear("fc", 32, 4, bias=False)).classifier_assumed == (
        "features and fc, which has no bias, not normalized",
    )
    assert read(linear("fc", 32, 4)).classifier_assumed == ()


MARGINS = (
    "arcface",
    "arc_margin.product",
    "head.arc",
    "margin",
    "metric_fc",
    "cosface.fc",
    "CosineHead",
    "arcmarginproduct",
)


@pytest.mark.parametrize("owner", MARGINS)
@pytest.mark.parametrize(("name", "shape"), [("weight", (7, 32)), ("W", (7, 32)), ("kernel", (32, 7))])
def test_margin_heads_are_known_by_their_names(owner, name, shape):
    head = read({f"{owner}.{name}": shape})
    assert (head.head, head.num_classes, head.cosine) == ("classifier", 7, owner)


def test_a_lone_weight_is_one_too():
    assert read({"weight": (7, 32)}).cosine == "weight"
    assert read(linear("fc", 32, 8), {"weight": (7, 8)}).cosine == "weight"


@pytest.mark.parametrize("owner", ["fc", "search", "cost", "archive", "classifier", "last_linear", "features_head"])
def test_other_layers_without_bias_are_not(owner):
    assert read(linear(owner, 32, 7, bias=False)).cosine is None


@pytest.mark.parametrize("owner", MARGINS)
def test_a_layer_with_bias_is_linear_whatever_its_name(owner):
    assert read(linear(owner, 32, 7)).cosine is None


def test_a_margin_head_behind_an_embedding():
    head = read(linear("fc", 32, 9), norm("bn", 9), linear("margin", 9, 7, bias=False))
    assert (head.hidden, head.cosine) == ("linear:9 norm relu", "margin")


def test_a_library_that_has_no_relus():
    conventions = HeadConventions("avg", relus=False)
    head = read(linear("a", 32, 9), linear("b", 9, 4), conventions=conventions)
    assert (head.hidden, head.pooling, head.assumed) == ("linear:9", "avg", ())


def test_a_library_that_pools_twice():
    conventions = HeadConventions("max-avg")
    assert read(linear("a", 64, 4), conventions=conventions).pooling == "max-avg"
    assert read(linear("a", 32, 4), conventions=conventions).pooling == "avg"


@pytest.mark.parametrize("bias", [True, False])
def test_a_single_1x1_convolution_is_the_classifier(bias):
    shapes = {"last_conv.weight": (7, 32, 1, 1)} | ({"last_conv.bias": (7,)} if bias else {})
    head = read(shapes)
    assert (head.head, head.num_classes, head.hidden, head.bias) == ("classifier", 7, "", bias)
    assert head.names == {name: name.replace("last_conv", "classifier") for name in shapes}
    assert head.classifier_assumed == ("no activation after last_conv, a 1x1 convolution",)


def test_a_multiscale_head_keeps_its_names():
    shapes = {"head.reduce1.conv.weight": (128, 8, 1, 1), "classifier.weight": (7, 128), "mean": (3,)}
    head = head_from(shapes, 0, PLAIN)
    assert (head.head, head.num_classes, head.unused) == ("multiscale", 7, ("mean",))
    assert set(head.names) == set(shapes) - {"mean"}
    assert "0 outputs" in refusal({"head.reduce1.conv.weight": (128, 8, 1, 1)})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (({"global_pool.p": (1,)}, linear("classifier", 32, 4)), ("GeM", "global_pool.p")),
        ((linear("age", 32, 1), linear("sex", 32, 2)), ("several heads", "age", "sex")),
        ((linear("classifier", 64, 4),), ("does not read the 32 features", "classifier reads 64")),
        ((linear("a", 32, 8), linear("b", 9, 4)), ("do not follow", "b 9 to 4")),
        (({"classifier.weight": (4, 32, 3, 3)},), ("classifier.weight", "a convolution")),
        (({"classifier.weight": (4, 32, 1, 2)},), ("classifier.weight", "a convolution")),
        (({"classifier.weight": (4, 64, 1, 1)},), ("does not read the 32 features", "classifier reads 64")),
        (({"a.weight": (8, 32, 1, 1)}, linear("b", 8, 4)), ("a behind", "a convolution beside other layers")),
        (({"head.weight": (32,), "head.bias": (32,)},), ("head.weight", "not a linear layer")),
        (({"temperature": ()}, linear("classifier", 32, 4)), ("temperature", "not a linear layer")),
        ((linear("classifier", 32, 0),), ("classifier has 0 outputs",)),
        ((linear("classifier", 32, 1_000_001),), ("1000001 outputs",)),
        (tuple(linear(f"c.{index}", 32, 32) for index in range(13)), ("several heads",)),
    ],
)
def test_everything_else_is_refused_by_name(parts, words):
    why = refusal(*parts)
    assert all(word in why for word in words), why


@pytest.mark.parametrize(
    "name",
    [
        *(
            "criterion.weight",
            "criterion_mlp.pos_weight",
            "loss_fn.weight",
            "bce_loss.pos_weight",
            "val_acc.tp",
            "mean",
        ),
        *(
            "std",
            "pixel_mean",
            "image_std",
            "train_f1.tp",
            "metrics.auroc.preds",
            "module.center_loss.centers",
            "n_averaged",
        ),
        *("class_weights", "pos_weight", "normalize.mean", "test_confmat.confmat", "Criterion.weight"),
    ],
)
def test_losses_metrics_and_preparation_are_not_layers(name):
    assert is_unused(name)
    assert read({name: (4, 32)}, linear("fc", 32, 4)).unused == (name,)


@pytest.mark.parametrize(
    "name", ["classifier.weight", "head.norm1.running_mean", "fc.0.bias", "global_pool.p", "lossy.p"]
)
def test_layers_are_not_taken_for_losses(name):
    assert not is_unused(name)
