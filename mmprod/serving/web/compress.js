// Picture -> a small file, beside the original; and such a file -> pictures.

import { onAsk, partsOf } from "/web/asking.js";
import { showAnswer, showProblem } from "/web/answer.js";
import { byId, make, plural, whole } from "/web/dom.js";
import { saveLink, showPictures } from "/web/gallery.js";
import { fromBytes, psnr, scaled } from "/web/pictures.js";
import { bytes, infer } from "/web/protocol.js";

const SHORTEST = 8; // pixels of a side that a server takes

// Returns a function for the picker to call with each new picture.
export function startCompress(server, pickerOf) {
  const scale = byId("compress-size");
  let tried = new Map(); // by scale, of the chosen picture

  async function compress(parts, signal) {
    if (!pickerOf().demand()) {
      return null;
    }
    const { picture } = pickerOf();
    const known = tried; // another picture may be chosen meanwhile
    const percent = Number(scale.value);
    const { reply, again, file } = await roundTrip(picture, percent, signal);
    const pixels = picture.width * picture.height;
    const facts = {
      bytes: file.length, rate: (8 * file.length) / pixels, psnr: await psnr(picture, again),
    };
    known.set(percent, facts);
    parts.said.textContent = told(picture, facts);
    const url = URL.createObjectURL(new Blob([file]));
    const pair = make("div", { className: "pair" }, side(picture, "Original", picture.blob.size));
    pair.append(side(again, "What comes back", file.length, fit(picture)));
    const save = saveLink(url, `${stem(picture.name)}.mmc`);
    save.textContent = `Save the file, ${whole(file.length)} bytes`;
    parts.shown.replaceChildren(pair, make("p", {}, save), table(known));
    return reply;
  }

  const send = onAsk(byId("compress"), compress);
  scale.addEventListener("input", () => (byId("compress-scale").value = `${scale.value} %`));
  scale.addEventListener("change", () => tried.size && send());
  startOpening(server);
  return () => {
    tried = new Map();
  };
}

// The picture scaled down, compressed, and read back by the server: the last says what is in it.
async function roundTrip(picture, percent, signal) {
  const [width, height] = [picture.width, picture.height].map((side) =>
    Math.max(Math.min(side, SHORTEST), Math.round((side * percent) / 100)),
  );
  const sent = percent === 100 ? picture : await scaled(picture, width, height);
  const reply = await infer("compress", [bytes("picture", await sent.bytes())], signal);
  const [file] = reply.outputs.file;
  const restored = await infer("decompress", [bytes("file", file)], signal);
  const again = await fromBytes(restored.outputs.pictures[0], `${stem(picture.name)}, compressed`);
  return { reply, again, file };
}

function startOpening(server) {
  const input = byId("open-file");
  const parts = partsOf(byId("compress"));
  const open = async (file) => {
    try {
      const data = new Uint8Array(await file.arrayBuffer());
      const reply = await infer("decompress", [bytes("file", data)]);
      const found = reply.outputs.pictures;
      const made = await Promise.all(found.map((png) => fromBytes(png, stem(file.name))));
      showPictures(parts.shown, made, [], server.views);
      parts.said.textContent = `${plural(made.length, "picture")} in ${whole(data.length)} bytes.`;
      parts.empty.hidden = true;
      showAnswer(parts.answer, reply);
    } catch (error) {
      showProblem(parts.said, error, () => open(file));
    }
  };
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) {
      open(file);
    }
    input.value = "";
  });
}

function told(picture, { bytes: size, rate, psnr: quality }) {
  const share = picture.blob.size / size;
  return (
    `${plural(size, "byte")}, ${rate.toFixed(3)} bits per pixel, ${quality.toFixed(1)} dB; ` +
    `the original's file is ${share.toFixed(1)} times as large.`
  );
}

function side(picture, label, size, shape = fit(picture)) {
  const image = make("img", { src: picture.url, alt: label, width: shape.width, height: shape.height });
  const caption = make("figcaption", {}, `${label}: ${picture.width} x ${picture.height}, ${whole(size)} bytes`);
  return make("figure", {}, image, caption);
}

// The size to be shown in: both sides of a pair alike.
function fit({ width, height }) {
  const factor = Math.max(1, Math.floor(256 / Math.max(width, height)));
  return { width: width * factor, height: height * factor };
}

function table(tried) {
  const head = ["Scale", "Bytes", "Bits per pixel", "PSNR, dB"];
  const rows = [...tried].sort(([a], [b]) => b - a).map(([percent, facts]) => {
    const values = [`${percent} %`, whole(facts.bytes), facts.rate.toFixed(3), facts.psnr.toFixed(1)];
    return make("tr", {}, ...values.map((value) => make("td", {}, value)));
  });
  const titles = head.map((title) => make("th", { scope: "col" }, title));
  return make(
    "table", {},
    make("caption", {}, "Tried with this picture; bits per pixel and PSNR are of the original's pixels"),
    make("thead", {}, make("tr", {}, ...titles)), make("tbody", {}, ...rows),
  );
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "") || "picture";
}
