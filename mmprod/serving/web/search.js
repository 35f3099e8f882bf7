// Words, or a picture -> pictures of the index that fit.

import { onAsk } from "/web/asking.js";
import { byId, make, plural } from "/web/dom.js";
import { showPictures } from "/web/gallery.js";
import { fromBytes } from "/web/pictures.js";
import { bytes, infer, int32, text } from "/web/protocol.js";

// Returns a function for the picker to call with each new picture.
export function startSearch(server, pickerOf) {
  const words = byId("search-text");

  async function search(parts, signal) {
    const query = words.value.trim();
    if (!query && !pickerOf().demand()) {
      return null;
    }
    const inputs = [
      query ? text("text", query) : bytes("picture", await pickerOf().picture.bytes()),
      int32("count", Number(byId("search-count").value)),
    ];
    const reply = await infer("search", inputs, signal);
    const { keys, scores, pictures } = reply.outputs;
    const names = keys.map((key) => new TextDecoder().decode(key));
    const found = await Promise.all(pictures.map((file, index) => hit(file, names[index])));
    const captions = names.map((name, index) => about(name, scores[index]));
    parts.said.textContent = `${plural(names.length, "hit")}.`;
    show(parts.shown, found, captions, server.views);
    return reply;
  }

  onAsk(byId("search"), search);
  words.addEventListener("input", () => words.value && pickerOf().set(null));
  return (picture) => picture && (words.value = "");
}

// Pictures where the index keeps any, else the list of keys.
function show(node, found, captions, views) {
  if (found.every(Boolean)) {
    showPictures(node, found, captions, views);
  } else {
    const items = captions.map((caption) => make("li", {}, caption));
    node.replaceChildren(make("ol", { className: "hits" }, ...items));
  }
}

function hit(file, name) {
  return file.length ? fromBytes(file, name) : null;
}

function about(name, score) {
  const value = make("span", { className: "note" }, `fits ${score.toFixed(3)}`);
  return make("div", { className: "hit" }, name, " ", value);
}
