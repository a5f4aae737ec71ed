"""Every library's own network on a photograph that it prepared itself, against our ONNX file of it.

Three things are measured apart, since each can be wrong alone: the same tensor in both networks; the photograph as the
library prepares it, in both; and our preparation, from the facts in the file, against the library's. Where both use
Pillow's resize in the same order, that is equal bit for bit. Where it is not, the reason stands at the case, with the
agreement.

fastai and torchreid are written out here as they build their networks (compared with fastai 2.8.12, Lightning 2.6.6 and
torchreid 0.2.5, whose checkpoints load with 122 dB and more); the others are the installed libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

import densenet_deploy
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare
from densenet_deploy.sources.torchxrayvision import TorchXRayVisionFormat
from tests.sources.test_fastai import ConcatPool, learner
from tests.sources.test_person_reid import TorchReid
from tests.sources.torch_networks import CHANNELS, decibels, network, scrambled

CHINA = Path(find_spec("sklearn").origin).parent / "datasets/images/china.jpg"
"""640x427 pixels, full of detail."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
pytestmark = pytest.mark.filterwarnings(
    *(f"ignore::{kind}Warning" for kind in ("Future", "Deprecation", "User"))
)  # MONAI's

LEAST = 90.0  # dB between the same network in two runtimes, in float32


@dataclass(frozen=True)
class Case:
    """A library's `module`, the `source` that holds it, and the library's way from an image file to a tensor.

    Attributes:
        stated: facts that the library's users know and the source does not hold.
        expected: dB between our preparation and the library's, at least and at most; None where they are equal.
        finish: what the library's module makes of our outputs.
        image: the file; None is the photograph.
    """

    module: nn.Module
    source: Any
    prepared: Callable[[Path], Tensor]
    stated: dict[str, Any] = field(default_factory=dict)
    expected: tuple[float, float] | None = None
    finish: Callable[[Tensor], Tensor] = lambda outputs: outputs
    image: Path = CHINA


def saved(module: nn.Module, path: Path, wrap: Callable[[dict], Any] = lambda state: state) -> Path:
    torch.save(wrap(dict(module.state_dict())), path)
    return path


def by_pillow(transform: Callable[[Image.Image], Tensor]) -> Callable[[Path], Tensor]:
    def prepared(path: Path) -> Tensor:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))[None]

    return prepared


def plain(size: Any = 224, resize: Any = 256) -> Callable[[Path], Tensor]:
    """torchvision's transforms as most training code writes them."""
    steps = [transforms.Resize(resize), transforms.CenterCrop(size)]
    return by_pillow(transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]))


# -- the libraries


def torchvision_case(folder: Path) -> Case:
    net = network()
    own = models.DenseNet121_Weights.IMAGENET1K_V1.transforms()
    return Case(net, saved(net, folder / "weights.pth"), by_pillow(own))


def lightning_case(folder: Path) -> Case:
    """What `Trainer` writes beside the weights, and a loss with weights of its own."""
    net = network()

    def wrap(state: dict) -> dict:
        prefixed = {f"backbone.{name}": tensor for name, tensor in state.items()}
        return {
            "epoch": 0,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {**prefixed, "criterion.weight": torch.ones(5)},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"kth_value": torch.tensor(torch.inf)}},
            "optimizer_states": [{"state": {}}],
            "lr_schedulers": [{"last_epoch": 1}],
        }

    return Case(net, saved(net, folder / "last.ckpt", wrap), plain())


class CheXNet(nn.Module):
    """arnoweng's: torchvision's network with a Sequential of Linear and Sigmoid, in DataParallel."""

    def __init__(self) -> None:
        super().__init__()
        self.densenet121 = network(nn.Sequential(nn.Linear(CHANNELS, 14), nn.Sigmoid()))

    def forward(self, batch: Tensor) -> Tensor:
        return self.densenet121(batch)


