"""The page in a browser: the answers of `run`, nothing from elsewhere, offline, threads, camera, keyboard, colors."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

import densenet_deploy as dd
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import cropped
from tests.chromium import Tab, chromium_tab, find_chromium
from tests.conftest import DIGITS
from tests.serving.web.javascript import chunk, png_of

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
CLOSE = 1e-3
"""Of scores: two builds of the same kernels."""

ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@dataclass
class Host:
    """A web server for a folder, as simple as those of static hosts, with more headers, or holding the model back."""

    folder: Path
    headers: dict[str, str] = field(default_factory=dict)
    sends_model: threading.Event | None = None

    def __enter__(self) -> Host:
        host = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def end_headers(self) -> None:
                for name, value in host.headers.items():
                    self.send_header(name, value)
                super().end_headers()

            def do_GET(self) -> None:
                if host.sends_model is not None and self.path.endswith("model.onnx"):
                    host.sends_model.wait(60)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(self.folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    """A browser that knows nothing of earlier pages."""
    assert CHROMIUM is not None
    with chromium_tab(CHROMIUM, tmp_path / "profile", *CAMERA) as tab:
        yield tab


@pytest.fixture(scope="module")
def site(web_runtime: Path, digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    dd.web(digits_onnx, folder, dd.WebOptions("Handwritten digits", web_runtime))
    return folder


def state(tab: Tab) -> str:
    return str(tab.run("document.body.dataset.state || ''"))


def start(tab: Tab, url: str, width: int = 1280, *, dark: bool = False) -> None:
    """Open the page and wait until the model is ready."""
    tab.open(url, width, dark=dark)
    tab.wait("document.body.dataset.state")
    assert state(tab) == "ready", tab.run("document.getElementById('error').textContent")


def transfer(data: bytes, name: str) -> str:
    """Return a JavaScript expression for what a clipboard or a mouse carries: one file."""
    bytes_of = f"Uint8Array.from(atob('{base64.b64encode(data).decode()}'), c => c.charCodeAt(0))"
    return f"(all => {{ all.items.add(new File([{bytes_of}], '{name}')); return all; }})(new DataTransfer())"


def give(tab: Tab, data: bytes, name: str = "x.png") -> dict[str, Any]:
    """Choose a file, wait for its answer, and return what the page shows."""
    before = tab.run("document.body.dataset.answered || '0'")
    tab.run("document.body.dataset.state = ''")
    tab.run(f"document.getElementById('file').files = ({transfer(data, name)}).files; true")
    tab.run("document.getElementById('file').dispatchEvent(new Event('change'))")
    tab.wait(f"document.body.dataset.state === 'refused' || document.body.dataset.answered > {before}")
    return shown(tab)


def shown(tab: Tab) -> dict[str, Any]:
    """Return what stands on the page: scores by index in their order, names by index, and so on."""
    lines = "[...document.querySelectorAll('#scores li')]"
    rows = tab.run(f"{lines}.map(e => [+e.dataset.index, +e.dataset.score, e.querySelector('.name').textContent])")
    terms = "[...document.querySelectorAll('dt')].map(e => [e.textContent, e.nextSibling.textContent])"
    return {
        "scores": {index: score for index, score, _ in rows},
        "names": {index: name for index, _, name in rows},
        "positive": tab.run(f"{lines}.filter(e => e.classList.contains('positive')).map(e => +e.dataset.index)"),
        "notes": tab.run("[...document.querySelectorAll('#notes li')].map(e => e.textContent)"),
        "details": dict(tab.run(terms)),
        "error": tab.run("document.getElementById('error').textContent"),
    }


def check_scores(found: dict[str, Any], classify: Classifier, data: bytes, within: float = CLOSE) -> None:
    """Check what is shown against Python's answer: all scores, all names, and that the best are shown, best first."""
    answer = classify(data, top_k=1000)
    wanted = {one.index: one.score for one in answer.top} | {one.index: one.value for one in answer.values}
    names = {one.index: one.name for one in (*answer.top, *answer.values)}
    scores = found["scores"]
    assert found["error"] == ""
    assert len(scores) == (min(5, len(wanted)) if classify.meaning.task == "multiclass" else len(wanted))
    assert max(abs(score - wanted[index]) for index, score in scores.items()) <= within
    assert found["names"] == {index: names[index] for index in scores}
    if classify.meaning.task != "regression":
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert (
            max((wanted[index] for index in wanted if index not in scores), default=0) <= min(scores.values()) + within
        )


