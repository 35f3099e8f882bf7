// Picture and brush, or picture and words -> pictures with parts drawn anew.

import { onAsk } from "/web/asking.js";
import { Brush } from "/web/brush.js";
import { byId, plural } from "/web/dom.js";
import { showPictures } from "/web/gallery.js";
import { fromBytes, squareOf } from "/web/pictures.js";
import { bytes, fp32, infer, int32, int64, text } from "/web/protocol.js";

// Returns a function for the picker to call with each new picture.
export function startEdit(server, pickerOf) {
  const names = ["prompt", "count", "seed", "strength", "share"];
  const [prompt, count, seed, strength, share] = names.map((name) => byId(`edit-${name}`));
  const brush = new Brush(byId("brush-canvas"), () => Number(byId("brush-size").value), changed);
  let square = null; // promise of what is sent, or null

  function changed() {
    byId("brush-undo").disabled = byId("brush-clear").disabled = brush.empty;
    byId("brush-state").textContent = brush.empty ? "Nothing is brushed." : "A part is brushed.";
    byId("edit-strength-row").hidden = !brush.empty;
    prompt.required = brush.empty;
  }

  async function edit(parts, signal) {
    if (!pickerOf().demand()) {
      return null;
    }
    const words = prompt.value.trim();
    const given = await square;
    const inputs = [bytes("picture", await given.bytes()), int32("count", Number(count.value))];
    if (words) {
      inputs.push(text("prompt", words));
    }
    if (brush.empty) {
      inputs.push(fp32("strength", Number(strength.value) / 100));
    } else {
      const mask = await brush.mask();
      inputs.push(bytes("mask", new Uint8Array(await mask.arrayBuffer())));
    }
    if (seed.value) {
      inputs.push(int64("seed", seed.value));
    }
    const reply = await infer("edit", inputs, signal);
    const name = words || `edited ${given.name}`;
    const made = await Promise.all(reply.outputs.pictures.map((png) => fromBytes(png, name)));
    showPictures(parts.shown, made, [], server.views);
    const { places, places_drawn: drawn } = reply.parameters;
    const used = seed.value || reply.parameters.seed;
    parts.said.textContent =
      `${plural(made.length, "picture")}, ${drawn} of ${places} places drawn anew, seed ${used}.`;
    return reply;
  }

  onAsk(byId("edit"), edit);
  byId("brush-undo").addEventListener("click", () => brush.undo());
  byId("brush-clear").addEventListener("click", () => brush.clear());
  strength.addEventListener("input", () => (share.value = `${strength.value} %`));
  changed();
  return async (picture) => {
    byId("brush").hidden = !picture;
    square = picture && squareOf(picture);
    const mine = square;
    const bitmap = picture && (await (await mine).bitmap());
    if (mine === square) {
      brush.setImage(bitmap);
    }
  };
}
