// The EXIF orientation of an image, 1 to 8. It is applied here: browsers apply it to JPEGs, but not all of them to WebP,
// and none can be told not to. So they are given images whose EXIF data nobody recognizes.

const EXIF = [0x45, 0x78, 0x69, 0x66];  // "Exif"; in WebP the name of the chunk is in capitals
const ORIENTATION = 0x0112, LONG = 4, TIFF = 42;

/** Return the orientation in a block of EXIF data; 1 if it has none, or is damaged. */
export function exifOrientation(block) {
  const exif = isAt(block, 0, EXIF) ? block.subarray(6) : block;
  try {
    const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
    const isLittle = view.getUint16(0) === 0x4949;
    if (view.getUint16(2, isLittle) !== TIFF) return 1;
    const start = view.getUint32(4, isLittle);
    for (let entry = 0; entry < view.getUint16(start, isLittle); entry++) {
      const place = start + 2 + 12 * entry;
      if (view.getUint16(place, isLittle) !== ORIENTATION) continue;
      const isLong = view.getUint16(place + 2, isLittle) === LONG;
      const value = isLong ? view.getUint32(place + 8, isLittle) : view.getUint16(place + 8, isLittle);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/** Return the bytes of a JPEG or a WebP with its EXIF data made unrecognizable, and the orientation that it holds. */
export function withoutExif(bytes) {
  const [first] = exifBlocks(bytes);
  if (!first) return { bytes, orientation: 1 };
  const changed = bytes.slice();
  for (const { name } of exifBlocks(bytes)) changed.set([0x78, 0x78, 0x78, 0x78], name);  // "xxxx"
  return { bytes: changed, orientation: exifOrientation(first.block) };
}

function exifBlocks(bytes) {
  if (isAt(bytes, 0, [0xff, 0xd8, 0xff])) return jpegBlocks(bytes);
  const isWebp = isAt(bytes, 0, [0x52, 0x49, 0x46, 0x46]) && isAt(bytes, 8, [0x57, 0x45, 0x42, 0x50]);
  return isWebp ? webpBlocks(bytes) : [];
}

/** Return what the APP1 segments before the pixels of a JPEG hold, and where each says that it is EXIF. */
function jpegBlocks(bytes) {
  const found = [];
  for (let place = 2; place + 4 <= bytes.length && bytes[place] === 0xff && bytes[place + 1] !== 0xda; ) {
    if (bytes[place + 1] === 0xff) {
      place++;  // padding
      continue;
    }
    const end = place + 2 + ((bytes[place + 2] << 8) | bytes[place + 3]);
    if (bytes[place + 1] === 0xe1 && isAt(bytes, place + 4, [...EXIF, 0, 0])) {
      found.push({ name: place + 4, block: bytes.subarray(place + 10, end) });
    }
    place = end;
  }
  return found;
}

function webpBlocks(bytes) {
  const found = [], view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let place = 12; place + 8 <= bytes.length; ) {
    const length = view.getUint32(place + 4, true);
    if (isAt(bytes, place, [0x45, 0x58, 0x49, 0x46])) {
      found.push({ name: place, block: bytes.subarray(place + 8, place + 8 + length) });
    }
    place += 8 + length + (length & 1);
  }
  return found;
}

function isAt(bytes, place, values) {
  return values.every((value, i) => bytes[place + i] === value);
}
