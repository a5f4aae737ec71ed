// Time models in turns with onnxruntime-web in one thread: node browser.mjs FOLDER ROUNDS SIZE MODEL...
// FOLDER holds the runtime. Prints the milliseconds of every run as JSON, {model: [...]}.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, rounds, size, ...models] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${folder}/ort.wasm.bundle.min.mjs`));
Object.assign(ort.env, { logLevel: "error" });
Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: readFileSync(`${folder}/ort-wasm-simd-threaded.wasm`) });

const sessions = {}, found = {};
for (const model of models) {
  sessions[model] = await ort.InferenceSession.create(readFileSync(model), { logSeverityLevel: 3 });
  found[model] = [];
}
const pixels = Float32Array.from({ length: 3 * size * size }, (_, i) => Math.sin(i / 50));
const order = [...models];
for (let round = -2; round < rounds; round++) {  // two to warm up
  for (const model of order) {
    const session = sessions[model], image = new ort.Tensor("float32", pixels, [1, 3, Number(size), Number(size)]);
    const start = performance.now();
    await session.run({ [session.inputNames[0]]: image });
    if (round >= 0) found[model].push(performance.now() - start);
  }
  order.reverse();
}
console.log(JSON.stringify(found));
