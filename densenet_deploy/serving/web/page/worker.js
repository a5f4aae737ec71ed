// The model, away from the page: loads ONNX Runtime and the model, checks both on an image with a known answer, and then
// answers images one by one.
//
// To the page: {type: "facts"}, {type: "progress", loaded, total}, {type: "ready"}, {type: "answer", id}, and errors as
// {type: "failed"} or {type: "answer", id, error}. From the page: {id, image}, a file or an ImageBitmap.

import { answerOf } from "./answer.js";
import { loadImage, loadPng } from "./image.js";
import * as ort from "./ort.wasm.bundle.min.mjs";
import { cropped, prepared } from "./preprocess.js";

const RUNTIME = "ort-wasm-simd-threaded.wasm", MODEL = "model.onnx", CHECK = "check.png", FACTS = "facts.json";
const MOST_THREADS = 4;  // more wait for each other on phones and laptops

const opened = open().catch((error) => {
  postMessage({ type: "failed", error: error.message });
});

self.onmessage = async ({ data: { id, image } }) => {
  const model = await opened;
  if (!model) return;
  try {
    const { seen, ...answer } = await model.answer((channels) => loadImage(image, channels));
    postMessage({ type: "answer", id, seen, ...answer }, [seen.data.buffer]);
  } catch (error) {
    postMessage({ type: "answer", id, error: error.message });
  }
};

async function open() {
  const facts = JSON.parse(new TextDecoder().decode(await download(FACTS)));
  postMessage({ type: "facts", facts });
  const files = await downloaded(facts.sizes);
  const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  Object.assign(ort.env, { logLevel: "error" });
  Object.assign(ort.env.wasm, { wasmBinary: files[RUNTIME], numThreads: threads });
  const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
  const model = new Model(await ort.InferenceSession.create(files[MODEL], options), facts);
  postMessage({ type: "ready", threads, difference: await model.difference(files[CHECK]) });
  return model;
}

async function downloaded(sizes) {
  const total = Object.values(sizes).reduce((sum, size) => sum + size);
  let loaded = 0;
  const onBytes = (count) => postMessage({ type: "progress", loaded: (loaded += count), total });
  const load = async (name) => [name, await download(name, sizes[name], onBytes)];
  return Object.fromEntries(await Promise.all(Object.keys(sizes).map(load)));
}

async function download(name, size, onBytes = () => {}) {
  const response = await fetch(new URL(name, import.meta.url)).catch(() => null);
  if (!response?.ok) throw new Error(`${name} could not be loaded: check the connection, then load the page again`);
  const parts = [];
  for (const reader = response.body.getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  if (size !== undefined && bytes.length !== size) throw new Error(`${name} is not complete: load the page again`);
  return bytes;
}

class Model {
  constructor(session, facts) {
    this.session = session;
    this.facts = facts;
  }

  /** Return what the model says about the image that `load` gives, what it saw of it, and the milliseconds it took. */
  async answer(load) {
    const start = performance.now();
    const { notes, ...image } = await load(this.facts.preprocessing.mean.length);
    const part = cropped(image, this.facts.preprocessing);
    const input = prepared(part, this.facts.preprocessing);
    const between = performance.now();
    const row = await this.row(input);
    const answer = answerOf(row, this.facts.meaning);
    return { answer, row, notes, seen: shown(part), prepareMs: between - start, runMs: performance.now() - between };
  }

  async row(input) {
    const { name, dtype, shape } = this.facts.input, [batch] = shape;
    const data = new input.constructor(batch * input.length);
    for (let i = 0; i < batch; i++) data.set(input, i * input.length);
    const output = this.facts.meaning.output;
    const results = await this.session.run({ [name]: new ort.Tensor(dtype, data, shape) }, [output]);
    const values = Float32Array.from(results[output].data);
    for (const tensor of Object.values(results)) tensor.dispose();
    return values.subarray(0, values.length / batch);
  }

  /** Return how far the outputs for the check image are from those in Python, as a fraction of the largest one. */
  async difference(png) {
    const { row } = await this.answer((channels) => loadPng(png, channels));
    const { outputs } = this.facts.check, largest = (values) => values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    if (row.length !== outputs.length) throw new Error("the model has another number of outputs than it had");
    return largest(outputs.map((value, i) => value - row[i])) / (largest(outputs) || 1);
  }
}

/** Return pixels for a canvas. */
function shown({ width, height, channels, data }) {
  const rgba = new Uint8ClampedArray(width * height * 4);
  const green = channels > 1 ? 1 : 0, blue = channels > 1 ? 2 : 0;
  for (let i = 0, from = 0; i < rgba.length; i += 4, from += channels) {
    rgba[i] = data[from], rgba[i + 1] = data[from + green], rgba[i + 2] = data[from + blue], rgba[i + 3] = 255;
  }
  return { width, height, data: rgba };
}
