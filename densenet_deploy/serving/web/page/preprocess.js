// Turn pixels into the input of a model, to the bits of `densenet_deploy.runtime.preprocess`: Pillow's antialiased
// resize, the center crop, and the normalization in three roundings of float32.
//
// Pillow resizes in two passes. For output k of a side that is scaled by s, the center lies at (k + ½)·s, and the pixels
// around it are added with weights of 22 bits; between the passes values are rounded to 8 bits. Fractions (gray images of
// 16 bits) keep float weights, and float32 between the passes. Only what the crop keeps is computed.

const WEIGHT_BITS = 22;
const SUPPORT = { bilinear: 1, bicubic: 2 };

/**
 * Return the part of an image that a model sees: {width, height, channels, data}, of the type of the image's data.
 *
 * @param image {width, height, channels, data}: Uint8Array, or Float32Array of fractions of 255 with one channel.
 * @param facts the preprocessing: image_size, resize, interpolation.
 */
export function cropped(image, { image_size: size, resize, interpolation }) {
  const [rows, columns] = sidesOf(size);
  const [width, height] = resizedSize(image, resize);
  const left = cropStart(width, columns), top = cropStart(height, rows);
  const seen = {
    left: Math.max(left, 0), top: Math.max(top, 0),
    right: Math.min(left + columns, width), bottom: Math.min(top + rows, height),
  };
  const part = resizedPart(image, width, height, seen, interpolation);
  return placed(part, Math.max(-left, 0), Math.max(-top, 0), columns, rows);
}

/** Return the input of a model, float32 (C, H, W) or, for a graph that normalizes, uint8 (H, W, C). */
export function prepared(part, { mean, std, dtype }) {
  const { channels, data } = part;
  if (dtype === "uint8") return data instanceof Uint8Array ? data : Uint8Array.from(data, roundedHalfToEven);
  const count = data.length / channels, result = new Float32Array(data.length), round = Math.fround;
  for (let channel = 0; channel < channels; channel++) {
    const center = round(mean[channel]), spread = round(std[channel]);
    const value = (level) => round(round(round(level / 255) - center) / spread);
    const known = data instanceof Uint8Array ? Float32Array.from({ length: 256 }, (_, level) => value(level)) : null;
    for (let i = 0; i < count; i++) {
      const level = data[i * channels + channel];
      result[channel * count + i] = known ? known[level] : value(level);
    }
  }
  return result;
}

/** Return [width, height] after resizing: one number is for the shorter side. */
export function resizedSize({ width, height }, resize) {
  if (resize === "none") return [width, height];
  if (Array.isArray(resize)) return [resize[1], resize[0]];
  return [width, height].map((side) => Math.trunc((resize * side) / Math.min(width, height)));
}

function sidesOf(size) {
  return Array.isArray(size) ? size : [size, size];
}

function cropStart(length, size) {
  return length < size ? -Math.floor((size - length) / 2) : roundedHalfToEven((length - size) / 2);
}

function roundedHalfToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

function resizedPart(image, width, height, seen, interpolation) {
  if (width === image.width && height === image.height) return cut(image, seen);
  if (interpolation === "nearest") return nearestPart(image, width, height, seen);
  const isFloat = image.data instanceof Float32Array;
  const across = taps(image.width, width, seen.left, seen.right, interpolation, isFloat);
  const down = taps(image.height, height, seen.top, seen.bottom, interpolation, isFloat);
  const lost = { width: image.width - width, height: image.height - height };
  const isAlongRowsFirst = lost.height <= 0 || lost.height <= 2 * lost.width;  // as Pillow 13 has it
  const [first, second] = isAlongRowsFirst ? [across, down] : [down, across];
  const start = second[0].start, end = second.at(-1).start + second.at(-1).weights.length;
  const between = pass(image, first, start, end, isAlongRowsFirst);
  const rest = second.map((tap) => ({ ...tap, start: tap.start - start }));
  return pass(between, rest, 0, isAlongRowsFirst ? between.width : between.height, !isAlongRowsFirst);
}