def chexnet_case(folder: Path) -> Case:
    """It averages ten crops; the fifth is the centre, which is what we take."""
    net = CheXNet().eval()
    ten = transforms.Compose([transforms.Resize(256), transforms.TenCrop(224), lambda crops: crops[4]])
    own = transforms.Compose([ten, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def wrap(state: dict) -> dict:
        return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "best_loss": 0.1}

    return Case(net, saved(net, folder / "model.pth.tar", wrap), by_pillow(own), finish=torch.sigmoid)


def torchreid_case(folder: Path) -> Case:
    """Images are squeezed to 256x128, which its checkpoints do not say."""
    net = scrambled(TorchReid())
    path = saved(net, folder / "model.pth.tar-60", lambda state: {"state_dict": state, "epoch": 60, "rank1": 0.9})
    own = plain((256, 128), (256, 128))
    return Case(net, path, own, {"image_size": (256, 128), "resize": (256, 128)})


def fastai_case(folder: Path) -> Case:
    """fastai cuts the middle square out before it resizes; we cut behind, a third of a pixel beside."""
    net = learner(ConcatPool(), 2 * CHANNELS)

    def square(image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        return image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BILINEAR)

    own = transforms.Compose([square, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    path = saved(net, folder / "stage-1.pth", lambda state: {"model": state, "opt": {"state": [], "hypers": []}})
    return Case(net, path, by_pillow(own), {"resize": 224}, expected=(16, 17.5))


def timm_net(name: str, **options: Any) -> nn.Module:
    """A small network with the stem and the pretrained configuration of `name`."""
    timm = pytest.importorskip("timm")
    config = timm.models.get_pretrained_cfg(name)
    net = timm.models.densenet.DenseNet(8, (2, 2, 2, 2), num_classes=5, **options)
    net.pretrained_cfg = config.to_dict()
    net.default_cfg = net.pretrained_cfg
    return scrambled(net)


def timm_prepared(net: nn.Module) -> Callable[[Path], Tensor]:
    from timm.data import create_transform, resolve_data_config

    return by_pillow(create_transform(**resolve_data_config({}, model=net)))


def timm_module_case(_: Path) -> Case:
    net = timm_net("densenet121.ra_in1k")
    return Case(net, net, timm_prepared(net))


def hugging_face_case(folder: Path) -> Case:
    """The folder that timm itself writes for the hub, with labels."""
    net = timm_net("densenet121.ra_in1k")
    return Case(net, hub_folder(net, folder, label_names=list("abcde")), timm_prepared(net))


def blur_case(folder: Path) -> Case:
    blur = pytest.importorskip("timm.layers").BlurPool2d
    net = timm_net("densenetblur121d.ra_in1k", stem_type="deep", aa_layer=blur)
    return Case(net, hub_folder(net, folder), timm_prepared(net))


def deep_case(folder: Path) -> Case:
    net = timm_net("densenet264d", stem_type="deep")
    return Case(net, hub_folder(net, folder), timm_prepared(net))


def hub_folder(net: nn.Module, folder: Path, **config: Any) -> Path:
    from timm.models import save_for_hf

    save_for_hf(net, folder, model_config=config or None, safe_serialization=True)
    return folder


def monai_case(folder: Path) -> Case:
    """MONAI reads an image as (W, H), squeezes it, and stretches what it finds to 0..1: none of it is in a file.

    Its 'area' interpolation averages whole pixels, Pillow's bilinear filter weights them.
    """
    nets, own = pytest.importorskip("monai.networks.nets"), pytest.importorskip("monai.transforms")
    net = scrambled(nets.DenseNet(2, 3, 6, 8, growth_rate=4, block_config=(2, 3, 2), bn_size=2))
    reader = pytest.importorskip("monai.data").PILReader(reverse_indexing=False)
    steps = [
        own.LoadImage(reader, image_only=True),
        own.EnsureChannelFirst(),
        own.ScaleIntensity(),
        own.Resize((64, 64)),
    ]
    compose = own.Compose(steps)
    stated = {"image_size": 64, "resize": (64, 64), "mean": 0.0, "std": 1.0}

    def prepared(path: Path) -> Tensor:
        return compose(str(path)).as_tensor()[None]

    return Case(net, saved(net, folder / "best_metric_model.pth"), prepared, stated, expected=(32, 34))


def xrv_case(folder: Path) -> Case:
    """The library cuts the middle square out and resizes behind a Gaussian filter (scikit-image)."""
    xrv = pytest.importorskip("torchxrayvision")
    net = scrambled(xrv.models.DenseNet(8, (2, 2, 2), 16, op_threshs=torch.linspace(0.05, 0.9, 18)))
    image = folder / "chest.png"
    with Image.open(CHINA) as photograph:
        photograph.convert("L").save(image)
    steps = transforms.Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224)])

    def prepared(path: Path) -> Tensor:
        with Image.open(path) as gray:
            pixels = xrv.datasets.normalize(np.asarray(gray, np.float32), 255)
        return torch.from_numpy(steps(pixels[None]))[None]

    def finish(outputs: Tensor) -> Tensor:
        return TorchXRayVisionFormat().library_output(outputs, net.state_dict())

    return Case(net, saved(net, folder / "nih.pt"), prepared, expected=(19, 21), finish=finish, image=image)


