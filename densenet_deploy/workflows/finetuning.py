"""What fine-tuning did, as `quantize` and `prune` report it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finetuning:
    """What fine-tuning did to a file, the original of which is the float model.

    Attributes:
        images: learnt from.
        held_out: images on which the two SQNRs were measured; nothing was learnt from them.
        steps: batches learnt from.
        seconds: of all of it.
        sqnr_before_db, sqnr_after_db: of the worst output on these images, before and after.
        sqnr_rounded_db: after weights were rounded anew, before the first step; None where they were not.
        seed: of what it drew; the same seed and number of steps give the same file.
        kept: whether the report is about the fine-tuned file. If not, it is about the file as it was before.
        stopped: why it ended, and why the result was not kept.
    """

    images: int
    held_out: int
    steps: int
    seconds: float
    sqnr_before_db: float
    sqnr_after_db: float
    seed: int
    kept: bool
    stopped: str
    sqnr_rounded_db: float | None = None

    def __str__(self) -> str:
        rounded = "" if self.sqnr_rounded_db is None else f" -> {self.sqnr_rounded_db:.1f} (rounded anew)"
        change = f"SQNR {self.sqnr_before_db:.1f}{rounded} -> {self.sqnr_after_db:.1f} dB"
        found = f"{change} on {self.held_out} held-out images"
        what = "" if self.kept else ", not kept"
        learnt = f"{self.steps} steps on {self.images} others in {self.seconds:.0f} s"
        return f"{found}{what}; {learnt}: {self.stopped}"