def is_quiet(tab: Tab, url: str) -> None:
    assert tab.console == []
    assert [request for request in tab.requests if not request.startswith((url, f"blob:{url}"))] == []


MODELS: dict[str, Callable[[dd.Model], dd.Model]] = {
    "fp32": lambda model: model,
    "fp16": lambda model: dd.cast(model, dd.CastOptions("fp16", samples=8)),
    "int8.onnxruntime": lambda model: quantized(model, "onnxruntime"),
    "int8.openvino": lambda model: quantized(model, "openvino"),
    "int8.tensorrt": lambda model: quantized(model, "tensorrt"),
    "uint8": lambda _: dd.export(DIGITS / "densenet_digits.safetensors", dd.ExportOptions(input="uint8")),
}


def quantized(model: dd.Model, recipe: str) -> dd.Model:
    samples = DIGITS.parents[1] / "calibration" / "samples"
    return dd.quantize(model, samples, dd.QuantizeOptions(recipe=recipe, never_slower=False))


@pytest.mark.parametrize("precision", MODELS)
@pytest.mark.parametrize("is_isolated", [False, True], ids=["one thread", "threads"])
def test_answers_equal_those_of_run(
    precision: str, is_isolated: bool, digits_onnx: Path, web_runtime: Path, tmp_path: Path, tab: Tab
) -> None:
    model = MODELS[precision](dd.load(digits_onnx))
    dd.web(model, tmp_path / "site", dd.WebOptions(runtime=web_runtime))
    images = sorted((DIGITS / "held_out").glob("*/*.png"))[::45]
    headers = ISOLATED if is_isolated else {}
    with Host(tmp_path / "site", headers) as host, Classifier.open(model, "onnxruntime") as known:
        start(tab, host.url)
        assert tab.run("crossOriginIsolated") is is_isolated
        for path in images:
            check_scores(give(tab, path.read_bytes()), known, path.read_bytes())
        details = shown(tab)["details"]
        assert ("threads" in details["Backend"]) is is_isolated or tab.run("navigator.hardwareConcurrency") == 1
        assert not [note for note in shown(tab)["notes"] if "other outputs" in note]
        assert "model" in details["Latency"]
        is_quiet(tab, host.url)


def test_a_browser_that_computes_otherwise_is_told(site: Path, tmp_path: Path, tab: Tab) -> None:
    """The twin of the check at the start: with other outputs on record, the page says so."""
    (version,) = (path for path in site.iterdir() if path.is_dir())
    other = tmp_path / "other" / version.name
    other.mkdir(parents=True)
    for path in (*site.glob("*.*"), *version.iterdir()):
        (other if path.parent == version else other.parent).joinpath(path.name).write_bytes(path.read_bytes())
    facts = json.loads((other / "facts.json").read_text())
    facts["check"]["outputs"][0] += 0.001 * max(map(abs, facts["check"]["outputs"]))
    (other / "facts.json").write_text(json.dumps(facts))
    with Host(other.parent) as host:
        start(tab, host.url)
        assert "they differ by 0.1 %" in shown(tab)["notes"][0]


TASKS: dict[str, dict[str, Any]] = {
    "multilabel": {"labels": list("abcdefghij"), "thresholds": [0.1 * i for i in range(10)]},
    "regression": {},
    "features": {},
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task: str, digits_onnx: Path, web_runtime: Path, tmp_path: Path, tab: Tab) -> None:
    model = dd.load(digits_onnx, task=task, **TASKS[task])
    dd.web(model, tmp_path / "site", dd.WebOptions(runtime=web_runtime))
    data = next((DIGITS / "held_out").glob("7/*.png")).read_bytes()
    with Host(tmp_path / "site") as host, Classifier.open(model, "onnxruntime") as classify:
        start(tab, host.url)
        found = give(tab, data)
        expected = classify(data, top_k=10)
        if expected.features is not None:
            assert found["details"]["Features"] == f"10, norm {expected.features.norm:.6g}"
            assert found["scores"] == {}
        else:
            check_scores(found, classify, data)
            assert found["positive"] == [one.index for one in expected.top if one.positive]
        is_quiet(tab, host.url)


