// The page: images in, from a file, the clipboard or the camera; the worker's answers out.

const SHOWN = { multiclass: 5, multilabel: 50, regression: 50, features: 0 };
const ANNOUNCED_EVERY_MS = 3000;  // of a camera, so that a screen reader can finish

const at = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (element) => [element.id, element]));
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
let facts = null, isReady = false, newest = 0, photoUrl = "", stream = null, wait = null, announced = { text: "", ms: 0 };
let loading = "Loading";

at.unstarted.remove();
worker.onmessage = ({ data }) => HANDLERS[data.type](data);
worker.onerror = (event) => {
  event.preventDefault();
  HANDLERS.failed({ error: "this browser is too old for the page: it has to know module workers and WebAssembly" });
};
at.photo.addEventListener("error", () => at.photo.hidden || show(null));
at.file.addEventListener("change", () => take(at.file.files));
addEventListener("paste", (event) => take(event.clipboardData.files));
addEventListener("dragover", (event) => event.preventDefault());
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(name, () => at.stage.classList.toggle("over", name === "dragenter" || name === "dragover"));
}
addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});
addEventListener("keydown", (event) => event.key === "Escape" && stream && stopCamera());
addEventListener("visibilitychange", () => document.hidden && stream && stopCamera());
at.camera.addEventListener("click", () => (stream ? stopCamera() : startCamera()));
at.camera.hidden = !navigator.mediaDevices?.getUserMedia;  // only where the page is secure

const HANDLERS = {
  facts(data) {
    facts = data.facts;
  },
  progress({ loaded, total }) {
    at.progress.value = loaded / total;
    loading = loaded === total ? "Preparing the model" : `Loading ${megabytes(loaded)} of ${megabytes(total)}`;
    showLoading();
  },
  ready({ threads, difference }) {
    isReady = true;
    at.loading.remove();
    facts.backend = `WebAssembly, ${threads === 1 ? "1 thread" : `${threads} threads`}`;
    facts.checked = `outputs within ${difference.toPrecision(1)} of densenet-deploy run`;
    if (!(difference <= facts.check.tolerance)) {
      facts.notes.unshift(`This browser computes other outputs than densenet-deploy run: they differ by ${percent(difference)}`);
    }
    showDetails();
    showNotes([]);
    document.body.dataset.state = newest === 0 ? "ready" : "working";
    if (newest === 0) say("Ready for an image");
    keepForOffline();
  },
  answer(data) {
    if (wait?.id === data.id) wait.resolve(data);
    if (data.id !== newest) return;
    if (data.error) return showError(data.error);
    showError("");
    showAnswer(data);
  },
  failed({ error }) {
    at.loading.remove();
    document.body.dataset.state = "failed";
    showError(`The model could not be started: ${error}.`);
  },
};

function take(files) {
  const [file] = files;
  if (!file) return;
  if (stream) stopCamera();
  URL.revokeObjectURL(photoUrl);
  at.photo.src = photoUrl = URL.createObjectURL(file);
  at.photo.alt = file.name;
  show(at.photo);
  ask(file);
  at.file.value = "";
}

/** Send an image to the worker; only the answer to the newest one is shown. */
function ask(image, transfer = []) {
  newest += 1;
  worker.postMessage({ id: newest, image }, transfer);
  if (!isReady) showLoading();
  if (isReady && !stream) document.body.dataset.state = "working";
  return newest;
}

/** Say what is being loaded, and that an image which came before the model will be answered. */
function showLoading() {
  at.status.textContent = newest === 0 ? loading : `${loading}; the image is waiting for the model`;
}

async function startCamera() {
  const video = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
  at.camera.disabled = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video });
  } catch (error) {
    const reasons = { NotAllowedError: "it was not allowed", NotFoundError: "there is none" };
    return showError(`The camera cannot be used: ${reasons[error.name] ?? "another program may be using it"}.`);
  } finally {
    at.camera.disabled = false;
  }
  for (const track of stream.getTracks()) track.addEventListener("ended", () => stream && stopCamera());
  showError("");
  at.video.srcObject = stream;
  show(at.video);
  at.camera.textContent = "Stop camera";
  at.camera.setAttribute("aria-pressed", "true");
  await at.video.play();
  answerFrames(stream);
}

