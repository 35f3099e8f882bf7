// Prompt -> pictures, with an address that gives the same pictures again.

import { onAsk } from "/web/asking.js";
import { byId, plural } from "/web/dom.js";
import { showPictures } from "/web/gallery.js";
import { fromBytes } from "/web/pictures.js";
import { infer, int32, int64, text } from "/web/protocol.js";
import { setAddress } from "/web/tabs.js";

const HASH_LENGTH = 12; // of a file's hash in an address

// Returns a function that fills in the values of an address and draws, unless that is shown already.
export function startDraw(server) {
  const [prompt, count, seed] = ["prompt", "count", "seed"].map((name) => byId(`draw-${name}`));
  const keep = byId("draw-keep");
  let linked = ""; // the file that the address was made with
  let shown = ""; // the values of the pictures that are shown

  async function draw(parts, signal) {
    const words = prompt.value.trim();
    const inputs = [text("prompt", words), int32("count", Number(count.value))];
    if (seed.value) {
      inputs.push(int64("seed", seed.value));
    }
    const reply = await infer("text_to_image", inputs, signal);
    const used = seed.value || String(reply.parameters.seed);
    const file = reply.parameters.sha256.slice(0, HASH_LENGTH);
    const made = await Promise.all(reply.outputs.pictures.map((png) => fromBytes(png, words)));
    showPictures(parts.shown, made, [], server.views);
    const remark = linked && linked !== file ? " The link was made with another file." : "";
    parts.said.textContent = `${plural(made.length, "picture")}, seed ${used}.${remark}`;
    const values = new URLSearchParams({ prompt: words, count: count.value, seed: used, file });
    setAddress("draw", values);
    [linked, shown] = ["", String(values)];
    keep.onclick = () => (seed.value = used);
    byId("draw-again").hidden = false;
    return reply;
  }

  const send = onAsk(byId("draw"), draw);
  startCopying(byId("draw-link"));
  return (values) => {
    if (values.get("prompt") && String(values) !== shown) {
      prompt.value = values.get("prompt");
      count.value = values.get("count") ?? count.value;
      seed.value = values.get("seed") ?? "";
      linked = values.get("file") ?? "";
      send();
    }
  };
}

// What the bundle fixed for all pictures.
export function tellSampler({ guidance, steps }) {
  byId("draw-facts").textContent =
    `Guidance ${guidance}, ${plural(steps, "step")}, as the bundle was exported.`;
}

function startCopying(button) {
  button.hidden = !navigator.clipboard; // only on safe origins
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy link"), 2000);
  });
}
