"""CIFAR's archives, as published and damaged, written here in both forms."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.training.cifar import cifar_labels, find_cifar, read_cifar
from densenet_deploy.training.data import class_names, read_data

COUNTS = {"train": 6, "test": 4}


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def files_of(classes: int, binary: bool) -> dict[str, bytes]:
    """The files of one version, with two images in each batch."""
    names = [f"class {number}" for number in range(classes)]
    training = [f"data_batch_{number}" for number in range(1, 6)] if classes == 10 else ["train"]
    test = "test_batch" if classes == 10 else "test"
    batches = {name: (rows(2, seed), [seed % classes, classes - 1]) for seed, name in enumerate([*training, test])}
    if binary:
        coarse = [] if classes == 10 else [7]
        made = {
            f"{name}.bin": b"".join(bytes([*coarse, label]) + row.tobytes() for row, label in zip(*batch, strict=True))
            for name, batch in batches.items()
        }
        return made | {"batches.meta.txt" if classes == 10 else "fine_label_names.txt": "\n".join(names).encode()}
    key, meta, label_key = (
        (b"labels", "batches.meta", b"label_names") if classes == 10 else (b"fine_labels", "meta", b"fine_label_names")
    )
    made = {name: pickle.dumps({b"data": data, key: labels}, protocol=2) for name, (data, labels) in batches.items()}
    return made | {meta: pickle.dumps({label_key: [name.encode() for name in names]}, protocol=2)}


VERSIONS = {
    "cifar-10-python.tar.gz": ("cifar-10-batches-py", 10, False),
    "cifar-10-binary.tar.gz": ("cifar-10-batches-bin", 10, True),
    "cifar-100-python.tar.gz": ("cifar-100-python", 100, False),
    "cifar-100-binary.tar.gz": ("cifar-100-binary", 100, True),
}


def write_archive(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("archive", VERSIONS)
@pytest.mark.parametrize("unpacked", [False, True])
def test_images_and_classes_are_those_of_the_archive(tmp_path: Path, archive: str, unpacked: bool) -> None:
    folder, classes, binary = VERSIONS[archive]
    path = write_archive(tmp_path / archive, folder, files_of(classes, binary))
    if unpacked:
        with tarfile.open(path) as opened:
            opened.extractall(tmp_path, filter="data")
        path.unlink()
        path = tmp_path / folder
    found = find_cifar(path)
    assert found == path
    cifar = read_cifar(path)
    assert cifar.name == f"cifar{classes}"
    assert cifar.labels == cifar_labels(path) == tuple(f"class {number}" for number in range(classes))
    batches = 5 if classes == 10 else 1
    images, indices = cifar.training
    assert images.shape == (2 * batches, 32, 32, 3)
    assert list(indices[:2]) == [0, classes - 1]
    red, green, blue = rows(2, 0)[1].reshape(3, 32, 32)
    assert np.array_equal(images[1], np.stack([red, green, blue], -1))
    assert np.array_equal(cifar.test[0][0], rows(2, batches)[0].reshape(3, 32, 32).transpose(1, 2, 0))


def test_the_name_is_looked_for_in_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz or cifar-10-binary\.tar\.gz into one of them"):
        find_cifar(Path("cifar10"))
    (tmp_path / "data").mkdir()
    write_archive(tmp_path / "data" / "cifar-10-binary.tar.gz", *_binary())
    assert find_cifar(Path("cifar10")) == Path("data/cifar-10-binary.tar.gz")
    assert find_cifar(Path("data")) == Path("data/cifar-10-binary.tar.gz")
    assert class_names(Path("cifar10"))[3] == "class 3"
    data = read_data(Path("cifar10"), None, class_names(Path("cifar10")), seed=0)
    assert (len(data.training), len(data.validation), data.name) == (10, 2, "cifar10")
    assert data.notes == ("validated on the published test images: the best epoch is chosen on them",)


def test_labels_order_the_classes_or_rename_them(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "cifar-10-binary.tar.gz", *_binary())
    names = cifar_labels(path)
    plain = [example.index for example in read_data(path, None, names, seed=0).training]
    backwards = read_data(path, None, names[::-1], seed=0)
    assert [example.index for example in backwards.training] == [9 - index for index in plain]
    renamed = read_data(path, None, tuple("abcdefghij"), seed=0)
    assert ([example.index for example in renamed.training], renamed.labels) == (plain, tuple("abcdefghij"))
    with pytest.raises(DataError, match="has 10 classes, and 3 labels were stated"):
        read_data(path, None, ("a", "b", "c"), seed=0)


def _binary() -> tuple[str, dict[str, bytes]]:
    return "cifar-10-batches-bin", files_of(10, binary=True)


class Code:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch was-run",)


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = files_of(10, binary=False)
    files["data_batch_2"] = pickle.dumps({b"data": Code(), b"labels": [0]}, protocol=2)
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    with pytest.raises(DataError, match=r"data_batch_2 is not a pickle of arrays and lists \(it needs posix.system\)"):
        read_cifar(path)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda files: files.pop("data_batch_5.bin"), "no file cifar-10-batches-bin/data_batch_5.bin"),
        (lambda files: files.update({"test_batch.bin": b"\0" * 3072}), "3072 bytes, not a multiple of 3073"),
        (lambda files: files.update({"test_batch.bin": b"\x0a" + b"\0" * 3072}), "a class outside 0 to 9"),
        (lambda files: files.update({"batches.meta.txt": b"a\nb"}), "names 2 classes, not 10"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, why: str) -> None:
    folder, files = _binary()
    damage(files)
    path = write_archive(tmp_path / "cifar-10-binary.tar.gz", folder, files)
    with pytest.raises(DataError, match=why):
        read_cifar(path)


def test_a_cut_archive_and_one_of_other_arrays_are_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "cifar-10-binary.tar.gz", *_binary())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="damaged archive"):
        read_cifar(path)
    files = files_of(100, binary=False)
    files["train"] = pickle.dumps({b"data": rows(3, 0), b"fine_labels": [1, 2]}, protocol=2)
    path = write_archive(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", files)
    with pytest.raises(DataError, match=r"train holds uint8 of \(3, 3072\) for 2 classes"):
        read_cifar(path)
