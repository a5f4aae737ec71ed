"""Random networks: what the module computes, every CPU backend computes from the file that `export` wrote."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from densenet_deploy.errors import UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.manifest import sides
from densenet_deploy.models.build import build_model
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.variants.spec import HEADS, POOLINGS, STEMS, DenseNetSpec
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load
from tests.properties.holds import holds_for

BACKENDS = [name for name in ("onnxruntime", "openvino", "torch") if is_installed(name)]

# FP32 sums of at most a few hundred products in another order, through at most twenty layers; a wrong channel, pool or
# factor is off by a tenth or more.
ROUNDING = 1e-4

REQUESTS = st.fixed_dictionaries(
    {
        "architecture": st.builds(
            Architecture,
            growth_rate=st.integers(1, 5),
            blocks=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
            init_features=st.integers(1, 7),
            compression=st.sampled_from((0.5, 1.0, 0.3, 0.9)),
            bn_size=st.integers(0, 3),
            stem=st.sampled_from(STEMS),
        ),
        "num_classes": st.integers(1, 6),
        "head": st.sampled_from(HEADS),
        "image_size": st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40)),
        "channels": st.integers(1, 4),
        "seed": st.integers(0, 1000),
    }
)


def _smallest(request: dict[str, Any]) -> int | None:
    """The smallest image that the network takes, or None where a transition would keep no channel."""
    changes = request["architecture"].changes()
    try:
        return DenseNetSpec(**changes).smallest_image_size  # type: ignore[arg-type]
    except UsageError:
        return None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks") / "network.onnx"


@holds_for(few=2, many=15, shrink=False, request_=REQUESTS, batch=st.integers(1, 3), fixed=st.booleans())
def test_every_backend_computes_what_the_module_computes(
    path: Path, request_: dict[str, Any], batch: int, fixed: bool
) -> None:
    smallest = _smallest(request_)
    refused = smallest is None or min(sides(request_["image_size"])) < smallest
    with pytest.raises(UsageError) if refused else contextlib.nullcontext():
        export(options=ExportOptions(batch=batch if fixed else None), out=path, force=True, **request_)
    if refused:
        return
    module = load(**request_).module
    shape = (batch, request_["channels"], *sides(request_["image_size"]))
    _require_same_answers(module, path, shape, request_["seed"])


HEADS_OF_OTHERS = st.builds(
    DenseNetSpec,
    growth_rate=st.integers(1, 4),
    blocks=st.just((2, 1)),
    init_features=st.integers(2, 6),
    stem=st.sampled_from(STEMS),
    num_classes=st.integers(1, 6),
    head=st.sampled_from(("classifier", "features")),
    in_channels=st.integers(1, 4),
    pooling=st.sampled_from(POOLINGS),
    hidden=st.lists(st.sampled_from(("linear:5", "linear:7:nobias", "norm", "relu")), max_size=4).map(" ".join),
    bias=st.booleans(),
)


@holds_for(few=2, many=15, shrink=False, spec=HEADS_OF_OTHERS, seed=st.integers(0, 1000))
def test_every_backend_computes_the_heads_and_stems_of_others(path: Path, spec: DenseNetSpec, seed: int) -> None:
    module = build_model(spec, seed=seed)
    model = export(module, image_size=12, out=path, force=True)
    assert model.spec == spec
    _require_same_answers(module, path, (2, spec.in_channels, 12, 12), seed)


def _require_same_answers(module: Any, path: Path, shape: tuple[int, ...], seed: int) -> None:
    pixels = np.random.default_rng(seed).standard_normal(shape, np.float32)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = module(torch.from_numpy(pixels)).numpy()
    for backend in BACKENDS:
        with open_runner(module if backend == "torch" else path, backend, "cpu") as runner:
            (found,) = runner.run({"input": pixels}).values()
        tolerance = ROUNDING * max(1e-3, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=backend)
