"""What can be chosen about pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range

UNIFORM: Final = "uniform"
PER_LAYER: Final = "per-layer"
WIDTHS: Final = (UNIFORM, PER_LAYER)


@dataclass(frozen=True)
class PruneOptions:
    """How much to remove: exactly one of `ratio`, `max_drop` and `min_sqnr`.

    >>> PruneOptions(max_drop=0.5, finetune=True).samples
    256

    Attributes:
        ratio: share of the channels of every bottleneck, above 0 and below 1.
        max_drop: percentage points of top-1, or of a multilabel model's mean AUROC, that may be lost on the calibration
            images that did not choose the channels; the calibration folder then holds class folders.
        min_sqnr: SQNR of the outputs in dB, on the same images, that the smallest network has to reach.
        widths: of a ratio: `uniform`, or `per-layer`: as many multiply-accumulates are removed, where they cost least
            accuracy. None: uniform with a ratio; a limit always chooses per layer.
        samples: calibration images to use at most, a seeded subset; a quarter of them is held out.
        finetune: whether to train the pruned network afterwards, for the outputs of the original on the same images.
        finetune_seconds: how long that learns, at most; it makes fewer steps where they do not fit in.
        finetune_seed: of the order of images.
    """

    ratio: float | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    widths: str | None = None
    samples: int = 256
    finetune: bool = False
    finetune_seconds: float = 300.0
    finetune_seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", "max_drop", "min_sqnr") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"--{name.replace('_', '-')}" for name in given) or "prune"
            why = "ask for different things" if given else "was not told how much to remove"
            raise UsageError(found, why, "give one of --ratio, --max-drop and --min-sqnr")
        if self.ratio is not None and not 0 < self.ratio < 1:
            why = "removes no channel" if self.ratio == 0 else "is not a share above 0 and below 1"
            raise UsageError(f"ratio={self.ratio:g}", why, "give a share such as 0.25")
        if self.max_drop is not None:
            require_range("max-drop", self.max_drop, 0.0, 100.0)
        if self.min_sqnr is not None:
            require_range("min-sqnr", self.min_sqnr, 0.0, 200.0)
        if self.widths is not None:
            require_choice("widths", self.widths, WIDTHS)
        if self.widths == UNIFORM and self.ratio is None:
            raise UsageError("widths=uniform", "applies to --ratio: a limit chooses per layer", "leave it out")
        require_range("samples", self.samples, 1, 1_000_000)
        require_range("finetune-seconds", self.finetune_seconds, 1.0, 86_400.0)
        require_range("finetune-seed", self.finetune_seed, 0, 2**32 - 1)

    @property
    def is_per_layer(self) -> bool:
        """Whether every layer gets a width of its own."""
        return self.ratio is None or self.widths == PER_LAYER
