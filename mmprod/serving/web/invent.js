// Pictures with their captions, both out of nothing.

import { onAsk } from "/web/asking.js";
import { byId, make, plural } from "/web/dom.js";
import { showPictures } from "/web/gallery.js";
import { fromBytes } from "/web/pictures.js";
import { infer, int32, int64 } from "/web/protocol.js";

export function startInvent(server) {
  const [count, seed] = ["count", "seed"].map((name) => byId(`invent-${name}`));

  async function invent(parts, signal) {
    const inputs = [int32("count", Number(count.value))];
    if (seed.value) {
      inputs.push(int64("seed", seed.value));
    }
    const reply = await infer("joint", inputs, signal);
    const { pictures, texts } = reply.outputs;
    const captions = texts.map((bytes) => new TextDecoder().decode(bytes) || "(no words)");
    const made = await Promise.all(pictures.map((png, index) => fromBytes(png, captions[index])));
    const below = captions.map((caption) => make("p", { className: "caption" }, caption));
    showPictures(parts.shown, made, below, server.views);
    const used = seed.value || reply.parameters.seed;
    parts.said.textContent = `${plural(made.length, "picture")}, seed ${used}.`;
    return reply;
  }

  onAsk(byId("invent"), invent);
}