CASES = {
    "torchvision": torchvision_case,
    "timm": timm_module_case,
    "timm densenetblur121d": blur_case,
    "timm densenet264d": deep_case,
    "Hugging Face folder": hugging_face_case,
    "MONAI": monai_case,
    "TorchXRayVision": xrv_case,
    "fastai": fastai_case,
    "Lightning": lightning_case,
    "torchreid": torchreid_case,
    "CheXNet": chexnet_case,
}


QUICK = ("torchvision", "Hugging Face folder", "TorchXRayVision")


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def exported(request, tmp_path_factory):
    """(the case, our ONNX file of it)."""
    folder = tmp_path_factory.mktemp("library")
    case = CASES[request.param](folder)
    model = densenet_deploy.export(case.source, **case.stated)
    return case, densenet_deploy.load(model.save(folder / "ours.onnx"))


def outputs(model: Any, batch: Tensor) -> Tensor:
    with model.runner("onnxruntime", options=densenet_deploy.RunnerOptions(check_values=False)) as run:
        return torch.from_numpy(run(batch.numpy())[run.outputs[0].name])


def agreement(case: Case, model: Any, batch: Tensor) -> float:
    with torch.inference_mode():
        return decibels(case.module(batch), case.finish(outputs(model, batch)))


def test_the_same_tensor_gives_the_same(exported):
    case, model = exported
    shape = model.manifest.preprocessing.shape
    batch = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    assert agreement(case, model, batch) >= LEAST


def test_a_photograph_as_the_library_prepares_it_gives_the_same(exported):
    case, model = exported
    batch = case.prepared(case.image)
    assert tuple(batch.shape[1:]) == model.manifest.preprocessing.shape
    assert agreement(case, model, batch) >= LEAST


def test_our_preparation_is_the_librarys_or_as_near_as_stated(exported):
    case, model = exported
    facts = model.manifest.preprocessing
    ours = torch.from_numpy(prepare(load_image(case.image, facts.shape[0]), facts))[None]
    theirs = case.prepared(case.image)
    if case.expected is None:
        assert torch.equal(ours, theirs)
        return
    low, high = case.expected
    assert low <= decibels(theirs, ours) <= high, decibels(theirs, ours)


def test_an_image_file_gets_the_librarys_answer(exported):
    """From the file, by nothing but the ONNX file and what it states, where the preparation is the library's."""
    case, model = exported
    if case.expected is not None:
        return
    with torch.inference_mode():
        theirs = case.module(case.prepared(case.image))[0]
    with densenet_deploy.Classifier.open(model.path, "onnxruntime") as classify:
        top = classify(case.image, top_k=len(theirs)).top
    ours = torch.tensor([score.score for score in sorted(top, key=lambda score: score.index)])
    expected = theirs if case.finish is torch.sigmoid else theirs.softmax(0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
