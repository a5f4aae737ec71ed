"""Train: class folders or CIFAR's archives → a checkpoint with labels and preprocessing, from which `export` goes on.

After every epoch one file, the state, is replaced whole; everything else in the folder is made from it. A run that is
killed goes on from there, to the bits of an undisturbed one (`training/loop.py` says what they depend on).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import GateError, UsageError, counted
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import InputDescription, Model
from densenet_deploy.options import or_default
from densenet_deploy.packages import require_packages
from densenet_deploy.records import to_plain, write_json
from densenet_deploy.training.options import TrainOptions, check_shards
from densenet_deploy.workflows.evaluation.report import BadFile
from densenet_deploy.workflows.load import LoadOptions
from densenet_deploy.workflows.stages import Listener, Stages, Step, ignore, in_notebook
from densenet_deploy.workflows.train.folder import TrainingFolder
from densenet_deploy.workflows.train.network import (
    Student,
    check_stated,
    default_variant,
    require_agreement,
    student_of,
    teacher_of,
    trained_manifest,
    validated,
)
from densenet_deploy.workflows.train.report import EpochRecord, TrainReport

if TYPE_CHECKING:
    import torch

    from densenet_deploy.training.data import TrainingData
    from densenet_deploy.training.loop import Trainer
    from densenet_deploy.training.processes import Processes
    from densenet_deploy.training.state import TrainingState
    from densenet_deploy.workflows.train.search import SearchOptions

_FLOAT_BYTES: Final = 4
_COPIES: Final = 6
"""Weights, momentum, average and best ones in the state, and the two files."""

_FIGURES: Final = ("top1", "top5", "calibration_error")


def train(
    data: StrPath,
    options: TrainOptions | None = None,
    *,
    weights: Any = None,
    val: StrPath | None = None,
    unlabelled: StrPath | None = None,
    out: StrPath | None = None,
    force: bool = False,
    resume: bool = False,
    search: SearchOptions | None = None,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> Model:
    """Train a DenseNet to tell classes of images apart, and return that of the best epoch.

    >>> options = TrainOptions(epochs=1, batch_size=16, flip=False)
    >>> train("calibration/samples", options, weights="densenet_digits.safetensors").report.classes
    10

    Args:
        data: a folder with a folder of images per class, or with those in `train/` and `val/`; or `cifar10`,
            `cifar100`, or one of their archives. Without validation data a tenth of each class is held out.
        options: see `TrainOptions`.
        weights: what the training begins with: whatever `load` takes that is a DenseNet of ours; None: `variant`,
            untrained. Unless its labels are the classes of the data, it gets a new classifier.
        val: class folders to validate on.
        unlabelled: a folder of images that the teacher alone judges.
        out: the folder of the results; None keeps the best network in memory.
        force: replace another training in `out`.
        resume: go on with the training in `out`, if there is one.
        search: numbers of the architecture to try; of the last candidates, which train for the options' epochs, the
            most accurate is returned, and its report compares all.
        progress: is called when a stage begins, and after each step.
        **stated: facts about the images and the network; see `load`. `labels` order the classes.

    Raises:
        UsageError: if an option or fact is invalid, the teacher does not fit, or a resumed training had others.
        DataError: if a class has no image, there is a single class, images cannot be read, or there are fewer than in
            a batch.
        InputError: if a folder or the weights cannot be read.
        OutputExistsError: if another training is in `out`.
        GateError: if the loss or a weight becomes NaN or infinite; the checkpoints of the epochs before stay.
        DeviceError: if the device is missing.
        MissingPackageError: if PyTorch is not installed.
    """
    options, data = or_default(options, TrainOptions), Path(data)
    check_stated(stated)
    if unlabelled is not None and options.teacher is None:
        raise UsageError(f"unlabelled={unlabelled}", "has no teacher to judge its images", "give --teacher")
    if resume and out is None:
        raise UsageError("resume", "has no folder to go on from", "name it with -o")
    require_packages("export", "torch")
    from densenet_deploy.training.data import class_names, image_side, read_data

    if search is not None:
        from densenet_deploy.workflows.train.search import Search

        if weights is not None:
            fix = "leave out --weights; a --teacher may be given"
            raise UsageError("search", f"has the architecture of {weights}", fix)
        one = partial(train, data, val=val, unlabelled=unlabelled)
        return Search(one, options, None if out is None else Path(out), Stages(progress), force, resume).run(
            search, {"variant": default_variant(image_side(data), stated), **stated}
        )
    from densenet_deploy.training.processes import joined

    names = class_names(data)
    with joined(options.device) as processes:
        folder = TrainingFolder(Path(out)) if out is not None else None
        stages = Stages(progress if processes.is_first else ignore)
        with stages("read data"):
            teacher = None if options.teacher is None else teacher_of(options.teacher)
            student = student_of(weights, names, image_side(data), options.seed, teacher, stated)
            taught_by = None if teacher is None else require_agreement(teacher, student.manifest)
            found = read_data(
                data,
                None if val is None else Path(val),
                student.manifest.labels,
                seed=options.seed,
                unlabelled=None if unlabelled is None else Path(unlabelled),
            )
        return _Run(options, processes, folder, stages, student, found, taught_by).trained(force=force, resume=resume)


@dataclass
class _Run:
    """One call of `train` in one process: the student, what it is trained on, and the teacher."""

    options: TrainOptions
    processes: Processes
    folder: TrainingFolder | None
    stages: Stages
    student: Student
    data: TrainingData
    teacher: torch.nn.Module | None
    shards: int = 0

    def trained(self, *, force: bool, resume: bool) -> Model:
        """Train the student and return the best network, with the report."""
        from densenet_deploy.training.data import require_a_batch
        from densenet_deploy.training.state import TrainingState

        folder = self.folder
        if folder is not None and self.processes.is_first:
            folder.check(_COPIES * _FLOAT_BYTES * self._parameters, force=force, resume=resume)
            folder.clean()
        self.processes.gathered(None)  # none reads the folder before it was checked
        require_a_batch(self.data, self.options.batch_size)
        if self.options.check:
            self.data = self._readable()
            require_a_batch(self.data, self.options.batch_size)
        old = TrainingState.read(folder.state) if folder is not None and resume and folder.state.exists() else None
        self.shards = self._shards(old)
        facts = self._facts()
        if old is not None and folder is not None:
            old.require_same(facts, folder.state)
        trainer = self._trainer()
        state = old or TrainingState(facts, machine=self._machine())
        notes = [*self.student.notes, *self.data.notes, *self._notes_on(old, resume=resume)]
        if old is not None:
            trainer.restore(old.trainer)
        state.trainer = trainer.state()
        manifests = self._write(state, is_read=old is not None)
        resumed_from = old.epochs if old is not None else None
        with self.stages("train", f"{self.options.epochs} epochs; fewer with --epochs") as step:
            while state.epochs < self.options.epochs:
                self._epoch(trainer, state, step)
                manifests = self._write(state)
        report = self._report(state, manifests["last"].weights.sha256, resumed_from, notes)
        return self._best(state, manifests["best"], report)

    @property
    def _parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.student.network.parameters())

    def _readable(self) -> TrainingData:
        """Return the data without the images that cannot be read; each process looks at a part of them."""
        from densenet_deploy.training.data import unreadable, without_bad

        examples, channels = [*self.data.training, *self.data.validation], self.student.manifest.preprocessing.shape[0]
        with self.stages("check images", f"{len(examples)} are decoded once; --no-check skips it"):
            own = unreadable(self.processes.share(examples), channels)
            count = self.processes.count
            found = [
                (place * count + rank, bad)
                for rank, part in enumerate(self.processes.gathered(own))
                for place, bad in part
            ]
        return without_bad(self.data, [bad for _, bad in sorted(found, key=lambda one: one[0])], self.options.max_bad)

    def _shards(self, old: TrainingState | None) -> int:
        """The shards that were asked for, else those of the training that goes on, else one per process."""
        count = self.processes.count
        kept = count if old is None else int(old.facts["shards"])
        shards = kept if self.options.shards is None else self.options.shards
        if shards % count:
            why = f"cannot be divided among {count} processes"
            raise UsageError(f"shards={shards}", why, f"give a multiple of {count}, or start other processes")
        return check_shards(self.options.batch_size, shards)

    def _facts(self) -> dict[str, str]:
        """Return all that decides the result, as text by name."""
        from densenet_deploy.sources.weights import weights_of, weights_sha256

        manifest = self.student.manifest
        return {
            **{name: str(value) for name, value in self.options.numbers().items()},
            "shards": str(self.shards),
            "data": self.data.digest(),
            "labels": write_json(list(self.data.labels)),
            "network": write_json(to_plain(manifest.spec)),
            "preprocessing": write_json(to_plain(manifest.preprocessing)),
            "weights": weights_sha256(weights_of(self.student.network)),
            "teacher": "nobody" if self.teacher is None else weights_sha256(dict(self.teacher.state_dict())),
        }

    def _machine(self) -> str:
        import torch

        return f"{self.processes.device.type} with {counted(torch.get_num_threads(), 'thread')}"

    def _notes_on(self, old: TrainingState | None, *, resume: bool) -> list[str]:
        notes = []
        if resume and old is None:
            notes.append("there was nothing to resume: the training began")
        if old is not None and old.machine != self._machine():
            notes.append(
                f"went on with {self._machine()} after {old.machine}: the weights may differ in their last bits"
            )
        if self.shards > 1:
            each = self.options.batch_size // self.shards
            notes.append(f"each batch was normalized in {self.shards} shards of {each} images (--shards)")
        return notes

    def _trainer(self) -> Trainer:
        from densenet_deploy.training.batches import Augmentation, Batches
        from densenet_deploy.training.loop import Trainer
        from densenet_deploy.training.loss import Objective
        from densenet_deploy.training.network import save_memory

        options, preprocessing = self.options, self.student.manifest.preprocessing
        network = self.student.network.to(self.processes.device)
        if options.memory_efficient:
            save_memory(network)
        kind = options.augmentation(min(preprocessing.shape[1:]))
        batches = Batches(
            self.data.training,
            preprocessing,
            Augmentation(kind, options.flip),
            batch_size=options.batch_size,
            shards=self.shards,
            seed=options.seed,
        )
        teacher = None if self.teacher is None else self.teacher.to(self.processes.device)
        objective = Objective(options.label_smoothing, teacher, options.temperature, options.alpha)
        return Trainer(network, batches, options, self.processes, objective, is_pretrained=self.student.is_pretrained)

    def _epoch(self, trainer: Trainer, state: TrainingState, step: Step) -> None:
        """Train and validate for one epoch, and take it into `state`."""
        from densenet_deploy.training.network import copied, weights_in

        start = time.perf_counter()
        try:
            result = trainer.epoch(state.epochs, step)
        except GateError as exc:
            where = "in memory" if self.folder is None else f"in {self.folder.path}"
            kept = f"the checkpoints of epoch {state.epochs} stay {where}" if state.epochs else "no epoch was finished"
            raise GateError(exc.subject, f"{exc.why}; {kept}", exc.fix) from exc
        figures = validated(trainer.result, self.student.manifest, self.data.validation, self.processes)
        state.epochs += 1
        record = EpochRecord(
            epoch=state.epochs,
            loss=result.loss,
            train_top1=result.top1,
            **{name: figures[name] for name in _FIGURES},
            lr=result.lr,
            head_lr=result.head_lr,
            images=result.images,
            seconds=time.perf_counter() - start,
        )
        if not state.records or record.top1 > max(one["top1"] for one in state.records):
            state.best, state.best_epoch = copied(weights_in(trainer.result)), state.epochs
        state.records.append(to_plain(record))
        state.trainer = trainer.state()

    def _write(self, state: TrainingState, *, is_read: bool = False) -> Mapping[str, Manifest]:
        """Write the files, and return the facts that `best` and `last` carry."""
        from densenet_deploy.sources.weights import weights_sha256

        last = state.trainer["average"] or state.trainer["network"]
        parts = {"best": state.best or last, "last": last}
        manifests = {
            part: trained_manifest(self.student.manifest, self.data.name, weights_sha256(tensors))
            for part, tensors in parts.items()
        }
        if self.folder is not None and self.processes.is_first:
            (self.folder.rewrite if is_read else self.folder.write)(state, manifests)
        return manifests

    def _report(self, state: TrainingState, sha256: str, resumed_from: int | None, notes: list[str]) -> TrainReport:
        folder, data, manifest = self.folder, self.data, self.student.manifest
        history = tuple(EpochRecord(**record) for record in state.records)
        best = history[state.best_epoch - 1]
        curves = None
        if folder is not None and self.processes.is_first:
            curves = folder.draw(state.records, f"{manifest.variant} on {data.name}")
            if curves is None:
                notes.append("no curves were drawn: matplotlib is not installed")
        return TrainReport(
            checkpoint=None if folder is None else folder.best,
            last=None if folder is None else folder.last,
            curves=curves,
            variant=manifest.variant,
            parameters=self._parameters,
            classes=len(data.labels),
            top1=best.top1,
            top5=best.top5,
            calibration_error=best.calibration_error,
            epochs=state.epochs,
            best_epoch=state.best_epoch,
            loss=history[-1].loss,
            training_images=len(data.training),
            validation_images=len(data.validation),
            bad=tuple(BadFile(bad.path, bad.error.why) for bad in data.bad),
            processes=self.processes.count,
            shards=self.shards,
            resumed_from=resumed_from,
            weights_sha256=sha256,
            input=InputDescription.of(manifest.preprocessing, ()),
            history=history,
            stages=self.stages.seconds,
            notes=tuple(notes) if self.processes.is_first else (),
        )

    def _best(self, state: TrainingState, manifest: Manifest, report: TrainReport) -> Model:
        from densenet_deploy.models.build import build_model
        from densenet_deploy.sources.weights import weights_of

        network = build_model(self.student.network.spec)
        network.load_state_dict(state.best, strict=False)  # batch counters are not kept
        name = "best" if self.folder is None else self.folder.best.stem
        return Model(
            name, manifest, network, weights_of(network), report=report, output_names=(network.spec.output_name,)
        )
