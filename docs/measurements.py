"""The tables of measurements, from `benchmarks/results/*.json`, and the list of the scripts that write those files.

No number of a table is written by hand. A run of a benchmark script replaces its file, and `python -m docs.generate`
the tables that are made of it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

BENCHMARKS: Final = Path(__file__).parents[1] / "benchmarks"
STRENGTH: Final = Path(__file__).parents[1] / "tests/strength.json"
_MIB: Final = 2**20
_VERSIONS: Final = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "nncf", "tensorrt-rtx")
_OF_FILES: Final = ("", "MACs", "SQNR", "top-1", "speed, batch 1 (more is faster)", "batch 8")
Rows = Iterable[Sequence[object]]


def scripts() -> str:
    """Return a table of the benchmark scripts that record results: the question of each, as its docstring puts it."""
    rows = []
    for path in sorted((BENCHMARKS / "results").glob("*.json")):
        question = str(ast.get_docstring(ast.parse((BENCHMARKS / f"{path.stem}.py").read_text())))
        first = " ".join(question.split("\n\n")[0].split())
        rows.append((f"`{path.stem}.py`", re.sub(r":? `uv run.*?`", "", first).rstrip(".")))
    return _table(("script", "measures"), rows)


def strength() -> str:
    """Return a table of what the tests of each package notice and reach."""
    known = json.loads(STRENGTH.read_text())
    mutation, coverage = (known.get(kind, {}) for kind in ("mutation", "coverage"))
    rows = []
    for name in sorted(mutation | coverage):
        changed, reached = mutation.get(name), coverage.get(name)
        drawn = (changed["changes"], f"{changed['noticed']} of {changed['tested']}") if changed else ("", "")
        lines = _share(reached["covered_lines"], reached["num_statements"]) if reached else ""
        branches = _share(reached["covered_branches"], reached["num_branches"]) if reached else ""
        rows.append((name, *drawn, lines, branches))
    return _table(("package", "changes", "noticed", "lines", "branches"), rows)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def measured(name: str, make: Callable[[Any], str]) -> Callable[[], str]:
    """Return a function that makes the part of a page about `benchmarks/results/NAME.json`."""

    def part() -> str:
        whole = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
        return f"{make(whole)}\n\n*{_conditions(name, whole)}*"

    return part


def _conditions(name: str, whole: Mapping[str, Any]) -> str:
    machine = whole["machine"]
    gpus = "".join(f", {gpu['name']}" for gpu in machine.get("gpus") or ())
    known = machine["versions"]
    versions = "".join(f", {package} {known[package]}" for package in _VERSIONS if package in known)
    versions += f", {whole['runtime']}" if "runtime" in whole else ""
    busy = f", other programs kept {machine['busy_cpus']:.2g} CPUs busy" if machine["busy_cpus"] > 0.1 else ""
    remark = f". {whole['remark']}" if "remark" in whole else ""
    vnni = {None: "", True: " with VNNI", False: " without VNNI"}[machine.get("vnni")]
    cpus = f"{machine['usable_cpus']} CPUs ({machine['cpu']}{vnni})"
    return f"`{name}.json`, {machine['date']}: {cpus}{gpus}{versions}{busy}{remark}."


def _costs(whole: Any) -> str:
    found = {(one["command"], one["varied"], one["value"]): one for one in whole["results"]}
    rows = []
    for varied, value in dict.fromkeys((varied, value) for _, varied, value in found):
        costs = [found.get((command, varied, value)) for command in ("export", "quantize", "run")]
        label = f"{value}x{value} pixels" if varied == "image_size" else f"{varied.replace('_', ' ')} {value}"
        rows.append((label, *(_cost(one) for one in costs)))
    return _table(("", "`export`", "`quantize`", "`run`, one call"), rows)


def _cost(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    time = f"{one['seconds'] * 1e3:.1f} ms" if one["command"] == "run" else f"{one['seconds']:.1f} s"
    return f"{time}, {one['peak_memory_bytes'] / _MIB:.0f} MiB"


def _speed(whole: Any) -> str:
    results = whole["results"]["speed"]
    columns = list(dict.fromkeys((one["network"].removeprefix("DenseNet "), one["batch"]) for one in results))
    rows = []
    for engine, title in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        by_column = [one for one in results if one["engine"] == engine]
        for form in by_column[0]["latency_ms"]:
            cells = [f"{one['latency_ms'][form]:.1f}" for one in by_column]
            rows.append((f"{title}, {form}", *(f"**{cell}**" if form == "ours" else cell for cell in cells)))
        rows += [
            (f"{title}, ours over {form}", *(_ratio(*one["ours_over"][form]) for one in by_column))
            for form in by_column[0]["ours_over"]
        ]
    return _table(("ms per call", *(f"{variant}, batch {batch}" for variant, batch in columns)), rows)


def _in_short(whole: Any) -> str:
    """What a reader decides by: of each engine FP32, the fastest stock INT8 of it, both of either export, and ours."""
    results = whole["results"]
    sizes, trained = results["sizes"][0], results["accuracy"][-1]
    rows = []
    for engine, title, tool in (("onnxruntime", "ONNX Runtime", "quantize_static"), ("openvino", "OpenVINO", "NNCF")):
        found = [one["latency_ms"] for one in results["speed"] if one["engine"] == engine]
        for label, start, graph in (
            ("`torch.onnx.export`, FP32", "FP32", "plain"),
            (f"the same, INT8 by `{tool}`", tool, "plain"),
            ("`densenet-deploy export`, FP32", "FP32", "export"),
            (f"the same, INT8 by `{tool}`", tool, "export"),
            ("**the same, INT8 by `densenet-deploy quantize`**", "ours", ""),
        ):
            names = [_fastest(one, start, graph) for one in found]
            cells = [f"{one[name]:.1f}" for one, name in zip(found, names, strict=True)]
            cells += [f"{sizes[engine][names[0]]:.1f}", _best_sqnr(trained, start, graph or engine)]
            cells = [f"**{cell}**" for cell in cells] if start == "ours" else cells
            rows.append((f"{title}: {label}", *cells))
    columns = dict.fromkeys((one["network"].removeprefix("DenseNet "), one["batch"]) for one in results["speed"])
    heads = (f"{variant}, batch {batch}: ms" for variant, batch in columns)
    return _table(("", *heads, f"{sizes['network'].removeprefix('DenseNet ')}: file, MiB", "SQNR: dB"), rows)


def _fastest(latencies: Mapping[str, float], start: str, end: str) -> str:
    names = (name for name in latencies if name.startswith(start) and name.endswith(end))
    return min(names, key=lambda name: latencies[name])


def _best_sqnr(trained: Mapping[str, Any], start: str, end: str) -> str:
    found = [one["sqnr_db"] for name, one in trained.items() if name.startswith(start) and name.endswith(end)]
    return f"{max(found):.1f}" if found else ""


def _accuracy(whole: Any) -> str:
    networks = whole["results"]["accuracy"]
    names = [name for name, value in networks[0].items() if isinstance(value, dict)]
    rows: list[Sequence[object]] = [("FP32", *(cell for one in networks for cell in ("", _percent(one["float_top1"]))))]
    for name in names:
        found = [one.get(name) for one in networks]
        rows.append((name, *(cell for one in found for cell in _db_and_top1(one))))
    return _table(("", *(head for one in networks for head in (f"{one['network']}, SQNR", "top-1"))), rows)


def _db_and_top1(one: Mapping[str, Any] | None) -> tuple[str, str]:
    return ("", "") if one is None else (f"{one['sqnr_db']:.1f} dB", _percent(one["top1"]))


def _calibration(whole: Any) -> str:
    rows = [
        (one["tool"], one["images"], f"{one['seconds']:.0f}", f"{one['peak_memory_bytes'] / _MIB:.0f} MiB")
        for one in whole["results"]["calibration"]
    ]
    return _table(("", "images", "seconds", "peak memory"), rows)


def _quantize_time(whole: Any) -> str:
    rows = [
        (name, one["seconds"], one["cpu_seconds"], one["of_nncf"], f"{one['peak_memory_mib']:.0f} MiB")
        for name, one in whole["results"].items()
    ]
    return _table(("", "seconds", "CPU seconds", "of NNCF's time", "peak memory"), rows)


def _export_time(whole: Any) -> str:
    results = whole["results"]
    rows: list[Sequence[object]] = [("bare `torch.onnx.export`", f"{results['bare_seconds']:.1f} s", 1)]
    rows += [(name, f"{one['seconds']:.1f} s", f"{one['ratio']:.2f}") for name, one in results["exporters"].items()]
    return _table((f"DenseNet-{results['variant']}", "seconds", "of the bare export"), rows)


def _against_earlier(whole: Any) -> str:
    rows = [
        (name, f"{one['before']:.2f} s", f"{one['now']:.2f} s", _ratio(one["ratio"], *one["interval"]))
        for name, one in whole["results"].items()
    ]
    return _table(("", "before", "now", "ratio"), rows)


def _gpu(whole: Any) -> str:
    columns = list(dict.fromkeys((one["variant"], one["batch"]) for one in whole["results"]))
    found = {(one["contender"], one["variant"], one["batch"]): one for one in whole["results"]}
    rows = [
        (name, *(f"{found[name, *at]['host_ms']:.1f} ({found[name, *at]['gpu_ms']:.1f})" for at in columns))
        for name in dict.fromkeys(name for name, *_ in found)
    ]
    return _table(
        ("ms, from host to host (on the GPU)", *(f"{variant}, batch {batch}" for variant, batch in columns)), rows
    )


def _image_to_label(whole: Any) -> str:
    rows = [
        (one["backend"], one["candidate"], f"{one['ms']:.1f}", _ratio(*one["ratio"].values()), one["goal"] or "")
        for one in whole["results"]
    ]
    return _table(("", "", "ms", "of before", "limit"), rows)


def _fast_decoding(whole: Any) -> str:
    first = {one["images"]: one for one in reversed(whole["fast_decoding"])}
    rows = [
        (name, one["count"], f"{one['input_sqnr_db']:.1f} dB", f"{one['logits_sqnr_db']:.1f} dB",
         _percent(one["top1_agreement"]), _percent(one["top1"]), _percent(one["top1_fast"]))
        for name, one in first.items()
    ]  # fmt: skip
    return _table(("images", "", "inputs, the worst", "logits", "same answer", "top-1", "top-1, fast"), rows)


def _browser(whole: Any) -> str:
    rows = [
        (name.removesuffix(".onnx").partition(".")[2], f"{one['ms']:.0f}", _ratio(one["ratio"], *one["interval"]))
        for name, one in whole["results"].items()
    ]
    return _table((f"DenseNet-121, {whole['runtime']}, {whole['threads']} thread", "ms", "of FP32's time"), rows)


def _serving(whole: Any) -> str:
    rows = []
    for one in whole["results"]:
        rate = (f"{one['per_second']:.0f}", _percent(one["of_the_runner"]))
        added = f"{one['added_ms']:+.2f}" if "added_ms" in one else ""
        times = (f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", added, f"{one['cpu_ms']:.2f}")
        rows.append((one["model"], one["candidate"], *rate, *times))
    costs = ("median ms", "99 % ms", "median - runner's", "CPU ms")
    heads = ("model", "", "images per second", "of the runner's at that batch", *costs)
    grown = [
        f"{one['requests']:,} requests in {one['seconds'] / 60:g} minutes: {one['memory_mib'][0]:.0f} MiB at first, "
        f"{one['growth_mib']:+.1f} MiB at the end."
        for one in whole["soak"]
    ]
    return "\n\n".join([_table(heads, rows), *grown])


def _jobs(whole: Any) -> str:
    found = whole["results"]
    speed, share = found["speed"], found["speed"]["of_shared"]
    rates = [f"{speed[name]:.0f}" for name in ("decode", "inference", "job")]
    heads = ("images per second", "decoding alone", "model alone", "the job", "of what both reach on the same CPUs")
    rows = [
        (f"{one['images']:,}", f"{one['driver_mib']:.0f} MiB", f"{one['worker_mib']:.0f} MiB")
        for one in found["memory"]
    ]
    fast = _table(
        heads, [(f"{speed['images']} JPEGs of 640x480", *rates, _ratio(*(share[e] for e in ("median", "low", "high"))))]
    )
    memory = _table(("images of the job", "memory of the command", "of its worker"), rows)
    rates = " and ".join(f"{rate:.0f} images/s with `{engine}`" for engine, rate in found["beyond_start"].items())
    return f"{fast}\n\n{memory}\n\nWithout the start of the engine (the second job less the first): {rates}."


def _engines(whole: Any) -> str:
    forms = list(dict.fromkeys(one["form"] for one in whole["results"]))
    found = {(one["variant"], one["form"]): one for one in whole["results"]}
    rows = []
    for variant in dict.fromkeys(one["variant"] for one in whole["results"]):
        each = [found[variant, form] for form in forms]
        sizes = [f"{one['plan_bytes'] / _MIB:.1f}, {one['activation_bytes'] / _MIB:.1f}" for one in each]
        quantized = [f"{one['sqnr_db']:.1f}" for one in each if "int8" in one["form"]]
        share = next(_percent(one["share_of_macs"]["int8"]) for one in each if "int8" in one["share_of_macs"])
        rows.append((variant, *sizes, share, " / ".join(quantized) + " dB"))
    return _table(("engine, working memory in MiB", *forms, "MACs in INT8", "SQNR of INT8"), rows)


def _build_time(whole: Any) -> str:
    rows = [
        (f"{one['variant']} {one['precision']}", f"{one['plan_bytes'] / _MIB:.1f} MiB",
         f"{one['product_seconds']:.2f} / {one['bare_seconds']:.2f} s", f"{one['time_ratio']:.2f}",
         f"{one['product_mib']:.0f} / {one['bare_mib']:.0f} MiB", f"{one['memory_ratio']:.2f}")
        for one in whole["results"]
    ]  # fmt: skip
    return _table(("", "engine", "time, ours / bare", "ratio", "memory, ours / bare", "ratio"), rows)


def _runner(whole: Any) -> str:
    rows = [
        (one["backend"], one["model"], one["batch"], f"{one['bare_ms']:.2f} ms", _microseconds(one["difference_us"]),
         f"{one['limit_us']:.0f} µs", "yes" if one["holds"] else "**no**")
        for one in whole["results"]
    ]  # fmt: skip
    return _table(("", "model", "batch", "bare call", "the runner adds", "limit", "holds"), rows)


def _loop(whole: Any) -> str:
    rows = [
        (one["model"], one["batch"], _ratio(*one["ratio"].values()), "yes" if again["overlap"] else "**no**")
        for one, again in zip(whole["results"]["loop"], whole["results"]["repeat"], strict=True)
    ]
    return _table(("model", "batch", "`benchmark` over the loop", "two runs overlap"), rows)


def _overlap(whole: Any) -> str:
    rows = [
        (one["model"], f"{one['model_threads']} + {one['decode_threads']}", f"{one['decode']:.0f}",
         f"{one['inference']:.0f}", f"{one['evaluate']:.0f}", _ratio(*one["of_slower"].values()))
        for one in whole["results"]
    ]  # fmt: skip
    return _table(("images/s", "threads: model + decoding", "decoding", "model", "`evaluate`", "of the slower"), rows)


def _training(whole: Any) -> str:
    rows = [
        (name, f"{one['seconds']:.1f} s", f"{one['step_mib']:.0f} MiB", f"{one['process_mib']:.0f} MiB")
        for name, one in whole["results"].items()
    ]
    plan = whole["plan"]
    title = f"DenseNet-{plan['variant']}, {plan['image_size']} pixels, batch {plan['batch']}"
    return _table((title, "a step", "above what was there before", "the process"), rows)


def _tune(whole: Any) -> str:
    rows = [
        (one["model"], one["candidates"], f"{one['seconds'] / 60:.1f} min", one["chosen"],
         "yes" if one["near_best"] else "**no**")
        for one in whole["results"]
    ]  # fmt: skip
    return _table(("model", "candidates", "`tune`", "chosen", "within 5 % of the fastest"), rows)


def _compress(whole: Any) -> str:
    rows = [
        (f"{network['network']}: {name}", *cells) for network in whole["results"] for name, *cells in _files_of(network)
    ]
    return _table(_OF_FILES, rows)


def _files_of(network: Mapping[str, Any]) -> list[tuple[str, ...]]:
    speeds, rows = network["speed"], []
    for name, one in network["files"].items():
        ratios = [_over(speeds[batch].get(name)) for batch in ("batch 1", "batch 8")]
        sqnr = "" if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f} dB"
        rows.append((name, f"{one['macs']:.2f}", sqnr, _percent(one["top1"]), *ratios))
    return rows


def _finetuning(whole: Any) -> str:
    rows = [
        (f"{one['network']}, `{one['recipe']}`", one["file"], f"{one['sqnr_db']:.1f} dB", _percent(one["top1"]))
        for one in whole["results"]
    ]
    return _table((f"at most {whole['images']} images", "file", "SQNR", "top-1"), rows)


def _pruned_in_short(whole: Any) -> str:
    """The files of the first network that OpenVINO runs."""
    rows = _files_of(whole["results"][0])
    suffix = ", openvino"
    return _table(_OF_FILES, [(name.removesuffix(suffix), *cells) for name, *cells in rows if name.endswith(suffix)])


def _over(one: Mapping[str, Any] | None) -> str:
    return "" if one is None else f"{one['speedup'][0]:.2f} × {one['over'].partition(',')[0]}"


def _ratio(median: float, low: float, high: float) -> str:
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def _microseconds(interval: Mapping[str, float]) -> str:
    return f"{interval['median']:.0f} [{interval['low']:.0f}, {interval['high']:.0f}] µs"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _table(header: Sequence[str], rows: Rows) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "scripts": scripts,
    "strength of the tests": strength,
    "costs": measured("costs", _costs),
    "INT8 in short": measured("int8", _in_short),
    "INT8 speed": measured("int8", _speed),
    "INT8 accuracy": measured("int8", _accuracy),
    "calibration": measured("int8", _calibration),
    "quantize time": measured("quantize_time", _quantize_time),
    "export time": measured("export_time", _export_time),
    "against earlier": measured("against_earlier", _against_earlier),
    "GPU": measured("gpu", _gpu),
    "image to label": measured("image_to_label", _image_to_label),
    "fast decoding": measured("image_to_label", _fast_decoding),
    "browser": measured("browser", _browser),
    "servers": measured("serving", _serving),
    "jobs": measured("batch_jobs", _jobs),
    "engines": measured("engines", _engines),
    "build time": measured("build_time", _build_time),
    "runner": measured("runner_overhead", _runner),
    "loop": measured("benchmark_loop", _loop),
    "overlap": measured("evaluate_overlap", _overlap),
    "training": measured("training_memory", _training),
    "tune": measured("tune_choice", _tune),
    "pruning": measured("compress", _compress),
    "fine-tuning": measured("finetuning", _finetuning),
    "pruning in short": measured("compress", _pruned_in_short),
}
"""The parts of pages that are made here, by name."""
