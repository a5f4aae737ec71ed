"""What is tried: precisions and INT8 recipes of a model, each on backends, numbers of threads and batch sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from densenet_deploy.analysis.choice import place_of
from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.packages import is_installed, require_packages
from densenet_deploy.runtime.cpus import cpu_flags, usable_cpus
from densenet_deploy.runtime.runner import Device, Runner, backends, backends_reading
from densenet_deploy.variants import find_variant
from densenet_deploy.workflows.prune.options import PER_LAYER, PruneOptions
from densenet_deploy.workflows.quantize.options import QuantizeOptions, is_recipe_file, options_of
from densenet_deploy.workflows.quantize.preparation import chosen_recipe

PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8")
GOALS: Final = ("latency", "throughput")
_BF16_UNITS: Final = frozenset({"avx512_bf16", "amx_bf16"})
_BATCHES: Final = {"latency": (1,), "throughput": (1, 8, 32)}


@dataclass(frozen=True)
class TuneOptions:
    """What is tried, and which limits the choice has to keep.

    >>> TuneOptions(calibration="images/", max_drop=1.0, max_latency_ms=30.0).goal
    'latency'

    Attributes:
        variants: names of untrained networks to tune beside the given models.
        precisions: of `PRECISIONS`; empty means all that make sense here: INT8 with calibration data, BF16 if the CPU
            has units for it. The FP32 file is always tried, since the others are compared with it.
        recipes: names or TOML files; empty means those with an installed backend.
        backends: empty means all installed ones that read ONNX.
        threads: empty means 1, 2, 4, … up to all that this process may use.
        batches: empty means 1, and 1, 8 and 32 for the goal `throughput`.
        device: as for `open_runner`.
        goal: `latency`, the shortest call of the smallest batch, or `throughput`, the most images/s.
        calibration: a folder or array file; without it INT8 is not tried.
        samples: images of it to use, at most.
        data: class folders or a CSV of labels (see `evaluate`), to measure top-1 or the mean AUROC of labels on.
        ratios: shares of the bottleneck channels to remove; the pruned networks, with widths per layer, are tried in
            FP32 and INT8. They need `calibration` and `max_drop`.
        finetune: whether INT8 and pruned files are fine-tuned with the FP32 model as the target.
        max_drop: percentage points of that accuracy that may be lost relative to the best FP32 model; without `data`,
            of images with another best class.
        max_latency_ms: of the median call.
        max_memory_mib: of the process at its peak.

    Raises:
        UsageError: if an option is out of range or unknown.
    """

    variants: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    device: str | None = None
    goal: str = "latency"
    calibration: StrPath | None = None
    samples: int = 512
    data: StrPath | None = None
    ratios: tuple[float, ...] = ()
    finetune: bool = False
    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_memory_mib: float | None = None

    def __post_init__(self) -> None:
        require_choice("goal", self.goal, GOALS)
        require_range("samples", self.samples, 1, 1_000_000)
        for word in self.variants:
            find_variant(word)
        for word in self.precisions:
            require_choice("precision", word, PRECISIONS)
        for name, values, high in (("batch", self.batches, 65536), ("threads", self.threads, 1024)):
            for value in values:
                require_range(name, value, 1, high)
        if self.device is not None:
            Device.parse(self.device)
        self._check_limits()
        self._check_smaller()

    def _check_limits(self) -> None:
        limits = (
            ("max-drop", self.max_drop, 0.0, 100.0),
            ("max-latency", self.max_latency_ms, 1e-6, 1e9),
            ("max-memory", self.max_memory_mib, 1e-3, 1e9),
        )
        for name, value, low, high in limits:
            if value is not None:
                require_range(name, value, low, high)

    def _check_smaller(self) -> None:
        """Check what makes networks smaller or closer: both learn from images, and what pruning loses needs a limit."""
        for ratio in self.ratios:
            PruneOptions(ratio=ratio, samples=self.samples)
        if len(set(self.ratios)) < len(self.ratios):
            raise UsageError("ratios", "names one twice", "give each share once")
        if self.calibration is None and (self.ratios or self.finetune):
            subject = "ratios" if self.ratios else "finetune"
            raise UsageError(subject, "has no images to learn from", "give --calibration")
        if self.ratios and self.max_drop is None:
            why = "would let the fastest network win, however little is left of its answers"
            raise UsageError("ratios", why, "give --max-drop, the loss that you accept")


GIVEN: Final = "fp32"
"""The name of the form that a model is given in, which others are made from and compared with."""


@dataclass(frozen=True)
class PrecisionOption:
    """A precision, and how it is written: INT8 by a recipe, and pruned before.

    `backends` run it, `name` is part of the file's name.
    """

    name: str
    precision: str
    backends: tuple[str, ...]
    quantize: QuantizeOptions | None = None
    prune: PruneOptions | None = None


@dataclass(frozen=True)
class ModelFile:
    """A file to try: `base` is the name of the FP32 model it was made from, `form` that of its `PrecisionOption`."""

    path: Path
    base: str
    form: str
    precision: str
    sha256: str
    size_bytes: int
    fixed_batch: int | None = None


@dataclass(frozen=True)
class Trial:
    """A candidate: one way to run one file."""

    file: ModelFile
    backend: str
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.file.path.name} on {place_of(self.backend, self.threads, self.batch)}"


@dataclass(frozen=True)
class SearchSpace:
    """All that is tried of each model, and notes on what is not; `precisions` begin with FP32."""

    precisions: tuple[PrecisionOption, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: TuneOptions) -> SearchSpace:
        """Fill in what `options` leave open.

        Raises:
            UnknownNameError: if the backend or recipe is unknown.
            MissingPackageError: if a named backend is not installed, or none is.
        """
        names = _backends(options.backends)
        words, notes = _precisions(options)
        found = [PrecisionOption(word, word, names) for word in words if word != "int8"]
        if "int8" in words:
            recipes, skipped = _int8_options(options, names)
            found, notes = [*found, *recipes, *_pruned(options, names, recipes)], [*notes, *skipped]
        threads = options.threads or tuple(_powers_of_two(usable_cpus()))
        batches = options.batches or _BATCHES[options.goal]
        return cls(tuple(found), tuple(sorted(set(threads))), tuple(sorted(set(batches))), tuple(notes))

    def trials(self, files: Sequence[tuple[PrecisionOption, ModelFile]]) -> tuple[Trial, ...]:
        """Every way to run each file; a file with a fixed batch is run with only that."""
        return tuple(
            Trial(file, backend, threads, batch)
            for option, file in files
            for backend, threads, batch in itertools.product(option.backends, self.threads, self.batches_of(file))
        )

    def batches_of(self, file: ModelFile | None) -> tuple[int, ...]:
        """The batch sizes that `file` runs with."""
        return self.batches if file is None or file.fixed_batch is None else (file.fixed_batch,)


def _backends(names: Sequence[str]) -> tuple[str, ...]:
    kinds = [backends.get(name) for name in names] or backends_reading(".onnx")
    for kind in kinds:
        if ".onnx" not in kind.suffixes:
            raise UnknownNameError.among("backend for ONNX files", kind.name, _names(backends_reading(".onnx")))
        if names:
            require_packages(kind.extra, kind.requires)
    installed = [kind for kind in kinds if is_installed(kind.requires)]
    if not installed:
        require_packages(kinds[0].extra, kinds[0].requires)
    return _names(installed)


def _names(kinds: Sequence[type[Runner]]) -> tuple[str, ...]:
    return tuple(kind.name for kind in kinds)


def _precisions(options: TuneOptions) -> tuple[list[str], list[str]]:
    words: list[str]
    if options.precisions:
        words = [word for word in PRECISIONS if word in options.precisions or word == "fp32"]
    else:
        words = ["fp32", "fp16", *(["bf16"] if cpu_flags() & _BF16_UNITS else []), "int8"]
    if options.calibration is None and "int8" in words:
        return [word for word in words if word != "int8"], ["INT8 is not tried: it needs --calibration"]
    return words, []


def _int8_options(options: TuneOptions, names: Sequence[str]) -> tuple[list[PrecisionOption], list[str]]:
    from densenet_deploy.quantization.recipes.recipe import recipes

    words = options.recipes or tuple(name for name in recipes.items() if name in names)
    found, notes = [], []
    for word in words:
        given: dict[str, Any] = {"samples": options.samples} | ({} if is_recipe_file(word) else {"never_slower": False})
        given |= {"finetune": True} if options.finetune else {}
        quantize = options_of(word, given)
        backend = chosen_recipe(quantize.recipe)
        if backend not in names:
            notes.append(f"the recipe {word} is not tried: {backend} is not among the backends ({', '.join(names)})")
            continue
        name = f"int8.{Path(word).stem if is_recipe_file(word) else word}{'.finetuned' if options.finetune else ''}"
        found.append(PrecisionOption(name, "int8", (backend,), replace(quantize, recipe=backend)))
    return found, notes


def _pruned(
    options: TuneOptions, names: tuple[str, ...], recipes: Sequence[PrecisionOption]
) -> Iterator[PrecisionOption]:
    """Yield the forms of pruned networks: FP32, and INT8 by each of `recipes`."""
    for ratio in options.ratios:
        how = PruneOptions(ratio=ratio, widths=PER_LAYER, samples=options.samples, finetune=options.finetune)
        name = f"pruned-{ratio:g}"
        yield PrecisionOption(name, "fp32", names, prune=how)
        for recipe in recipes:
            yield replace(recipe, name=f"{name}.{recipe.name}", prune=how)


def _powers_of_two(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most
