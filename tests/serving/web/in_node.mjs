// Run the page's modules in Node: read [{call, ...}] as JSON, write one JSON line for each. Arrays of numbers travel in base64.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, cases] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${folder}/${name}`));
const { answerOf, scoresOf } = await load("answer.js");
const { withoutExif } = await load("exif.js");
const { converted, loadPng } = await load("image.js");
const { cropped, prepared } = await load("preprocess.js");

const bytesOf = (text) => new Uint8Array(Buffer.from(text, "base64"));
const textOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");

const CALLS = {
  async input({ png, preprocessing }) {
    const { notes, ...image } = await loadPng(bytesOf(png), preprocessing.mean.length);
    return { input: textOf(prepared(cropped(image, preprocessing), preprocessing)), notes };
  },
  canvas({ rgba, width, height, channels }) {
    const image = { width, height, channels: 4, depth: 8, data: bytesOf(rgba), isFromCanvas: true };
    const { data, notes } = converted(image, channels);
    return { data: textOf(data), notes };
  },
  exif({ image }) {
    const { bytes, orientation } = withoutExif(bytesOf(image));
    return { image: textOf(bytes), orientation };
  },
  answer({ row, meaning }) {
    const values = new Float32Array(bytesOf(row).buffer);
    return { ...answerOf(values, meaning), scores: Array.from(scoresOf(values, meaning)) };
  },
};

for (const one of JSON.parse(readFileSync(cases, "utf8"))) {
  let answer;
  try {
    answer = await CALLS[one.call](one);
  } catch (error) {
    answer = { error: error.message };
  }
  console.log(JSON.stringify(answer));
}
