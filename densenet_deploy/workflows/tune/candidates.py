"""What can be tried: forms of a model (precision, recipe), each on backends, numbers of threads and batch sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from densenet_deploy.errors import UnknownNameError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.packages import is_installed, require_packages
from densenet_deploy.runtime.cpus import cpu_flags, usable_cpus
from densenet_deploy.runtime.runner import Device, Runner, backends, backends_reading
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import chosen_recipe
from densenet_deploy.workflows.quantize.recipe_file import is_recipe_file, options_of

PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8")
GOALS: Final = ("latency", "throughput")
_BF16_UNITS: Final = frozenset({"avx512_bf16", "amx_bf16"})
_BATCHES: Final = {"latency": (1,), "throughput": (1, 8, 32)}
_BASE: Final = "fp32"


@dataclass(frozen=True)
class TuneOptions:
    """What to search, and what must hold of the choice.

    Attributes:
        precisions: of `PRECISIONS`; empty means all that make sense here: INT8 with calibration data, BF16 where the
            CPU has units for it. The float file is always tried: the others are compared with it.
        recipes: names or TOML files; empty means those whose backend is installed.
        backends: empty means all installed ones that read ONNX.
        threads: empty means 1, 2, 4, … up to all that this process may use.
        batches: empty means 1, and for the goal `throughput` 1, 8 and 32.
        device: as for `open_runner`.
        goal: `latency`, the shortest call of the smallest batch; or `throughput`, the most images a second.
        calibration: a folder or array file; `samples` of it are used.
        data: class folders to measure top-1 on.
        max_drop: percentage points of top-1 that may be lost to the best float model; without `data`, of images
            whose best class may change.
        max_latency_ms: of the median call. max_memory_mib: of the process, at its peak.
    """

    precisions: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    device: str | None = None
    goal: str = "latency"
    calibration: Path | None = None
    samples: int = 512
    data: Path | None = None
    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_memory_mib: float | None = None

    def __post_init__(self) -> None:
        require_choice("goal", self.goal, GOALS)
        require_range("samples", self.samples, 1, 1_000_000)
        for word in self.precisions:
            require_choice("precision", word, PRECISIONS)
        for size in self.batches:
            require_range("batch", size, 1, 65536)
        for count in self.threads:
            require_range("threads", count, 1, 1024)
        if self.device is not None:
            Device.parse(self.device)
        if self.max_drop is not None:
            require_range("max-drop", self.max_drop, 0.0, 100.0)
        if self.max_latency_ms is not None:
            require_range("max-latency", self.max_latency_ms, 1e-6, 1e9)
        if self.max_memory_mib is not None:
            require_range("max-memory", self.max_memory_mib, 1e-3, 1e9)


@dataclass(frozen=True)
class Form:
    """A precision, and for INT8 how it is written; `backends` run it. `name` stands in the file's name."""

    name: str
    precision: str
    backends: tuple[str, ...]
    quantize: QuantizeOptions | None = None


@dataclass(frozen=True)
class ModelFile:
    """A form that has been made: `base` names the float model it was made of, `size_bytes` the file's size."""

    path: Path
    base: str
    form: str
    precision: str
    sha256: str
    size_bytes: int
    fixed_batch: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to run one file."""

    file: ModelFile
    backend: str
    threads: int
    batch: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.file.path.name} on {self.backend}, {threads}{batch}"


@dataclass(frozen=True)
class Space:
    """All that will be tried of each model, and notes on what will not.

    `forms` begin with the float file itself.
    """

    forms: tuple[Form, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: TuneOptions) -> Space:
        """Fill in what `options` leave open.

        Raises:
            UnknownNameError: if there is no such backend or recipe.
            MissingPackageError: if a backend that was named is not installed, or none is.
        """
        names = _backends(options.backends)
        wanted, notes = _precisions(options)
        forms = [Form(word, word, names) for word in wanted if word != "int8"]
        if "int8" in wanted:
            ours, told = _int8_forms(options, names)
            forms, notes = [*forms, *ours], [*notes, *told]
        threads = options.threads or tuple(_powers_of_two(usable_cpus()))
        batches = options.batches or _BATCHES[options.goal]
        return cls(tuple(forms), tuple(sorted(set(threads))), tuple(sorted(set(batches))), tuple(notes))

    def candidates(self, files: Sequence[tuple[Form, ModelFile]]) -> tuple[Candidate, ...]:
        """Every way to run each file; one of a fixed batch is run with that alone."""
        return tuple(
            Candidate(file, backend, threads, batch)
            for form, file in files
            for backend, threads, batch in itertools.product(
                form.backends, self.threads, self.batches if file.fixed_batch is None else (file.fixed_batch,)
            )
        )


def _backends(asked: Sequence[str]) -> tuple[str, ...]:
    kinds = [backends.get(name) for name in asked] or backends_reading(".onnx")
    for kind in kinds:
        if ".onnx" not in kind.suffixes:
            raise UnknownNameError.among("backend for ONNX files", kind.name, _names(backends_reading(".onnx")))
        if asked:
            require_packages(kind.extra, kind.requires)
    installed = [kind for kind in kinds if is_installed(kind.requires)]
    if not installed:
        require_packages(kinds[0].extra, kinds[0].requires)
    return _names(installed)


def _names(kinds: Sequence[type[Runner]]) -> tuple[str, ...]:
    return tuple(kind.name for kind in kinds)


def _precisions(options: TuneOptions) -> tuple[list[str], list[str]]:
    wanted: list[str]
    if options.precisions:
        wanted = [word for word in PRECISIONS if word in options.precisions or word == _BASE]
    else:
        wanted = ["fp32", "fp16", *(["bf16"] if cpu_flags() & _BF16_UNITS else []), "int8"]
    if options.calibration is None and "int8" in wanted:
        return [word for word in wanted if word != "int8"], ["INT8 is not tried: it needs --calibration"]
    return wanted, []


def _int8_forms(options: TuneOptions, names: Sequence[str]) -> tuple[list[Form], list[str]]:
    from densenet_deploy.quantize.recipes.recipe import recipes

    words = options.recipes or tuple(name for name in recipes.items() if name in names)
    forms, notes = [], []
    for word in words:
        given = {"samples": options.samples} | ({} if is_recipe_file(word) else {"never_slower": False})
        how = options_of(word, given)
        runs_on = chosen_recipe(how.recipe)
        if runs_on not in names:
            notes.append(f"the recipe {word} is not tried: {runs_on} is not among the backends ({', '.join(names)})")
            continue
        name = f"int8.{Path(word).stem if is_recipe_file(word) else word}"
        forms.append(Form(name, "int8", (runs_on,), replace(how, recipe=runs_on)))
    return forms, notes


def _powers_of_two(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most