def gray_x_ray(tmp_path: Path) -> dd.Model:
    """A model of one channel, untrained."""
    architecture = dd.Architecture(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar")
    facts = {"image_size": (40, 48), "resize": (44, 50), "interpolation": "bicubic", "mean": 0.4, "std": 0.2}
    return dd.export(architecture=architecture, num_classes=4, channels=1, **facts)


def test_gray_images_keep_16_bits(web_runtime: Path, tmp_path: Path, tab: Tab) -> None:
    model = gray_x_ray(tmp_path)
    dd.web(model, tmp_path / "site", dd.WebOptions(runtime=web_runtime))
    values = (np.add.outer(np.arange(90), np.arange(120)) * 300 % 65536).astype(np.uint16)[:, :, None]
    data = png_of(values, 0, 16, before=chunk(b"eXIf", exif(6).tobytes()[6:]), filters=(1, 2, 4))
    with Host(tmp_path / "site") as host, Classifier.open(model, "onnxruntime") as classify:
        start(tab, host.url)
        found = give(tab, data)
        check_scores(found, classify, data, 1e-6)
        assert classify(data).notes == ()
        (note,) = found["notes"]
        assert "untrained" in note
        is_quiet(tab, host.url)


def photograph(kind: str, **options: Any) -> bytes:
    """An image like a photograph: smooth, colored, with edges."""
    y, x = np.mgrid[:240, :320]
    bands = [127 + 90 * np.sin(x / 17 + i) * np.cos(y / (11 + i)) + 30 * (x > 150 + 20 * i) for i in range(3)]
    file = io.BytesIO()
    Image.fromarray(np.stack(bands, axis=2).clip(0, 255).astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    facts = Image.Exif()
    facts[0x0112] = orientation
    return facts


def profile_that_exchanges_red_and_blue() -> bytes:
    """A color profile that anybody who applies it sees at once."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


FORMATS: dict[str, tuple[str, dict[str, Any], int]] = {
    "JPEG": ("JPEG", {"quality": 90}, 2),
    "progressive JPEG": ("JPEG", {"quality": 75, "subsampling": 2, "progressive": True}, 2),
    "turned JPEG": ("JPEG", {"quality": 90, "exif": exif(6)}, 2),
    "JPEG with a profile": ("JPEG", {"quality": 90, "icc_profile": profile_that_exchanges_red_and_blue()}, 2),
    "WebP": ("WEBP", {"lossless": True}, 0),
    "turned WebP": ("WEBP", {"lossless": True, "exif": exif(8)}, 0),
    "WebP with a profile": ("WEBP", {"lossless": True, "icc_profile": profile_that_exchanges_red_and_blue()}, 0),
    "BMP": ("BMP", {}, 0),
    "GIF": ("GIF", {}, 0),
    "PNG with a profile": ("PNG", {"icc_profile": profile_that_exchanges_red_and_blue()}, 0),
}
"""Name → Pillow's name and options, and how many of 255 levels the browser's decoder may be apart from Pillow's."""


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_decoded_by_the_browser(name: str, digits_onnx: Path, site: Path, tab: Tab) -> None:
    kind, options, levels = FORMATS[name]
    data = photograph(kind, **options)
    with Host(site) as host, Classifier.open(digits_onnx, "onnxruntime") as classify:
        start(tab, host.url)
        found = give(tab, data)
        seen = tab.run(
            "(canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data])"
            "(document.querySelector('#seen canvas'))"
        )
        expected = np.asarray(cropped(load_image(data), classify.preprocessing)).astype(int)
        apart = np.abs(np.array(seen).reshape(32, 32, 4)[..., :3] - expected)
        assert apart.max() <= levels
        check_scores(found, classify, data, CLOSE if levels == 0 else 1e-2)
        is_quiet(tab, host.url)


def test_where_a_browser_may_change_colors_it_says_so(site: Path, tab: Tab) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[...] = (200, 100, 50, 128)
    files = {kind: io.BytesIO() for kind in ("WEBP", "PNG")}
    for kind, file in files.items():
        Image.fromarray(rgba).save(file, kind, lossless=True)
    with Host(site) as host:
        start(tab, host.url)
        assert give(tab, files["PNG"].getvalue())["notes"] == ["transparency is dropped"]
        (note,) = give(tab, files["WEBP"].getvalue())["notes"]
        assert "may have changed colors" in note


def test_an_image_that_comes_before_the_model_waits_and_is_answered(site: Path, tab: Tab) -> None:
    data = next((DIGITS / "held_out").glob("3/*.png")).read_bytes()
    status = "document.getElementById('status').textContent"
    sends = threading.Event()
    with Host(site, sends_model=sends) as host:
        try:
            tab.open(host.url, 1280)
            tab.run(f"document.getElementById('file').files = ({transfer(data, 'x.png')}).files; true")
            tab.run("document.getElementById('file').dispatchEvent(new Event('change'))")
            assert tab.run(status).endswith("; the image is waiting for the model")
        finally:
            sends.set()
        tab.wait("document.body.dataset.answered === '1'")
        assert len(shown(tab)["scores"]) == 5


def test_what_is_not_an_image_is_refused_and_the_page_goes_on(site: Path, tab: Tab) -> None:
    good = next((DIGITS / "held_out").glob("3/*.png")).read_bytes()
    with Host(site) as host:
        start(tab, host.url)
        for data, why in (
            (b"", "The file is empty."),
            (b"<html>", "The file is not an image that this browser can open, or it is damaged."),
            (good[:-30], "The PNG cannot be decoded: it ends too early."),
            (photograph("TIFF"), "The file is not an image that this browser can open, or it is damaged."),
        ):
            found = give(tab, data)
            assert found["error"] == why
            assert found["scores"] == {}
        found = give(tab, good)
        assert found["error"] == ""
        assert len(found["scores"]) == 5
        assert [line for line in tab.console if "ERR_FILE_NOT_FOUND" not in line] == []


def test_it_works_offline_and_gets_threads_from_the_second_visit_on(site: Path, tab: Tab) -> None:
    data = next((DIGITS / "held_out").glob("7/*.png")).read_bytes()
    with Host(site) as host:
        start(tab, host.url)
        assert not tab.run("crossOriginIsolated")
        first = give(tab, data)
        tab.wait("document.body.dataset.offline === 'kept'")
        start(tab, host.url)
        assert tab.run("crossOriginIsolated")
    tab.console.clear()
    start(tab, host.url)
    assert tab.run("crossOriginIsolated")
    found = give(tab, data)
    assert found["scores"].keys() == first["scores"].keys()
    assert max(abs(found["scores"][index] - score) for index, score in first["scores"].items()) <= CLOSE


def test_a_new_version_is_seen_at_once_and_the_old_one_forgotten(
    digits_onnx: Path, web_runtime: Path, tmp_path: Path, tab: Tab
) -> None:
    site = tmp_path / "site"
    dd.web(digits_onnx, site, dd.WebOptions("Old", web_runtime))
    with Host(site) as host:
        start(tab, host.url)
        tab.wait("document.body.dataset.offline === 'kept'")
        dd.web(digits_onnx, site, dd.WebOptions("New", web_runtime), force=True)
        start(tab, host.url)
        assert tab.run("document.title") == "New"
        (version,) = (path.name for path in site.iterdir() if path.is_dir())
        kept = f"caches.keys().then(names => names.length === 1 && names[0].endsWith('{version}'))"
        tab.wait(f"document.body.dataset.offline === 'kept' && {kept}")
        is_quiet(tab, host.url)
    start(tab, host.url)
    assert tab.run("document.title") == "New"


def test_the_camera_answers_until_it_is_stopped(site: Path, tab: Tab) -> None:
    with Host(site) as host:
        start(tab, host.url)
        assert not tab.run("document.getElementById('camera').hidden")
        tab.run("document.getElementById('camera').click()")
        tab.wait("Number(document.body.dataset.answered) >= 5")
        assert tab.run("document.getElementById('camera').textContent") == "Stop camera"
        assert tab.run("document.getElementById('camera').getAttribute('aria-pressed')") == "true"
        assert len(shown(tab)["scores"]) == 5
        assert tab.run("document.getElementById('announcement').textContent") != ""
        tab.press("Escape", 27)
        assert tab.run("document.getElementById('camera').textContent") == "Use camera"
        assert tab.run("document.getElementById('video').srcObject === null")
        asked = tab.run("new Promise(done => setTimeout(() => done(document.body.dataset.answered), 500))")
        assert tab.run("new Promise(done => setTimeout(() => done(document.body.dataset.answered), 500))") == asked
        is_quiet(tab, host.url)


EVENTS = (
    "new ClipboardEvent('paste', { clipboardData: all, bubbles: true })",
    "new DragEvent('drop', { dataTransfer: all, bubbles: true })",
)


def test_keyboard_paste_and_drop(site: Path, tab: Tab) -> None:
    files = transfer(next((DIGITS / "held_out").glob("7/*.png")).read_bytes(), "7.png")
    with Host(site) as host:
        start(tab, host.url)
        tab.press("Tab", 9)
        assert tab.run("document.activeElement.id") == "file"
        assert tab.run("getComputedStyle(document.querySelector('#buttons label')).outlineStyle") == "solid"
        tab.press("Tab", 9)
        assert tab.run("document.activeElement.id") == "camera"
        for event in EVENTS:
            tab.run("delete document.body.dataset.answered")
            tab.run(f"(all => document.body.dispatchEvent({event}))({files})")
            tab.wait("document.body.dataset.answered")
            assert next(iter(shown(tab)["names"].values())) == "7"
            assert tab.run("document.getElementById('announcement').textContent").startswith("7, ")
            assert tab.run("document.getElementById('photo').alt") == "7.png"
        is_quiet(tab, host.url)


@pytest.mark.parametrize(("width", "dark"), [(width, dark) for width in (360, 1280) for dark in (False, True)])
def test_it_fits_and_light_is_light(site: Path, tab: Tab, width: int, dark: bool) -> None:
    with Host(site) as host:
        start(tab, host.url, width, dark=dark)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        give(tab, next((DIGITS / "held_out").glob("7/*.png")).read_bytes())
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        boxes = "[...document.querySelectorAll('#stage, #buttons, #scores li, #details, #seen')]"
        boxes += ".map(e => e.getBoundingClientRect())"
        assert tab.run(f"{boxes}.every(box => box.left >= 0 && box.right <= innerWidth && box.height > 0)")
        with Image.open(io.BytesIO(tab.screenshot())) as shot:
            histogram = shot.convert("L").histogram()
    share = sum(histogram[:64]) / sum(histogram)
    assert share > 0.6 if dark else share < 0.35


def test_the_page_in_a_subfolder(site: Path, tmp_path: Path, tab: Tab) -> None:
    """As project pages of static hosts are."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "demo").symlink_to(site)
    with Host(tmp_path / "host") as host:
        start(tab, f"{host.url}demo/")
        tab.wait("document.body.dataset.offline === 'kept'")
        start(tab, f"{host.url}demo/")
        assert tab.run("crossOriginIsolated")
        assert {request.removeprefix(host.url).split("/")[0] for request in tab.requests} == {"demo"}


def test_the_policy_stops_what_it_should(site: Path, tab: Tab) -> None:
    """The twin of the quiet pages: with the policy in place, requests to elsewhere fail and are seen."""
    with Host(site) as host:
        start(tab, host.url)
        stopped = tab.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')")
        assert stopped == "stopped"
        tab.run("document.body.append(Object.assign(document.createElement('script'), { text: 'window.ran = true' }))")
        assert tab.run("window.ran === undefined")
        tab.wait("true")
        assert len(tab.console) >= 2
