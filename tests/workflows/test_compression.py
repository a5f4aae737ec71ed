"""What `--max-drop` is judged on: a folder of class folders, refused before the work if it is not one."""

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.workflows.compression import require_labelled_folder


def test_only_a_folder_of_class_folders_has_labels(tmp_path):
    for place in ("classes/cat", "classes/dog", "flat"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "0.png")
    assert require_labelled_folder(str(tmp_path / "classes")) == tmp_path / "classes"
    with pytest.raises(DataError) as caught:
        require_labelled_folder(tmp_path / "flat")
    assert (caught.value.subject, caught.value.why) == (str(tmp_path / "flat"), "holds no class folders")
    for calibration in (np.zeros((1, 3, 4, 4)), tmp_path / "flat/0.png"):
        with pytest.raises(UsageError):
            require_labelled_folder(calibration)
