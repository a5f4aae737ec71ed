"""Mistakes in paths and words are found in under a second: before anything heavy is imported or a file is parsed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy.cli.app import COMMANDS

MODEL = "tiny.onnx"
CALIBRATED = (MODEL, "--calibration", "images")
MISTAKES: dict[str, list[tuple[int, str, str]]] = {
    "export": [
        (2, "122", "--variant 122"),
        (2, "12l", "12l"),
        (3, "missing.pth", "missing.pth"),
        (3, "missing.onnx", "missing.onnx"),
        (3, "missing.pth", "--weights missing.pth"),
        (2, "imagenett", "--weights imagenett"),
        (2, "export", "121 --weights imagenet"),
        (2, "imagenet:121", "imagenet:121 --variant 169"),
        (2, "--variant", f"{MODEL} --variant 121"),
        (2, "--num-classes", f"{MODEL} --num-classes 5 --blocks 2,2"),
        (2, "--blocks", f"{MODEL} --blocks 2,2"),
        (2, "clasifier", "--head clasifier"),
        (2, "image-size=0", "--image-size 0"),
        (2, "--image-size=224x", "--image-size 224x"),
        (2, "lanczos", "--interpolation lanczos"),
        (2, "multi-label", "--task multi-label"),
        (2, "cifr", "--blocks 2,2 --stem cifr"),
        (2, "opset=15", "--opset 15"),
        (3, "missing.txt", "--labels missing.txt"),
        (3, "missing.txt", "--thresholds missing.txt"),
        (2, "x.png", "-o x.png"),
        (3, "a.png/x.onnx", "-o a.png/x.onnx"),
    ],
    "simplify": [(3, "missing.onnx", "missing.onnx"), (2, "x.json", f"{MODEL} -o x.json")],
    "validate": [
        (3, "missing.onnx", f"missing.onnx {MODEL}"),
        (3, "missing.onnx", f"{MODEL} missing.onnx"),
        (2, "cosin", f"{MODEL} {MODEL} --gate cosin=1"),
        (2, "tensorflow", f"{MODEL} {MODEL} --candidate-backend tensorflow"),
        (3, "missing", f"{MODEL} {MODEL} --data missing"),
        (2, "samples=0", f"{MODEL} {MODEL} --samples 0"),
    ],
    "prune": [
        (3, "missing.onnx", "missing.onnx --calibration images --ratio 0.5"),
        (3, "missing", f"{MODEL} --calibration missing --ratio 0.5"),
        (2, "prune", " ".join(CALIBRATED)),
        (2, "ratio=0", f"{' '.join(CALIBRATED)} --ratio 0"),
        (2, "ratio=1", f"{' '.join(CALIBRATED)} --ratio 1"),
        (2, "--ratio and --max-drop", f"{' '.join(CALIBRATED)} --ratio 0.5 --max-drop 1"),
        (2, "per-layr", f"{' '.join(CALIBRATED)} --ratio 0.5 --widths per-layr"),
        (2, "x.png", f"{' '.join(CALIBRATED)} --ratio 0.5 -o x.png"),
        (2, "--finetune-seconds=5", f"{' '.join(CALIBRATED)} --ratio 0.5 --finetune-seconds 5"),
        (2, "--finetune-seed=0", f"{' '.join(CALIBRATED)} --ratio 0.5 --finetune-seed 0"),
    ],
    "quantize": [
        (3, "missing.onnx", "missing.onnx --calibration images"),
        (3, "missing", f"{MODEL} --calibration missing"),
        (2, "openvin", f"{' '.join(CALIBRATED)} --recipe openvin"),
        (3, "missing.toml", f"{' '.join(CALIBRATED)} --recipe missing.toml"),
        (2, "minmx", f"{' '.join(CALIBRATED)} --observer minmx"),
        (2, "alpha=2.0", f"{' '.join(CALIBRATED)} --alpha 2"),
        (2, "per-chanel", f"{' '.join(CALIBRATED)} --weights per-chanel"),
        (2, "--finetune-seconds=5", f"{' '.join(CALIBRATED)} --finetune-seconds 5"),
        (2, "--finetune-seed=1", f"{' '.join(CALIBRATED)} --no-finetune --finetune-seed 1"),
        (2, "--speed-seconds=9", f"{' '.join(CALIBRATED)} --no-never-slower --speed-seconds 9"),
        (2, "x.png", f"{' '.join(CALIBRATED)} -o x.png"),
    ],
    "sensitivity": [
        (3, "missing", f"{MODEL} --calibration missing"),
        (2, "blok", f"{' '.join(CALIBRATED)} --per blok"),
        (2, "openvin", f"{' '.join(CALIBRATED)} --recipe openvin"),
        (3, "missing", f"{' '.join(CALIBRATED)} --data missing"),
        (2, "x.onnx", f"{' '.join(CALIBRATED)} -o x.onnx"),
    ],
    "cast": [
        (2, "cast", MODEL),
        (2, "cosin", f"{MODEL} --fp16 --gate cosin=1"),
        (3, "missing.onnx", "missing.onnx --fp16"),
        (3, "missing", f"{MODEL} --fp16 --calibration missing"),
        (2, "x.engine", f"{MODEL} --fp16 -o x.engine"),
    ],
    "build-trt": [
        (2, "build-trt", MODEL),
        (2, "build-trt", f"{MODEL} --fp16 --variant 121"),
        (2, "122", "--fp16 --variant 122"),
        (2, "trt", f"{MODEL} --fp16 --flavour trt"),
        (3, "missing.onnx", "missing.onnx --fp16 --flavour rtx"),
        (3, "missing", f"{MODEL} --int8 --calibration missing --flavour rtx"),
        (2, "x.onnx", f"{MODEL} --fp16 --flavour rtx -o x.onnx"),
    ],
    "train": [
        (3, "missing", "--data missing"),
        (3, "missing", "--data images --val missing"),
        (3, "missing.pth", "--data images --weights missing.pth"),
        (3, "missing.pth", "--data images --teacher missing.pth"),
        (3, "missing", "--data images --teacher tiny.onnx --unlabelled missing"),
        (2, "122", "--data images --variant 122"),
        (2, "epochs=0", "--data images --epochs 0"),
        (2, "--temperature=2", "--data images --temperature 2"),
        (2, "--alpha=0.5", "--data images --alpha 0.5"),
        (2, "batch-size=6", "--data images --batch-size 6 --shards 4"),
        (2, "sgdm", "--data images --optimizer sgdm"),
        (2, "freeze=block3", "--data images --freeze block3"),
        (2, "fp8", "--data images --amp fp8"),
        (2, "alpha=1.5", "--data images --teacher tiny.onnx --alpha 1.5"),
        (2, "unlabelled=images", "--data images --unlabelled images"),
        (2, "budget=9", "--data images --budget 9"),
        (2, "width", "--data images --search width=4"),
        (2, "x.png", "--data images -o x.png"),
    ],
    "serve": [
        (3, "missing.onnx", "missing.onnx"),
        (2, "12l", "12l"),
        (2, "port=65536", f"{MODEL} --port 65536"),
        (2, "host", f"{MODEL} --host="),
        (2, "grpc-port=8080", f"{MODEL} --grpc-port 8080"),
        (2, "max-batch=0", f"{MODEL} --max-batch 0"),
        (2, "max-queue=8", f"{MODEL} --max-queue 8"),
        (2, "tpu", f"{MODEL} --device tpu"),
    ],
    "triton": [
        (3, "missing.onnx", "missing.onnx"),
        (2, "onnx", f"{MODEL} --backend onnx"),
        (2, "max-batch=0", f"{MODEL} --max-batch 0"),
        (2, "tpu", f"{MODEL} --device tpu"),
        (2, "x.onnx", f"{MODEL} -o x.onnx"),
    ],
    "web": [
        (3, "missing.onnx", "missing.onnx"),
        (2, "12l", "12l"),
        (2, "multi-label", f"{MODEL} --task multi-label"),
        (3, "missing.tgz", f"{MODEL} --runtime missing.tgz"),
        (2, "title", f"{MODEL} --title {101 * 'x'}"),
        (2, "x.html", f"{MODEL} -o x.html"),
        (3, "a.png/site", f"{MODEL} -o a.png/site"),
    ],
    "run": [
        (3, "missing.onnx", "missing.onnx a.png"),
        (2, "12l", "12l a.png"),
        (3, "missing.png", f"{MODEL} missing.png"),
        (2, "tensorflow", f"{MODEL} a.png --backend tensorflow"),
        (2, "tpu", f"{MODEL} a.png --device tpu"),
        (2, "threads=0", f"{MODEL} a.png --threads 0"),
        (2, "top-k=0", f"{MODEL} a.png --top-k 0"),
        (2, "multi-label", f"{MODEL} a.png --task multi-label"),
    ],
    "evaluate": [
        (3, "missing.onnx", "missing.onnx --data images"),
        (3, "missing", f"{MODEL} --data missing"),
        (3, "missing.txt", f"{MODEL} --data images --ground-truth missing.txt"),
        (3, "missing.onnx", f"{MODEL} --data images --against missing.onnx"),
        (2, "tensorflow", f"{MODEL} --data images --backend tensorflow"),
        (2, "batch=0", f"{MODEL} --data images --batch 0"),
        (3, "missing.csv", f"{MODEL} --data missing.csv"),
    ],
    "benchmark": [
        (3, "missing.onnx", "missing.onnx"),
        (2, "tensorflow", f"{MODEL} --backend onnxruntime,tensorflow"),
        (2, "tpu", f"{MODEL} --device cpu,tpu"),
        (2, "ofline", f"{MODEL} --scenario ofline"),
        (3, "missing.json", f"{MODEL} --compare missing.json"),
        (2, "x.onnx", f"{MODEL} -o x.onnx"),
    ],
    "inspect": [
        (3, "missing.onnx", "missing.onnx"),
        (3, "missing.engine", "missing.engine"),
        (2, "122", "--variant 122"),
        (2, "int4", "--variant 121 --precision int4"),
        (2, "growth", "--variant 121 --sweep growth=12"),
        (2, "inspect", f"{MODEL} --variant 121"),
        (2, "inspect", f"{MODEL} --blocks 2,2"),
        (2, "--std", "--variant 121 --std 0.5"),
        (2, "--mean", "x.engine --mean 0.5"),
    ],
    "tune": [
        (3, "missing.onnx", "missing.onnx"),
        (2, "122", "--variant 122"),
        (2, "speed", f"{MODEL} --goal speed"),
        (2, "int4", f"{MODEL} --precision int4"),
        (2, "openvin", f"{MODEL} --recipe openvin"),
        (2, "tensorflow", f"{MODEL} --backend tensorflow"),
        (3, "missing", f"{MODEL} --data missing"),
        (2, "x.json", f"{MODEL} -o x.json"),
    ],
    "plot": [
        (2, "reus", f"reus {MODEL}"),
        (2, "122", "cost --variant 122"),
        (3, "missing.onnx", "reuse missing.onnx"),
        (2, "x.gif", f"reuse {MODEL} -o x.gif"),
        (2, "x.html", f"reuse {MODEL} -o x.html"),
    ],
    "report": [
        (3, "missing.onnx", "missing.onnx"),
        (3, "missing.json", f"{MODEL} --tune missing.json"),
        (2, "x.png", f"{MODEL} -o x.png"),
    ],
    "doctor": [],
}
"""Command → exit code, subject of the error, and the words behind the command's name."""