/** Answer the newest frame again and again: the next one is taken when the last was answered. */
async function answerFrames(from) {
  while (stream === from) {
    const frame = at.video.readyState >= 2 ? await createImageBitmap(at.video).catch(() => null) : null;
    if (frame && stream === from) {
      const id = ask(frame, [frame]);
      await new Promise((resolve) => (wait = { id, resolve }));
    }
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  for (const track of stream.getTracks()) track.stop();
  stream = at.video.srcObject = null;
  at.video.pause();
  show(null);
  at.camera.textContent = "Use camera";
  at.camera.setAttribute("aria-pressed", "false");
}

function show(element) {
  for (const one of [at.hint, at.photo, at.video]) one.hidden = one !== (element ?? at.hint);
}

function showAnswer({ answer, notes, seen, prepareMs, runMs }) {
  const entries = answer.entries.slice(0, SHOWN[answer.task]);
  at.scores.className = answer.task;
  at.scores.replaceChildren(...entries.map((entry) => scoreLine(entry, answer.task)));
  showNotes(notes);
  showDetails({ prepareMs, runMs, answer });
  const canvas = at.seen.querySelector("canvas");
  Object.assign(canvas, { width: seen.width, height: seen.height });
  canvas.getContext("2d").putImageData(new ImageData(seen.data, seen.width, seen.height), 0, 0);
  at.seen.hidden = false;
  document.body.dataset.state = "answered";
  document.body.dataset.answered = newest;
  announce(spoken(answer));
}

function scoreLine({ index, score, positive }, task) {
  const line = document.createElement("li");
  Object.assign(line.dataset, { index, score });
  const isNumber = task === "regression";
  line.append(textIn("span", "name", facts.names[index]), textIn("span", "value", isNumber ? number(score) : percent(score)));
  if (isNumber) return line;
  const bar = textIn("span", "bar", "");
  bar.style.setProperty("--score", score);
  if (positive !== undefined) {
    const { thresholds } = facts.meaning;
    bar.style.setProperty("--threshold", thresholds.length === 1 ? thresholds[0] : thresholds[index]);
    line.classList.toggle("positive", positive);
    line.append(textIn("span", "heard", positive ? "yes" : "no"));
  }
  line.append(bar);
  return line;
}

function showDetails(last) {
  const rows = [["Backend", facts.backend], ["Model", facts.model], ["Input", facts.input.description], ["Checked", facts.checked]];
  if (last) rows.unshift(["Latency", `${milliseconds(last.runMs)} model, ${milliseconds(last.prepareMs)} image`]);
  if (last?.answer.task === "features") rows.unshift(["Features", `${last.answer.length}, norm ${number(last.answer.norm)}`]);
  at.details.replaceChildren(...rows.flatMap(([name, value]) => [textIn("dt", "", name), textIn("dd", "", value)]));
}

function showNotes(notes) {
  at.notes.replaceChildren(...[...notes, ...facts.notes].map((note) => textIn("li", "", note)));
}

function showError(text) {
  at.error.textContent = text && `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;
  at.error.hidden = !text;
  if (!text) return;
  at.scores.replaceChildren();
  at.seen.hidden = true;
  if (isReady) document.body.dataset.state = "refused";
}

function spoken({ task, entries, length }) {
  if (task === "features") return `${length} features`;
  if (task === "regression") return entries.map(({ index, score }) => `${facts.names[index]} ${number(score)}`).join(", ");
  if (task === "multiclass") return `${facts.names[entries[0].index]}, ${percent(entries[0].score)}`;
  return entries.filter((entry) => entry.positive).map(({ index }) => facts.names[index]).join(", ") || "none of the labels";
}

/** Let screen readers say `text`; of a camera, only what is new, and not all the time. */
function announce(text) {
  const now = performance.now(), what = text.split(",")[0];
  if (stream && (what === announced.text || now - announced.ms < ANNOUNCED_EVERY_MS)) return;
  announced = { text: what, ms: now };
  say(text);
}

function say(text) {
  at.announcement.textContent = text;
}

async function keepForOffline() {
  if (!navigator.serviceWorker) return;  // only where the page is secure
  const { version } = document.body.dataset;
  try {
    await navigator.serviceWorker.register(`sw.js?version=${version}`);
    await navigator.serviceWorker.ready;
    document.body.dataset.offline = "kept";
  } catch {
    // The page works as well; it just needs the network.
  }
}

function textIn(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

function percent(score) {
  return `${(100 * score).toFixed(1)} %`;
}

function number(value) {
  return String(Number(value.toPrecision(6)));
}

function milliseconds(value) {
  return `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
