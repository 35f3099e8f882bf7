// The field that takes a picture: chosen, dropped, pasted, or carried over from another view.

import { byId, whole } from "/web/dom.js";
import { fromFile } from "/web/pictures.js";

export class Picker {
  // place: an empty element; onChange is called with each new picture.
  constructor(place, onChange = () => {}) {
    place.append(byId("picker").content.cloneNode(true));
    this.picture = null;
    this._onChange = onChange;
    this._image = place.querySelector("img");
    this._hint = place.querySelector(".hint");
    this._said = place.querySelector(".picked");
    this._zone = place.querySelector(".drop");
    this._input = place.querySelector("input");
    this._input.addEventListener("change", () => {
      this.take(this._input.files[0]);
      this._input.value = ""; // the same file may be chosen once more
    });
    for (const type of ["dragenter", "dragover"]) {
      this._zone.addEventListener(type, () => this._zone.classList.add("over"));
    }
    for (const type of ["dragleave", "drop"]) {
      this._zone.addEventListener(type, () => this._zone.classList.remove("over"));
    }
  }

  // A file of a person; nothing for none.
  async take(file) {
    if (!file) {
      return;
    }
    try {
      this.set(await fromFile(file));
    } catch (error) {
      this.set(null);
      this._said.textContent = error.message;
    }
  }

  // null: no picture
  set(picture) {
    this.picture = picture;
    this._image.hidden = !picture;
    this._hint.hidden = Boolean(picture);
    if (picture) {
      this._image.src = picture.url;
      this._image.alt = picture.name || "The chosen picture";
      const facts = [`${picture.width} x ${picture.height}`, `${whole(picture.blob.size)} bytes`];
      this._said.textContent = [...facts, picture.note].filter(Boolean).join(", ");
    } else {
      this._image.removeAttribute("src");
      this._said.textContent = "";
    }
    this._onChange(picture);
  }

  // Ask for a picture where there is none. Returns whether there is one.
  demand() {
    if (!this.picture) {
      this._said.textContent = "Give a picture first.";
      this._input.focus();
    }
    return Boolean(this.picture);
  }
}

// What is dropped or pasted anywhere goes to the picker of the view that is shown.
export function takeFromPage(current) {
  for (const type of ["dragover", "drop"]) {
    document.addEventListener(type, (event) => event.preventDefault());
  }
  document.addEventListener("drop", (event) => current()?.take(event.dataTransfer.files[0]));
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) {
      event.preventDefault();
      current()?.take(file);
    }
  });
}
