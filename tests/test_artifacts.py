"""Artifacts as files: what a file is, where results go, and that every file is written whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper, save_model

from densenet_deploy.artifacts import (
    Artifact,
    cache_folder,
    folder_beside,
    folder_made,
    model_sha256,
    os_errors_about,
    output_path,
    prepare_output,
    refuse_foreign_output,
    require_data_within,
    require_file,
    require_ir,
    require_room,
    sha256_of,
    write_file,
    written_beside,
)
from densenet_deploy.errors import (
    InputError,
    ManifestError,
    ModelFileError,
    OutputExistsError,
    ResourceError,
    UsageError,
)
from densenet_deploy.manifest import PREFIX, Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.onnx_envelope import append_metadata

MANIFEST = Manifest("121", {"stem": "cifar"}, WeightsOrigin("none", "00", 0), Preprocessing(), tools={"torch": "2"})
OTHER = dataclasses.replace(MANIFEST, variant="169")
EMPTY_GRAPH = b"\x3a\x00"  # field 7 of ModelProto, of length 0


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _onnx_bytes(manifest: Manifest | None = MANIFEST) -> bytes:
    return append_metadata(EMPTY_GRAPH, manifest.to_strings() if manifest else {})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(_onnx_bytes())
    return path


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_path_that_no_system_knows_is_bad_input(name: str) -> None:
    with pytest.raises(InputError) as caught:
        sha256_of(Path(name))
    assert caught.value.subject in ("a\\ud800b", "a\\x00b")


def test_an_error_that_is_not_about_the_path_stays_what_it_is():
    with pytest.raises(ValueError, match="other"), os_errors_about("good"):
        raise ValueError("other")


class TestCacheFolder:
    def test_it_is_below_the_folder_that_the_environment_names(self, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
        assert cache_folder("gpu", "a") == Path("/var/caches/densenet-deploy/gpu/a")

    @pytest.mark.parametrize("relative", [None, "", "caches"])
    def test_a_relative_one_is_ignored(self, monkeypatch, relative):
        monkeypatch.setenv("HOME", "/home/somebody")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if relative is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache_folder() == Path("/home/somebody/.cache/densenet-deploy")


class TestRequireFile:
    def test_one_byte_is_enough_and_none_is_not(self, tmp_path):
        (tmp_path / "m").write_bytes(b"1")
        require_file(tmp_path / "m")
        (tmp_path / "m").write_bytes(b"")
        with pytest.raises(InputError):
            require_file(tmp_path / "m")


class TestFolderMade:
    def test_all_of_it_is_made_and_stays(self, tmp_path):
        with folder_made(tmp_path / "a" / "b"):
            pass
        assert (tmp_path / "a" / "b").is_dir()

    def test_what_was_made_goes_when_the_block_fails_and_what_was_there_stays(self, tmp_path):
        (tmp_path / "old").mkdir()
        with pytest.raises(KeyError), folder_made(tmp_path / "old" / "a" / "b"):
            raise KeyError
        assert _names(tmp_path / "old") == []

    def test_a_folder_that_others_have_filled_stays(self, tmp_path):
        with pytest.raises(KeyError), folder_made(tmp_path / "a" / "b"):
            raise KeyError((tmp_path / "a" / "mine").touch())
        assert _names(tmp_path / "a") == ["mine"]


class TestWrittenBeside:
    def test_the_path_is_unused_and_in_the_same_folder(self, tmp_path):
        with written_beside(tmp_path / "a" / "m.onnx") as one, written_beside(tmp_path / "a" / "m.onnx") as other:
            assert one.parent == other.parent == tmp_path / "a"
            assert one != other
            assert not one.exists()

    def test_what_is_left_is_removed_with_the_folder(self, tmp_path):
        with pytest.raises(KeyError), written_beside(tmp_path / "a" / "m.onnx") as temporary:
            raise KeyError(temporary.touch())
        assert _names(tmp_path) == []

    def test_errors_of_the_system_name_the_path(self, tmp_path):
        path = tmp_path / "m.onnx"
        with pytest.raises(ResourceError) as caught, written_beside(path):
            raise OSError(errno.ENOSPC, "full")
        assert caught.value.subject == str(path)


class TestWriteFile:
    def test_parts_follow_one_another(self, tmp_path):
        write_file(tmp_path / "m", b"a", bytearray(b"b"), memoryview(b"c"))
        assert (tmp_path / "m").read_bytes() == b"abc"

    def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(self, model, monkeypatch):
        """What the disk is asked to keep: the whole file under another name, then the folder with the new name."""
        old, synced, really = model.read_bytes(), [], os.fsync

        def fsync(descriptor):
            status = os.fstat(descriptor)
            kept = "folder" if stat.S_ISDIR(status.st_mode) else status.st_size
            synced.append((descriptor, kept, model.read_bytes()))
            really(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        write_file(model, b"new")
        assert [found[1:] for found in synced] == [(3, old), ("folder", b"new")]
        for descriptor, *_ in synced:
            with pytest.raises(OSError):  # noqa: PT011 - it is closed
                os.fstat(descriptor)

    def test_makes_folders_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "a" / "b" / "model.onnx"
        write_file(path, b"new")
        assert path.read_bytes() == b"new"
        assert _names(path.parent) == ["model.onnx"]

    def test_replaces_what_stood_there(self, model):
        write_file(model, b"new")
        assert model.read_bytes() == b"new"
        assert _names(model.parent) == ["model.onnx"]

    @pytest.mark.parametrize("name", ["with space", "new\nline", "🐈" * 60, "a" * 250, os.fsdecode(b"odd\xff")])
    def test_any_name_that_the_file_system_takes_is_good(self, tmp_path, name):
        write_file(tmp_path / name, b"new")
        assert [entry.name for entry in tmp_path.iterdir()] == [name]

    def test_what_cannot_be_written_leaves_the_old_file_and_no_other(self, model):
        before = model.read_bytes()
        with pytest.raises(TypeError):
            write_file(model, "text is not bytes")  # type: ignore[arg-type]  # fails inside the write itself
        assert model.read_bytes() == before
        assert _names(model.parent) == ["model.onnx"]

    def test_a_folder_at_the_end_is_refused(self, tmp_path):
        (tmp_path / "model.onnx").mkdir()
        with pytest.raises(InputError) as caught:
            write_file(tmp_path / "model.onnx", b"new")
        assert caught.value.subject.endswith("model.onnx")
        assert _names(tmp_path) == ["model.onnx"]

    def test_a_file_on_the_way_is_refused(self, model):
        with pytest.raises(InputError) as caught:
            write_file(model / "inner.onnx", b"new")
        assert caught.value.subject.endswith("inner.onnx")
        with pytest.raises(InputError) as caught:
            write_file(model / "inner" / "inner.onnx", b"new")
        assert caught.value.subject.endswith("inner.onnx")

    def test_a_name_too_long_is_refused(self, tmp_path):
        with pytest.raises(InputError) as caught:
            write_file(tmp_path / ("a" * 300), b"new")
        assert caught.value.subject.endswith("aaa…")
        assert _names(tmp_path) == []


class TestPrepareOutput:
    def test_room_is_looked_for_and_left_as_it_was(self, tmp_path):
        prepare_output(tmp_path / "new" / "deep" / "model.onnx", MANIFEST, force=False, size_bytes=2**20)
        assert _names(tmp_path) == []

    def test_more_than_any_disk_holds_is_refused(self, tmp_path):
        with pytest.raises(ResourceError):
            require_room(tmp_path / "model.onnx", 2**62)
        assert _names(tmp_path) == []

    def test_a_free_place_without_room_is_refused(self, tmp_path):
        with pytest.raises(ResourceError):
            prepare_output(tmp_path / "model.onnx", MANIFEST, force=False, size_bytes=2**62)

    def test_another_file_may_be_replaced_by_force(self, model):
        prepare_output(model, OTHER, force=True)

    @pytest.mark.parametrize(("size", "reserved"), [(0, 2**16), (2**16, 2**16), (2**16 + 1, 2**16 + 1)])
    def test_the_size_and_at_least_64_kib_are_reserved_where_the_file_will_be(
        self, tmp_path, monkeypatch, size, reserved
    ):
        calls, device = [], tmp_path.stat().st_dev
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        monkeypatch.setattr(
            os, "posix_fallocate", lambda fd, *span: calls.append((os.fstat(fd).st_dev, *span)), raising=False
        )
        require_room(tmp_path / "new" / "model.onnx", size)
        assert calls == [(device, 0, reserved)]

    @pytest.mark.parametrize("why", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, None])
    def test_where_nothing_can_be_reserved_64_kib_are_written(self, tmp_path, monkeypatch, why):
        """A file system or a system without posix_fallocate."""

        def refuse(*_):
            raise OSError(why, "no")

        synced = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
        if why is None:
            monkeypatch.delattr(os, "posix_fallocate", raising=False)
        else:
            monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
        require_room(tmp_path / "model.onnx", 2**30)
        assert synced == [2**16]

    def test_another_file_is_refused_first(self, model):
        with pytest.raises(OutputExistsError):
            prepare_output(model, OTHER, force=False, size_bytes=2**62)


class TestOutputPath:
    def test_the_default_is_the_artifacts_folder(self):
        assert output_path(None, "m.onnx") == Path("artifacts/m.onnx")

    @pytest.mark.parametrize(
        "suffix",
        [".onnx", ".engine", ".xml", ".json", ".csv", ".html", ".png", ".jpg", ".jpeg", ".svg", ".ONNX"],
    )
    def test_a_known_suffix_means_a_file(self, suffix):
        assert output_path(f"out/x{suffix}", f"m{suffix.lower()}") == Path(f"out/x{suffix}")

    def test_a_file_of_another_kind_is_refused(self):
        for out in ("out/x.png", "out/x.engine", "out/x.bmp", "out/x.ab", "out/x.abcde", "x.pth", "x.safetensors"):
            with pytest.raises(UsageError) as caught:
                output_path(out, "m.onnx")
            assert caught.value.subject == out

    def test_a_suffix_of_no_file_that_we_write_is_said_to_be_unknown(self):
        with pytest.raises(UsageError) as caught:
            output_path("x.bmp", "m.onnx")
        assert caught.value.why == "has the unknown suffix .bmp"

    @pytest.mark.parametrize("out", ["out", "out/v1.2", ".", "out.onnx/", "some.folder", "/out", "x.a", "x.1ab"])
    def test_anything_else_means_a_folder(self, out):
        assert output_path(out, "m.onnx") == Path(out) / "m.onnx"

    def test_a_folder_that_exists_is_one_whatever_its_suffix(self, tmp_path):
        (tmp_path / "x.onnx").mkdir()
        assert output_path(str(tmp_path / "x.onnx"), "m.onnx") == tmp_path / "x.onnx" / "m.onnx"


class TestRefuseForeignOutput:
    def test_a_free_place_is_good(self, tmp_path):
        refuse_foreign_output(tmp_path / "new" / "model.onnx", MANIFEST, force=False)

    def test_the_same_artifact_may_be_replaced(self, model):
        refuse_foreign_output(model, dataclasses.replace(MANIFEST, tools={"torch": "3"}), force=False)

    @pytest.mark.parametrize("manifest", [OTHER, None])
    def test_another_artifact_may_not(self, model, manifest):
        with pytest.raises(OutputExistsError) as caught:
            refuse_foreign_output(model, manifest, force=False)
        assert caught.value.subject.endswith("model.onnx")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not onnx",
            EMPTY_GRAPH,
            append_metadata(EMPTY_GRAPH, {PREFIX + "schema": "1"}),
            append_metadata(EMPTY_GRAPH, {PREFIX + "schema": "999"}),
            append_metadata(EMPTY_GRAPH, {PREFIX + "schema": "[" * 10_000}),
            append_metadata(
                EMPTY_GRAPH, {**MANIFEST.to_strings(), PREFIX + "preprocessing": f'{{"mean": [1, 2, 1{"0" * 400}]}}'}
            ),
            EMPTY_GRAPH + b"\x72\x04\x0a\x02\xff\xfe",  # a metadata key that is not UTF-8
        ],
        ids=range(8),
    )
    def test_a_file_that_cannot_be_read_is_foreign(self, model, content):
        model.write_bytes(content)
        with pytest.raises(OutputExistsError):
            refuse_foreign_output(model, MANIFEST, force=False)
        refuse_foreign_output(model, MANIFEST, force=True)
        assert model.read_bytes() == content

    def test_a_file_of_another_suffix_is_foreign(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(OutputExistsError):
            refuse_foreign_output(tmp_path / "notes.txt", MANIFEST, force=False)

    def test_a_dangling_link_is_foreign(self, tmp_path):
        (tmp_path / "model.onnx").symlink_to(tmp_path / "nowhere")
        with pytest.raises(OutputExistsError):
            refuse_foreign_output(tmp_path / "model.onnx", MANIFEST, force=False)

    def test_links_in_a_circle_are_foreign(self, tmp_path):
        (tmp_path / "model.onnx").symlink_to(tmp_path / "model.onnx")
        with pytest.raises(OutputExistsError):
            refuse_foreign_output(tmp_path / "model.onnx", MANIFEST, force=False)

    @pytest.mark.parametrize("force", [False, True])
    def test_a_folder_is_refused_even_by_force(self, tmp_path, force):
        with pytest.raises(OutputExistsError) as caught:
            refuse_foreign_output(tmp_path, MANIFEST, force=force)
        assert caught.value.subject == str(tmp_path)

    @pytest.mark.parametrize("force", [False, True])
    def test_a_path_that_cannot_be_is_refused_before_the_work(self, model, force):
        with pytest.raises(InputError) as caught:
            refuse_foreign_output(model.with_name("a" * 300), MANIFEST, force=force)
        assert caught.value.subject.endswith("aaa…")
        with pytest.raises(InputError) as caught:
            refuse_foreign_output(model / "inner.onnx", MANIFEST, force=force)
        assert caught.value.subject.endswith("inner.onnx")


class TestOpen:
    def test_an_onnx_file_brings_its_manifest(self, model):
        assert Artifact.open(model).manifest == MANIFEST

    def test_a_third_party_onnx_file_has_none(self, model):
        model.write_bytes(_onnx_bytes(None))
        assert Artifact.open(model).manifest is None

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            *(("m.xml", "openvino"), ("m.engine", "engine"), ("m.pth", "checkpoint"), ("m.pt", "checkpoint")),
            *(("m.ckpt", "checkpoint"), ("m.bin", "checkpoint"), ("M.SAFETENSORS", "checkpoint")),
        ],
    )
    def test_other_kinds_go_by_suffix(self, tmp_path, name, kind):
        (tmp_path / name).write_bytes(b'<?xml version="1.0"?><net name="m" version="11"></net>')
        assert Artifact.open(tmp_path / name) == Artifact(tmp_path / name, kind, None, "unknown", None)

    @pytest.mark.parametrize(
        "before", [b"", b"\xef\xbb\xbf", b"\n", b"<?xml version='1.0'?>\n<!-- a -->\n<!-- b\n -->"]
    )
    def test_an_openvino_model_may_begin_with_a_declaration_and_comments(self, tmp_path, before):
        (tmp_path / "m.xml").write_bytes(before + b"<net name='m'>")
        require_ir(tmp_path / "m.xml")

    def test_an_openvino_model_begins_within_64_kib(self, tmp_path):
        (tmp_path / "m.xml").write_bytes(b"<net ".rjust(2**16))
        require_ir(tmp_path / "m.xml")
        (tmp_path / "m.xml").write_bytes(b"<net ".rjust(2**16 + 1))
        with pytest.raises(ModelFileError):
            require_ir(tmp_path / "m.xml")

    @pytest.mark.parametrize("content", [b"x", b"<html></html>", b"<?xml version='1.0'?><network>", b"<netting/>"])
    def test_an_xml_file_of_something_else_is_not_a_model(self, tmp_path, content):
        (tmp_path / "m.xml").write_bytes(content)
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(tmp_path / "m.xml")
        assert caught.value.subject.endswith("m.xml")

    @pytest.mark.parametrize("name", ["model.tflite", "model", ".onnx"])
    def test_another_suffix_is_not_a_model(self, tmp_path, name):
        (tmp_path / name).write_bytes(_onnx_bytes())
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(tmp_path / name)
        assert caught.value.subject == str(tmp_path / name)

    @pytest.mark.parametrize("name", ["m.onnx", "m.engine", "m.xml", "m.pth"])
    def test_a_file_that_is_missing_empty_or_a_folder_is_named(self, tmp_path, name):
        (tmp_path / "empty").mkdir()
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "empty" / name).touch()
        for place in ("gone", "empty", "folder"):
            with pytest.raises(InputError) as caught:
                Artifact.open(tmp_path / place / name)
            assert (type(caught.value), caught.value.subject) == (InputError, str(tmp_path / place / name))

    def test_a_file_that_is_not_onnx_is_named(self, model):
        model.write_bytes(b"<html>404</html>")
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(model)
        assert caught.value.subject.endswith("model.onnx")

    def test_broken_facts_are_named(self, model):
        model.write_bytes(append_metadata(EMPTY_GRAPH, {**MANIFEST.to_strings(), PREFIX + "labels": "cat"}))
        with pytest.raises(ManifestError) as caught:
            Artifact.open(model)
        assert caught.value.subject == PREFIX + "labels"

    def test_the_kind_is_said(self, model):
        assert Artifact.open(model).kind == "onnx"

    def test_a_file_that_went_away_is_named(self, model):
        artifact = Artifact.open(model)
        model.unlink()
        with pytest.raises(InputError) as caught:
            artifact.read_bytes()
        assert caught.value.subject == str(model)


class TestActivations:
    """Which outputs are scores already, as the graph shows."""

    def _bytes(self) -> bytes:
        nodes = [("Softmax", "x", "a"), ("Flatten", "a", "y"), ("Sigmoid", "x", "z"), ("Relu", "x", "w")]
        nodes += [
            ("HardSigmoid", "x", "h"),
            ("Clip", "z", "c"),
            ("Neg", "a", "n"),
            ("Mul", "a", "m"),
            ("Mul", "w", "l"),
        ]
        graph = GraphProto(name="g")
        for operator, source, made in nodes:
            graph.node.add(op_type=operator, input=[source], output=[made])
        for name in "yzwxhcnml":
            graph.output.add(name=name)
        return ModelProto(graph=graph).SerializeToString()

    def test_of_a_graph_they_are_those_of_its_outputs(self, tmp_path):
        (tmp_path / "m.onnx").write_bytes(self._bytes())
        for artifact in (Artifact.open(tmp_path / "m.onnx"), Artifact(Path("m"), "onnx", None, data=self._bytes())):
            known = {"y": "softmax", "z": "sigmoid", "h": "sigmoid", "c": "sigmoid"}
            assert artifact.activations() == {**known, "m": "unknown"}

    def test_other_files_show_none(self, tmp_path):
        assert Artifact(tmp_path / "gone.xml", "openvino", None).activations() == {}

    def test_what_is_not_a_graph_is_refused(self):
        with pytest.raises(ModelFileError) as caught:
            Artifact(Path("m"), "onnx", None, data=b"\xff\xff").activations()
        assert caught.value.subject == "m"


def test_the_hash_of_a_model_covers_the_files_that_hold_its_weights(tmp_path):
    for name in ("m.bin", "m.xml"):
        (tmp_path / name).write_bytes(b"<net " if name == "m.xml" else b"abc")
    model = helper.make_model(
        helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.ones(4, np.float32), "w")])
    )
    (tmp_path / "whole.onnx").write_bytes(model.SerializeToString())
    save_model(model, tmp_path / "split.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    assert Artifact.open(tmp_path / "split.onnx").is_split
    assert not Artifact.open(tmp_path / "whole.onnx").is_split
    for file, weights in (("m.xml", "m.bin"), ("split.onnx", "w.data")):
        before = model_sha256(tmp_path / file)
        assert len(before) == 64
        assert before != sha256_of(tmp_path / file)
        changed = (tmp_path / weights).read_bytes()[:-1] + b"!"
        (tmp_path / weights).write_bytes(changed)
        assert model_sha256(tmp_path / file) != before
        if file == "split.onnx":
            assert Artifact.open(tmp_path / file).sha256() == model_sha256(tmp_path / file)
    assert model_sha256(tmp_path / "whole.onnx") == sha256_of(tmp_path / "whole.onnx")
    (tmp_path / "m.bin").unlink()
    assert model_sha256(tmp_path / "m.xml") == sha256_of(tmp_path / "m.xml")


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError) as caught:
        sha256_of(tmp_path / "gone")
    assert caught.value.subject.endswith("gone")


def _tensor(data_type: int, count: int):
    return helper.make_tensor(f"t{data_type}", data_type, (count,), np.zeros(count))


@pytest.mark.parametrize(
    ("tensors", "precision"),
    [
        ({TensorProto.FLOAT: 8}, "fp32"),
        ({TensorProto.FLOAT: 8, TensorProto.FLOAT16: 2}, "fp32"),
        ({TensorProto.FLOAT16: 8, TensorProto.FLOAT: 2}, "fp16"),
        ({TensorProto.BFLOAT16: 8, TensorProto.FLOAT: 2}, "bf16"),
        ({TensorProto.INT8: 8, TensorProto.FLOAT: 2}, "int8"),
        ({TensorProto.UINT8: 8, TensorProto.FLOAT: 2}, "int8"),
        ({TensorProto.DOUBLE: 8}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_precision_is_that_of_most_numbers(tmp_path, tensors, precision):
    graph = helper.make_graph([], "g", [], [], [_tensor(kind, count) for kind, count in tensors.items()])
    path = tmp_path / "m.onnx"
    claims = dataclasses.replace(MANIFEST, precision="bf16" if precision == "fp32" else "fp32")
    path.write_bytes(append_metadata(helper.make_model(graph).SerializeToString(), claims.to_strings()))
    assert Artifact.open(path).precision == precision


def test_the_precision_of_external_data_is_seen_without_reading_it(tmp_path):
    tensor = numpy_helper.from_array(np.zeros(8, np.float16), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="empty.bin")
    path = tmp_path / "m.onnx"
    (tmp_path / "empty.bin").touch()
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString())
    assert Artifact.open(path).precision == "fp16"


class TestDataFiles:
    """Weights beside the model: whole, and inside its folder whatever links say (bad-inputs 16, 17)."""

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "elsewhere.bin").write_bytes(bytes(8))
        (tmp_path / "in" / "sub").mkdir(parents=True)
        (tmp_path / "in" / "sub" / "w.bin").write_bytes(bytes(8))
        (tmp_path / "in" / "short.bin").write_bytes(bytes(7))
        (tmp_path / "in" / "link.bin").symlink_to("../elsewhere.bin")
        (tmp_path / "in" / "hard.bin").hardlink_to(tmp_path / "elsewhere.bin")
        return tmp_path / "in"

    def _model(self, folder, location):
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "4"), ("length", "4")):
            tensor.external_data.add(key=key, value=value)
        graph = GraphProto(name="g", initializer=[tensor])
        path = folder / "m.onnx"
        path.write_bytes(ModelProto(ir_version=10, graph=graph).SerializeToString())
        return path

    def test_a_file_inside_is_fine(self, folder):
        assert Artifact.open(self._model(folder, "sub/w.bin")).precision == "fp32"

    @pytest.mark.parametrize("location", ["../elsewhere.bin", "/etc/hostname", "link.bin", "sub/../../elsewhere.bin"])
    def test_a_file_outside_is_refused(self, folder, location):
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(self._model(folder, location))
        assert caught.value.subject.endswith("m.onnx")

    def test_a_hard_link_is_refused(self, folder):
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(self._model(folder, "hard.bin"))
        assert caught.value.subject.endswith("m.onnx")

    def test_a_link_within_the_folder_is_refused_as_everywhere(self, folder):
        (folder / "inner.bin").symlink_to("sub/w.bin")
        (folder / "other").symlink_to("sub")
        for location in ("inner.bin", "other/w.bin"):
            with pytest.raises(ModelFileError) as caught:
                Artifact.open(self._model(folder, location))
            assert caught.value.subject.endswith("m.onnx")

    def test_names_that_no_file_can_have_are_refused(self, folder):
        with pytest.raises(InputError) as caught:
            Artifact.open(self._model(folder, "a" * 300))
        assert caught.value.subject.endswith("m.onnx")

    def test_a_link_to_itself_is_refused(self, folder):
        (folder / "loop.bin").symlink_to("loop.bin")
        with pytest.raises(ModelFileError):
            Artifact.open(self._model(folder, "loop.bin"))

    def test_the_data_files_can_be_checked_alone(self, folder):
        require_data_within(self._model(folder, "sub/w.bin"))
        with pytest.raises(ModelFileError):
            require_data_within(self._model(folder, "../elsewhere.bin"))

    @pytest.mark.parametrize("location", ["gone.bin", "short.bin", "sub"])
    def test_a_missing_or_short_file_is_refused(self, folder, location):
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(self._model(folder, location))
        assert caught.value.subject.endswith("m.onnx")


class TestBytes:
    """An ONNX file in memory has the facts of the same file on disk."""

    def test_facts_and_hash_are_those_of_the_file(self, model):
        on_disk, in_memory = Artifact.open(model), Artifact.open(model.read_bytes())
        assert in_memory == dataclasses.replace(on_disk, path=in_memory.path, data=model.read_bytes())
        assert in_memory.sha256() == on_disk.sha256() == hashlib.sha256(model.read_bytes()).hexdigest()
        assert in_memory.read_bytes() == on_disk.read_bytes() == model.read_bytes()
        assert in_memory.path == Path("<model in memory>")
        assert repr(model.read_bytes()) not in repr(in_memory)

    @pytest.mark.parametrize("data", [b"", b"text", b"ftrt" + bytes(60)])
    def test_other_bytes_are_refused(self, data):
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(data)
        assert caught.value.subject == "<model in memory>"

    def test_weights_in_another_file_are_refused(self):
        tensor = numpy_helper.from_array(np.zeros(8, np.float16), "w")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        with pytest.raises(ModelFileError) as caught:
            Artifact.open(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString())
        assert "weights.bin" in caught.value.why

    def test_a_path_may_be_text(self, model):
        assert Artifact.open(str(model)) == Artifact.open(model)


def test_a_folder_beside_is_gone_after_the_block_unless_it_was_renamed(tmp_path: Path) -> None:
    place = tmp_path / "new" / "model"

    def fail() -> None:
        with folder_beside(place) as folder:
            assert (folder.parent, folder.stat().st_mode & 0o777) == (place.parent, 0o755)
            (folder / "a").write_text("a")
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        fail()
    assert not place.parent.exists()
    with folder_beside(place) as folder:
        (folder / "a").write_text("a")
        folder.rename(place)
    assert [path.name for path in place.parent.iterdir()] == ["model"]
    assert (place / "a").read_text() == "a"


def test_room_is_asked_for_in_a_folder_that_is_there_or_above_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Path] = []
    real = tempfile.TemporaryFile

    def noted(**options: Any) -> Any:
        places.append(options["dir"])
        return real(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    require_room(tmp_path)
    require_room(tmp_path / "new" / "folder")
    require_room(tmp_path / "a.onnx")
    assert places == [tmp_path] * 3


def test_a_damaged_file_has_no_hash(tmp_path):
    (tmp_path / "cut.onnx").write_bytes(b"touched")
    with pytest.raises(ModelFileError):
        model_sha256(tmp_path / "cut.onnx")
