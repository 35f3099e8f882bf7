// Picture -> caption.

import { onAsk } from "/web/asking.js";
import { byId, button, make } from "/web/dom.js";
import { infer, bytes, int64 } from "/web/protocol.js";
import { go } from "/web/tabs.js";

export function startDescribe(server, picker) {
  const seed = byId("describe-seed");

  async function describe(parts, signal) {
    if (!picker.demand()) {
      return null;
    }
    const inputs = [bytes("picture", await picker.picture.bytes())];
    if (seed.value) {
      inputs.push(int64("seed", seed.value));
    }
    const reply = await infer("image_to_text", inputs, signal);
    const caption = new TextDecoder().decode(reply.outputs.text[0]);
    parts.said.textContent = `Written with seed ${seed.value || reply.parameters.seed}:`;
    const quote = make("blockquote", {}, caption || "(no words)");
    parts.shown.replaceChildren(quote);
    if (caption && server.views.has("draw")) {
      parts.shown.append(button("Draw this", () => drawThis(caption)));
    }
    return reply;
  }

  onAsk(byId("describe"), describe);
}

function drawThis(caption) {
  byId("draw-prompt").value = caption;
  go("draw");
  byId("draw-prompt").focus();
}
