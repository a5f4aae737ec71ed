"""Files that are damaged, hostile or no checkpoints: each is refused in a sentence, and no pickle is ever run."""

import io
import os
import pickle
import random
import zipfile

import pytest
import torch

from densenet_deploy.errors import InputError
from densenet_deploy.models.checkpoint_file import read_checkpoint


def saved(value, *, zipped=True):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Bomb:
    """Creates the marker file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_file_is_read(tmp_path, model, zipped):
    path = tmp_path / "whole.pth"
    path.write_bytes(saved(model.state_dict(), zipped=zipped))
    content = read_checkpoint(path).content
    assert all(torch.equal(content[name], tensor) for name, tensor in model.state_dict().items())


def test_01_an_empty_file(tmp_path):
    assert "is empty" in refusal(tmp_path / "empty.pth", b"")


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_02_a_cut_file(tmp_path, model, zipped, tenth):
    data = saved(model.state_dict(), zipped=zipped)
    refusal(tmp_path / "cut.pth", data[: max(1, len(data) * tenth // 10)])


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_03_random_bytes(tmp_path, size, suffix):
    refusal(tmp_path / f"random{suffix}", random.Random(size).randbytes(size))


def test_03_random_bytes_with_the_head_of_a_zip(tmp_path):
    assert "damaged or cut-off zip" in refusal(tmp_path / "random.pth", b"PK\x03\x04" + random.Random(0).randbytes(500))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle 2", "bare pickle 4"])
def test_04_and_05_a_pickle_that_calls_the_system_is_not_run(tmp_path, form):
    marker = tmp_path / "marker"
    bomb = {"weight": Bomb(marker)}
    data = {
        "zip": saved(bomb),
        "legacy": saved(bomb, zipped=False),
        "bare pickle 2": pickle.dumps(bomb, protocol=2),
        "bare pickle 4": pickle.dumps(bomb, protocol=4),
    }[form]
    refusal(tmp_path / "evil.pth", data)
    assert not marker.exists()


def test_05_the_control_of_the_bomb_explodes(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_06_a_pickled_module_is_told_how_to_save(tmp_path, zipped):
    message = refusal(tmp_path / "module.pth", saved(torch.nn.Conv2d(1, 1, 1), zipped=zipped))
    assert "torch.nn.modules.conv.Conv2d" in message
    assert "torch.save(model.state_dict()" in message


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # torch deprecates what old files still hold
def test_06_torchscript_is_told_how_to_save(tmp_path):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)), buffer)
    message = refusal(tmp_path / "script.pt", buffer.getvalue())
    assert "TorchScript" in message
    assert "torch.save(model.state_dict()" in message


def test_07_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert "would unpack to 50000000 bytes" in refusal(tmp_path / "bomb.pth", buffer.getvalue())


def test_a_suffix_of_something_else_is_refused(tmp_path):
    assert "'.bin'" in refusal(tmp_path / "weights.bin", b"x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_a_folder_is_no_checkpoint(tmp_path):
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_checkpoint(folder)
