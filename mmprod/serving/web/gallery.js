// Pictures of answers, each with what may be done with it next.

import { button, make } from "/web/dom.js";

const NEXT = { describe: "Describe", edit: "Edit", search: "Find alike", compress: "Compress" };

// pictures: of pictures.js; captions: nodes below them. served: names of the views that can be used.
export function showPictures(node, pictures, captions, served) {
  const figures = pictures.map((picture, index) => {
    const image = make("img", { src: picture.url, alt: picture.name });
    const below = make("figcaption", {}, captions[index] ?? "", actions(picture, served));
    return make("figure", {}, image, below);
  });
  node.replaceChildren(make("div", { className: "gallery" }, ...figures));
}

function actions(picture, served) {
  const row = make("div", { className: "actions" }, saveLink(picture.url, fileName(picture.name)));
  for (const [view, label] of Object.entries(NEXT)) {
    if (served.has(view)) {
      const detail = { view, picture };
      const carry = () => document.dispatchEvent(new CustomEvent("carry", { detail }));
      row.append(button(label, carry));
    }
  }
  return row;
}

export function saveLink(url, download) {
  return make("a", { href: url, download }, "Save");
}

function fileName(text) {
  const stem = text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
  return `${stem || "picture"}.png`;
}
