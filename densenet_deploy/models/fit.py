"""Put weights into the network they belong to, or say in which way they do not fit and what they look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from densenet_deploy.errors import CheckpointError
from densenet_deploy.models.build import DenseNet, empty_model
from densenet_deploy.models.state_dict import COUNTER
from densenet_deploy.variants import Variant, closest_variant
from densenet_deploy.variants.infer import Shapes, spec_from_shapes

_LISTED: Final = 5


def fitted_model(subject: object, variant: Variant, tensors: Mapping[str, Tensor]) -> DenseNet:
    """Return the network of `variant` in eval mode, holding exactly `tensors`; batch counters start at 0.

    Raises:
        CheckpointError: naming at most five parameters that do not fit, and the variant that the weights look like.
    """
    model = empty_model(variant.spec)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if misfits := _misfits(wanted, found):
        raise _misfit_error(subject, variant, misfits, found)
    counters = {name: torch.tensor(0) for name in model.state_dict() if name.endswith(COUNTER)}
    model.load_state_dict({**tensors, **counters}, assign=True)
    return model


def _misfits(wanted: Shapes, found: Shapes) -> list[str]:
    missing = [f"{name} is missing" for name in wanted if name not in found]
    unexpected = [f"{name} is unexpected" for name in found if name not in wanted]
    reshaped = [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return missing + unexpected + reshaped


def _misfit_error(subject: object, variant: Variant, misfits: list[str], found: Shapes) -> CheckpointError:
    more = f" and {len(misfits) - _LISTED} more" if len(misfits) > _LISTED else ""
    why = f"does not fit {variant.artifact_name}: {', '.join(misfits[:_LISTED])}{more}"
    try:
        spec = spec_from_shapes(found)
    except CheckpointError as exc:
        return CheckpointError(subject, why, f"it looks like no DenseNet ({exc.why}): give another file")
    likeness = closest_variant(spec)
    if spec.same_architecture(variant.spec):
        return CheckpointError(subject, why, "it is incomplete or was changed: save the whole state_dict again")
    return CheckpointError(subject, why, f"it looks like {likeness.artifact_name}: check --variant and the file")
