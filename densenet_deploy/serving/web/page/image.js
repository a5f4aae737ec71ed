// An image file, or a frame of a camera, as pixels in the channels that a model takes, as `densenet_deploy.runtime.images`
// has it: upright, transparency dropped, gray as luma of ITU-R 601. PNGs are decoded here, to the stored bits; other
// formats by the browser, which rounds JPEGs a level differently at times.

import { withoutExif } from "./exif.js";
import { decodePng, isPng } from "./png.js";

export const MOST_PIXELS = Math.floor(2 ** 30 / 12);
const AS_STORED = { premultiplyAlpha: "none", colorSpaceConversion: "none" };

/**
 * Return {width, height, channels, data, notes} of a file or an ImageBitmap; `notes` say what was lost.
 *
 * `data` is Uint8Array or, of gray with 16 bits in one channel, Float32Array of fractions of 255.
 *
 * @throws Error that says in plain words why the image cannot be used.
 */
export async function loadImage(source, channels) {
  if (source instanceof ImageBitmap) return converted(bitmapPixels(source), channels);
  const bytes = new Uint8Array(await source.arrayBuffer());
  if (bytes.length === 0) throw new Error("the file is empty");
  if (isPng(bytes)) return loadPng(bytes, channels);
  const { bytes: plain, orientation } = withoutExif(bytes);
  const bitmap = await createImageBitmap(new Blob([plain]), AS_STORED).catch(() => {
    throw new Error("the file is not an image that this browser can open, or it is damaged");
  });
  return upright(converted(bitmapPixels(bitmap), channels), orientation);
}

/** Return a PNG as `loadImage` does. */
export async function loadPng(bytes, channels) {
  const png = await decodePng(bytes, MOST_PIXELS).catch((error) => {
    throw new Error(`the PNG cannot be decoded: ${error.message}`);
  });
  return upright(converted(png, channels), png.orientation);
}

function bitmapPixels(bitmap) {
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) throw new Error(`${width}x${height} pixels are too many`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("the image is too large for this browser");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const data = new Uint8Array(context.getImageData(0, 0, width, height).data.buffer);
  return { width, height, channels: 4, depth: 8, data, isFromCanvas: true };
}

/** Return an image of 1 to 4 channels and 8 or 16 bits in the `wanted` channels. */
export function converted(image, wanted) {
  const { width, height, channels, depth, data } = image;
  if (wanted === 4 && (channels !== 4 || image.isFromCanvas)) {
    throw new Error("this model takes four channels: give a PNG that stores four");
  }
  const notes = notesOn(image, wanted);
  const is16BitGray = depth === 16 && channels === 1;
  if (is16BitGray && wanted === 1) return { width, height, channels: 1, data: Float32Array.from(data, (v) => v / 257), notes };
  const levels = depth === 16 ? Uint8Array.from(data, (value) => value >> 8) : data;
  if (channels === wanted) return { width, height, channels, data: levels, notes };
  const result = new Uint8Array(width * height * wanted);
  const green = channels > 2 ? 1 : 0, blue = channels > 2 ? 2 : 0;
  for (let i = 0, from = 0; i < result.length; i += wanted, from += channels) {
    const r = levels[from], g = levels[from + green], b = levels[from + blue];
    if (wanted === 3) result[i] = r, result[i + 1] = g, result[i + 2] = b;
    else result[i] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
  }
  return { width, height, channels: wanted, data: result, notes };
}

function notesOn({ channels, depth, data, hasTransparency, isFromCanvas }, wanted) {
  const notes = [];
  if (hasTransparency && wanted !== 4) notes.push("transparency is dropped");
  if (depth === 16 && !(channels === 1 && wanted === 1)) notes.push("16-bit values are cut to their high byte");
  if (wanted === 1 && channels > 2 && !(isFromCanvas && isGray(data))) notes.push("colors are converted to gray");
  if (isFromCanvas && isSeeThrough(data)) {
    notes.push("the browser may have changed colors where the image is transparent; a PNG keeps them");
  }
  return notes;
}

function isGray(rgba) {
  for (let i = 0; i < rgba.length; i += 4) if (rgba[i] !== rgba[i + 1] || rgba[i] !== rgba[i + 2]) return false;
  return true;
}

function isSeeThrough(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return true;
  return false;
}

/** Return the image turned as the EXIF `orientation`, 1 to 8, says. */
function upright(image, orientation) {
  if (orientation === 1) return image;
  const { width, height, channels, data } = image;
  const isLying = orientation > 4;
  const [newWidth, newHeight] = isLying ? [height, width] : [width, height];
  const isFromRight = [2, 3, 7, 8].includes(orientation), isFromBottom = [3, 4, 6, 7].includes(orientation);
  const result = new data.constructor(data.length);
  let place = 0;
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      const column = isLying ? y : x, row = isLying ? x : y;
      const from = ((isFromBottom ? height - 1 - row : row) * width + (isFromRight ? width - 1 - column : column)) * channels;
      for (let channel = 0; channel < channels; channel++) result[place++] = data[from + channel];
    }
  }
  return { ...image, width: newWidth, height: newHeight, data: result };
}
