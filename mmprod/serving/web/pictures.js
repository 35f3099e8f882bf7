// Pictures as files: reading what a person gives, scaling, cropping, comparing.

const TAKEN = ["image/png", "image/jpeg", "image/webp"];
const MOST_PIXELS = 4_194_304; // what a server takes, unless it was told another number
const MOST_BYTES = 12 * 2 ** 20; // below what a server takes in one request
export const PSNR_CAP = 100; // dB; of equal pictures

// A picture file with its size. note: what was done to it before it is sent.
export class Picture {
  constructor(blob, width, height, name, note = "") {
    Object.assign(this, { blob, width, height, name, note });
  }

  // To be shown at; made when first asked for.
  get url() {
    this._url ??= URL.createObjectURL(this.blob);
    return this._url;
  }

  async bytes() {
    return new Uint8Array(await this.blob.arrayBuffer());
  }

  // The caller closes it.
  bitmap() {
    return read(this.blob);
  }
}

// A PNG that the server sent.
export async function fromBytes(bytes, name) {
  return decoded(new Blob([bytes], { type: "image/png" }), name);
}

// A file of a person. What no server takes is made a PNG, smaller where it has to be.
export async function fromFile(file) {
  let bitmap;
  try {
    bitmap = await read(file);
  } catch {
    throw new Error(`${file.name || "What was given"} is no picture that this browser can read.`);
  }
  const { width, height } = bitmap;
  const share = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const small = share === 1 && file.size <= MOST_BYTES;
  if (small && TAKEN.includes(file.type)) {
    bitmap.close();
    return new Picture(file, width, height, file.name);
  }
  const w = Math.max(1, Math.floor(width * share));
  const h = Math.max(1, Math.floor(height * share));
  const blob = await toPng(drawn(bitmap, w, h));
  bitmap.close();
  const note = share === 1 ? "made a PNG" : `scaled down from ${width} x ${height}`;
  return new Picture(blob, w, h, file.name, note);
}

// Colour profiles are left alone: as the server does.
function read(blob) {
  return createImageBitmap(blob, { colorSpaceConversion: "none" });
}

async function decoded(blob, name) {
  const bitmap = await read(blob);
  const picture = new Picture(blob, bitmap.width, bitmap.height, name);
  bitmap.close();
  return picture;
}

// The square in the middle, which is what the model sees.
export async function squareOf(picture) {
  const bitmap = await picture.bitmap();
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = emptyCanvas(side, side);
  const x = Math.floor((bitmap.width - side) / 2);
  const y = Math.floor((bitmap.height - side) / 2);
  canvas.getContext("2d").drawImage(bitmap, -x, -y);
  bitmap.close();
  return new Picture(await toPng(canvas), side, side, picture.name);
}

export async function scaled(picture, width, height) {
  const bitmap = await picture.bitmap();
  const blob = await toPng(drawn(bitmap, width, height));
  bitmap.close();
  return new Picture(blob, width, height, picture.name);
}

// Peak signal-to-noise ratio in dB of a picture beside another, which is scaled to its size.
export async function psnr(wanted, found) {
  const [a, b] = await Promise.all([pixels(wanted, wanted), pixels(found, wanted)]);
  let sum = 0;
  for (let at = 0; at < a.length; at += 4) {
    for (let channel = 0; channel < 3; channel += 1) {
      sum += (a[at + channel] - b[at + channel]) ** 2;
    }
  }
  const mean = sum / (0.75 * a.length);
  return mean ? Math.min(PSNR_CAP, 10 * Math.log10(255 ** 2 / mean)) : PSNR_CAP;
}

async function pixels(picture, { width, height }) {
  const bitmap = await picture.bitmap();
  const canvas = drawn(bitmap, width, height);
  bitmap.close();
  return canvas.getContext("2d").getImageData(0, 0, width, height).data;
}

export function toPng(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// Scaled, transparency over white: as the server does.
function drawn(bitmap, width, height) {
  const canvas = emptyCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

function emptyCanvas(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}
