"""What can be chosen about a build, for every TensorRT alike. What a flavour cannot give is said in `support.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.sidecar import HARDWARE_LEVELS, PRECISIONS
from densenet_deploy.runtime.trt import FLAVOURS

VERBOSITIES: Final = ("detailed", "names", "none")
_LARGEST_BATCH: Final = 65536


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        flavour: `tensorrt` or `rtx`.
        precision: what the graph holds: `fp32`, `fp16`, `bf16`, `int8`.
        profiles: ranges of batches; none means batch 1, or the batch that the file is fixed to.
        targets: compute capabilities (`8.6`) to build for; none means what the flavour takes: full TensorRT the GPU at
            hand, TensorRT-RTX all but Turing.
        tf32: whether float32 layers may be computed with 10 fraction bits.
        workspace_bytes: memory that a layer may use while it runs; None leaves it to TensorRT.
        optimization_level: 0 to 5; None leaves it to TensorRT.
        timing_cache: a file that remembers how fast kernels were.
        hardware: `none`, `ampere-plus` (GPUs from 8.0 on), `same-compute-capability`.
        version_compatible: whether later versions may load the plan.
        refit: whether weights can be replaced later.
        strip_weights: leave the weights out of the plan; it is refitted before it runs.
        dla: the deep-learning accelerator to run on; what it cannot do falls back to the GPU.
        aux_streams: streams that layers may be spread over besides the caller's.
        verbosity: what the plan tells the inspector: `detailed`, `names` or `none`.
    """

    flavour: str
    precision: str
    profiles: tuple[BatchProfile, ...] = ()
    targets: tuple[str, ...] = ()
    tf32: bool = False
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    hardware: str = "none"
    version_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    dla: int | None = None
    aux_streams: int | None = None
    verbosity: str = "detailed"

    def __post_init__(self) -> None:
        require_choice("flavour", self.flavour, FLAVOURS)
        require_choice("precision", self.precision, PRECISIONS)
        require_choice("hardware-compatibility", self.hardware, HARDWARE_LEVELS)
        require_choice("verbosity", self.verbosity, VERBOSITIES)
        for profile in self.profiles:
            _check_profile(profile)
        for target in self.targets:
            if re.fullmatch(r"\d{1,2}\.\d", target) is None:
                raise UsageError(f"--target={target}", "is no compute capability", "write it like --target 8.6")
        for name, value, low, high in (
            ("workspace", self.workspace_bytes, 1, 2**50),
            ("optimization-level", self.optimization_level, 0, 5),
            ("dla", self.dla, 0, 15),
            ("aux-streams", self.aux_streams, 0, 64),
        ):
            if value is not None:
                require_range(name, value, low, high)
        if self.tf32 and self.precision != "fp32":
            raise UsageError("--tf32", f"is about float32 layers, and this is {self.precision}", "give it with --fp32")
        if self.dla is not None and self.precision not in ("fp16", "int8"):
            raise UsageError(f"--dla={self.dla}", f"a DLA computes no {self.precision}", "give --fp16 or --int8")

    def to_facts(self) -> dict[str, Any]:
        """Return the options as JSON has them."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> BuildOptions:
        """Read what `to_facts` wrote."""
        profiles = tuple(BatchProfile(**profile) for profile in facts["profiles"])
        return cls(**{**facts, "profiles": profiles, "targets": tuple(facts["targets"])})


def batch_profiles(low: list[int], opt: list[int], high: list[int]) -> tuple[BatchProfile, ...]:
    """Put profiles together from the numbers given for each, in order; what is missing follows from the others.

    >>> batch_profiles([], [], [8])
    (BatchProfile(min=1, opt=8, max=8),)

    Raises:
        UsageError: if they are given for different numbers of profiles, or out of order.
    """
    count = max(len(low), len(opt), len(high))
    if any(len(numbers) not in (0, count) for numbers in (low, opt, high)):
        why = f"were given {len(low)}, {len(opt)} and {len(high)} times"
        raise UsageError("--min-batch, --opt-batch, --max-batch", why, "give each once a profile, or leave it out")
    profiles = []
    for index in range(count):
        largest = high[index] if high else (opt or low)[index]
        smallest = low[index] if low else 1
        profiles.append(BatchProfile(smallest, opt[index] if opt else largest, largest))
        _check_profile(profiles[-1])
    return tuple(profiles)


def _check_profile(profile: BatchProfile) -> None:
    for name, value in (("min", profile.min), ("opt", profile.opt), ("max", profile.max)):
        require_range(f"{name}-batch", value, 1, _LARGEST_BATCH)
    if not profile.min <= profile.opt <= profile.max:
        order = f"min {profile.min}, opt {profile.opt}, max {profile.max}"
        raise UsageError("batch", f"is out of order: {order}", "give min ≤ opt ≤ max")