SCRIPT = """
import contextlib, io, json, sys
from densenet_deploy.cli import main
for line in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main([*line.split(), "--json"])
    heavy = sorted({"torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt_rtx"} & sys.modules.keys())
    print(json.dumps([code, json.loads(err.getvalue())["error"].get("subject"), heavy]))
"""


@pytest.fixture(scope="module")
def outcomes(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Every line with its exit code, the subject of its error, and what had been imported by then."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / MODEL).write_bytes(tiny_onnx.read_bytes())
    (folder / "images").mkdir()
    (folder / "a.png").write_bytes(b"never read")
    lines = [f"{command} {words}" for command, mistakes in MISTAKES.items() for _, _, words in mistakes]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "images", MODEL]
    return {line: tuple(outcome) for line, outcome in zip(lines, found, strict=True)}


def test_every_command_has_its_mistakes() -> None:
    assert list(MISTAKES) == list(COMMANDS)


@pytest.mark.parametrize(
    ("line", "code", "subject"),
    [(f"{command} {words}", *rest) for command, mistakes in MISTAKES.items() for *rest, words in mistakes],
)
def test_a_mistake_is_named_before_anything_heavy_is_imported(
    outcomes: dict[str, tuple[int, str, list[str]]], line: str, code: int, subject: str
) -> None:
    assert outcomes[line] == (code, subject, [])
