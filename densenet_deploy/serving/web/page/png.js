// Decode a PNG to the stored values, exactly: a browser's canvas premultiplies transparency, applies color profiles and
// keeps 8 bits. As in Python, a PNG with a wrong checksum is refused, and what follows the pixels is ignored.

import { exifOrientation } from "./exif.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const CHECKED = ["IHDR", "PLTE", "IDAT", "IEND"];
const GRAY = 0, RGB = 2, PALETTE = 3, GRAY_ALPHA = 4, RGBA = 6;
const CHANNELS = { [GRAY]: 1, [RGB]: 3, [PALETTE]: 1, [GRAY_ALPHA]: 2, [RGBA]: 4 };
const DEPTHS = { [GRAY]: [1, 2, 4, 8, 16], [RGB]: [8, 16], [PALETTE]: [1, 2, 4, 8], [GRAY_ALPHA]: [8, 16], [RGBA]: [8, 16] };
// Adam7: first column and row of each pass, and the steps to the next.
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
const WHOLE = [[0, 0, 1, 1]];

export function isPng(bytes) {
  return SIGNATURE.every((value, place) => bytes[place] === value);
}

/**
 * Return the stored values of a PNG: {width, height, channels, depth, data, hasTransparency, orientation}.
 *
 * `data` is Uint8Array or, of 16 bits, Uint16Array, pixel by pixel; a palette is resolved to 3 channels, or 4 if it has
 * transparency. `orientation` is that of EXIF, 1 to 8.
 */
export async function decodePng(bytes, mostPixels) {
  const chunks = readChunks(bytes);
  const header = readHeader(chunks.IHDR?.[0], mostPixels);
  const passes = passesOf(header);
  const needed = passes.reduce((sum, pass) => sum + pass.rows * (1 + pass.rowBytes), 0);
  const data = unpack(await inflated(chunks.IDAT ?? [], needed), header, passes);
  const orientation = chunks.eXIf ? exifOrientation(chunks.eXIf[0]) : 1;
  const { width, height, depth, color } = header;
  const isPalette = color === PALETTE;
  if (isPalette && !chunks.PLTE) throw new Error("it has no palette");
  const resolved = isPalette ? colorsOf(data, chunks.PLTE[0], chunks.tRNS?.[0]) : { data, channels: CHANNELS[color] };
  const hasTransparency = color === GRAY_ALPHA || color === RGBA || chunks.tRNS !== undefined;
  return { width, height, depth: depth === 16 ? 16 : 8, hasTransparency, orientation, ...resolved };
}

function readChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = {};
  for (let place = SIGNATURE.length, kind = ""; kind !== "IEND"; ) {
    if (place + 12 > bytes.length) throw new Error("it ends too early");
    const length = view.getUint32(place);
    kind = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    if (place + 12 + length > bytes.length) throw new Error("it ends too early");
    const body = bytes.subarray(place + 8, place + 8 + length);
    if (CHECKED.includes(kind) && crc(bytes.subarray(place + 4, place + 8 + length)) !== view.getUint32(place + 8 + length)) {
      throw new Error(`its ${kind} chunk is damaged`);
    }
    (chunks[kind] ??= []).push(body);
    place += 12 + length;
  }
  return chunks;
}

function readHeader(body, mostPixels) {
  if (body?.length !== 13) throw new Error("its header is damaged");
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const header = { width: view.getUint32(0), height: view.getUint32(4), depth: body[8], color: body[9], isInterlaced: body[12] };
  if (!DEPTHS[header.color]?.includes(header.depth) || !header.width || !header.height || body[12] > 1) {
    throw new Error("its header is damaged");
  }
  if (header.width * header.height > mostPixels) throw new Error(`${header.width}x${header.height} pixels are too many`);
  return header;
}

function passesOf({ width, height, depth, color, isInterlaced }) {
  return (isInterlaced ? PASSES : WHOLE)
    .map(([left, top, across, down]) => {
      const columns = Math.ceil((width - left) / across), rows = Math.ceil((height - top) / down);
      return { left, top, across, down, columns, rows, rowBytes: Math.ceil((columns * CHANNELS[color] * depth) / 8) };
    })
    .filter((pass) => pass.columns > 0 && pass.rows > 0);
}

/** Return the first `needed` bytes of what `parts` hold, compressed. */
async function inflated(parts, needed) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const result = new Uint8Array(needed);
  let filled = 0;
  while (filled < needed) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new Error("its pixels are damaged or end too early");
    const part = value.subarray(0, needed - filled);
    result.set(part, filled);
    filled += part.length;
  }
  reader.cancel().catch(() => {});
  return result;
}

/** Undo the filters of each row, and return the values pixel by pixel. */
function unpack(bytes, { width, height, depth, color }, passes) {
  const channels = CHANNELS[color];
  const values = depth === 16 ? new Uint16Array(width * height * channels) : new Uint8Array(width * height * channels);
  const step = Math.max(1, (channels * depth) / 8);
  const scale = color === PALETTE || depth >= 8 ? 1 : 255 / (2 ** depth - 1);
  let place = 0;
  for (const pass of passes) {
    let above = new Uint8Array(pass.rowBytes);
    for (let row = 0; row < pass.rows; row++) {
      const line = bytes.subarray(place + 1, place + 1 + pass.rowBytes);
      unfilter(bytes[place], line, above, step);
      const start = (pass.top + row * pass.down) * width + pass.left;
      for (let column = 0; column < pass.columns; column++) {
        const target = (start + column * pass.across) * channels;
        for (let channel = 0; channel < channels; channel++) {
          values[target + channel] = scale * valueAt(line, column * channels + channel, depth);
        }
      }
      above = line;
      place += 1 + pass.rowBytes;
    }
  }
  return values;
}

function valueAt(line, index, depth) {
  if (depth === 8) return line[index];
  if (depth === 16) return (line[2 * index] << 8) | line[2 * index + 1];
  const bit = index * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
}

function unfilter(kind, line, above, step) {
  if (kind > 4) throw new Error("its pixels are damaged");
  if (kind === 0) return;
  for (let i = 0; i < line.length; i++) {
    const left = i < step ? 0 : line[i - step], up = above[i];
    if (kind === 1) line[i] += left;
    else if (kind === 2) line[i] += up;
    else if (kind === 3) line[i] += (left + up) >> 1;
    else line[i] += nearest(left, up, i < step ? 0 : above[i - step]);
  }
}

/** Return the one of three neighbours that is nearest to left + up - corner (Paeth). */
function nearest(left, up, corner) {
  const toLeft = Math.abs(up - corner), toUp = Math.abs(left - corner), toCorner = Math.abs(left + up - 2 * corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

function colorsOf(indices, palette, opacity) {
  const channels = opacity ? 4 : 3;
  const data = new Uint8Array(indices.length * channels);
  for (let i = 0; i < indices.length; i++) {
    for (let channel = 0; channel < 3; channel++) {
      data[i * channels + channel] = palette[3 * indices[i] + channel] ?? 0;
    }
    if (opacity) data[i * channels + 3] = opacity[indices[i]] ?? 255;
  }
  return { data, channels };
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) value = CRC_TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
