"""The whole road, in small: every step leaves what the next one takes."""

import pytest

import densenet_deploy as dd
from examples.smaller_and_faster import main


@pytest.mark.slow
def test_the_road_leads_from_images_to_a_small_int8_file(tmp_path, capsys) -> None:
    line = "--variant cifar-bc-10-8 --epochs 2 --samples 64 --finetune-seconds 5 --seconds 0.2 --recipe onnxruntime"
    main([*line.split(), "-o", str(tmp_path)])
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [row[:14].strip() for row in table] == ["whole, float", "small, float", "whole, INT8", "small, INT8"]
    whole, small = (dd.load(tmp_path / f"{name}.int8.onnx") for name in ("whole", "small"))
    assert (whole.precision, small.precision) == ("int8", "int8")
    assert small.path.stat().st_size < whole.path.stat().st_size
    assert whole.manifest.labels == small.manifest.labels == tuple("0123456789")