/** Return for each of the outputs `first` to `end` of a side which pixels are added, from `start` on, with what weights. */
function taps(oldSize, newSize, first, end, interpolation, isFloat) {
  const scale = oldSize / newSize, stretch = Math.max(scale, 1), support = SUPPORT[interpolation] * stretch;
  return Array.from({ length: end - first }, (_, place) => {
    if (oldSize === newSize) return { start: first + place, weights: isFloat ? Float64Array.of(1) : Int32Array.of(1 << WEIGHT_BITS) };
    const center = (first + place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(oldSize, Math.trunc(center + support + 0.5)) - start;
    const weights = Float64Array.from({ length: count }, (_, i) =>
      FILTERS[interpolation](Math.abs((start + i - center + 0.5) * (1 / stretch))));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const shares = sum === 0 ? weights : weights.map((weight) => weight / sum);
    return { start, weights: isFloat ? shares : Int32Array.from(shares, inWeightBits) };
  });
}

const FILTERS = {
  bilinear: (x) => (x < 1 ? 1 - x : 0),
  bicubic: (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0),
};

function inWeightBits(share) {
  return Math.trunc(share * 2 ** WEIGHT_BITS + (share < 0 ? -0.5 : 0.5));
}

/** Resize along one side; of the other, the places `first` to `end` are kept. */
function pass({ width, channels, data }, sums, first, end, isAlongRows) {
  const step = isAlongRows ? channels : width * channels, across = isAlongRows ? width * channels : channels;
  const newWidth = isAlongRows ? sums.length : end - first, newHeight = isAlongRows ? end - first : sums.length;
  const newStep = isAlongRows ? channels : newWidth * channels, newAcross = isAlongRows ? newWidth * channels : channels;
  const isFloat = data instanceof Float32Array, add = isFloat ? addFractions : addLevels;
  const result = new (isFloat ? Float32Array : Uint8ClampedArray)(newWidth * newHeight * channels);
  for (let line = first; line < end; line++) {
    for (let k = 0; k < sums.length; k++) {
      const place = (line - first) * newAcross + k * newStep;
      add(data, line * across + sums[k].start * step, step, sums[k].weights, channels, result, place);
    }
  }
  return { width: newWidth, height: newHeight, channels, data: isFloat ? result : new Uint8Array(result.buffer) };
}

/** Write the weighted sum of pixels of 1, 3 or 4 channels, `step` apart from `at` on, to `place`. */
function addLevels(data, at, step, weights, channels, result, place) {
  const half = 1 << (WEIGHT_BITS - 1);
  let r = half, g = half, b = half, a = half;
  for (let i = 0; i < weights.length; i++, at += step) {
    const weight = weights[i];
    r = (r + Math.imul(data[at], weight)) | 0;
    if (channels === 1) continue;
    g = (g + Math.imul(data[at + 1], weight)) | 0;
    b = (b + Math.imul(data[at + 2], weight)) | 0;
    if (channels === 4) a = (a + Math.imul(data[at + 3], weight)) | 0;
  }
  result[place] = r >> WEIGHT_BITS;
  if (channels === 1) return;
  result[place + 1] = g >> WEIGHT_BITS;
  result[place + 2] = b >> WEIGHT_BITS;
  if (channels === 4) result[place + 3] = a >> WEIGHT_BITS;
}

/** Write the weighted sum of values of one channel. */
function addFractions(data, at, step, weights, channels, result, place) {
  let sum = 0;
  for (let i = 0; i < weights.length; i++, at += step) sum += data[at] * weights[i];
  result[place] = sum;
}

function nearestPart(image, width, height, { left, top, right, bottom }) {
  const columns = nearestPlaces(image.width, width).slice(left, right);
  const rows = nearestPlaces(image.height, height).slice(top, bottom);
  const { channels, data } = image, result = new data.constructor(columns.length * rows.length * channels);
  let place = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * image.width + column) * channels;
      for (let channel = 0; channel < channels; channel++) result[place++] = data[from + channel];
    }
  }
  return { width: columns.length, height: rows.length, channels, data: result };
}

/** Return the pixel that each output of a side shows: Pillow adds up positions, from the first pixel on. */
function nearestPlaces(oldSize, newSize) {
  const places = new Uint32Array(newSize), scale = oldSize / newSize;
  for (let k = 0, position = scale * 0.5; k < newSize; k++, position += scale) places[k] = position;
  return places;
}

function cut({ width, channels, data }, { left, top, right, bottom }) {
  const row = (right - left) * channels, result = new data.constructor(row * (bottom - top));
  for (let y = top; y < bottom; y++) {
    const from = (y * width + left) * channels;
    result.set(data.subarray(from, from + row), (y - top) * row);
  }
  return { width: right - left, height: bottom - top, channels, data: result };
}

/** Return `part` on black, `left` and `top` pixels from the corner. */
function placed(part, left, top, columns, rows) {
  if (part.width === columns && part.height === rows) return part;
  const { channels, data } = part, result = new data.constructor(columns * rows * channels);
  for (let y = 0; y < part.height; y++) {
    const row = data.subarray(y * part.width * channels, (y + 1) * part.width * channels);
    result.set(row, ((top + y) * columns + left) * channels);
  }
  return { width: columns, height: rows, channels, data: result };
}
