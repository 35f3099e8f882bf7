// A picture to brush over. What was brushed becomes a mask: white is drawn anew.

import { toPng } from "/web/pictures.js";

const SIDE = 512; // pixels of the canvas, whatever the picture has

export class Brush {
  // onChange is called after each stroke, undo and new picture.
  constructor(canvas, sizeOf, onChange) {
    this._canvas = canvas;
    this._sizeOf = sizeOf;
    this._onChange = onChange;
    this._strokes = []; // {size, points: [[x, y], ...]}
    this._image = null;
    this._cursor = null; // of the keyboard, or null
    this._layer = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    canvas.addEventListener("pointerdown", (event) => this._begin(event));
    canvas.addEventListener("pointermove", (event) => this._go(event));
    for (const type of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(type, () => this._end());
    }
    canvas.addEventListener("keydown", (event) => this._key(event));
    canvas.addEventListener("blur", () => this._move(null));
  }

  get empty() {
    return this._strokes.length === 0;
  }

  // A square bitmap, or null
  setImage(bitmap) {
    this._image?.close();
    this._image = bitmap;
    this.clear();
  }

  clear() {
    this._strokes = [];
    this._changed();
  }

  undo() {
    this._strokes.pop();
    this._changed();
  }

  // A PNG, white on black
  mask() {
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIDE, SIDE);
    this._paint(context, "#fff");
    return toPng(canvas);
  }

  _begin(event) {
    if (event.button !== 0) {
      return;
    }
    this._canvas.setPointerCapture(event.pointerId);
    this._drawing = true;
    this._cursor = null;
    this._strokes.push({ size: this._sizeOf(), points: [this._place(event)] });
    this._draw();
  }

  _go(event) {
    if (this._drawing) {
      this._strokes.at(-1).points.push(this._place(event));
      this._draw();
    }
  }

  _end() {
    if (this._drawing) {
      this._drawing = false;
      this._changed();
    }
  }

  _key(event) {
    const step = this._sizeOf() / 2;
    const [x, y] = this._cursor ?? [SIDE / 2, SIDE / 2];
    const moves = {
      ArrowLeft: [x - step, y],
      ArrowRight: [x + step, y],
      ArrowUp: [x, y - step],
      ArrowDown: [x, y + step],
    };
    if (event.key in moves) {
      this._move(moves[event.key].map((value) => Math.min(SIDE, Math.max(0, value))));
    } else if (event.key === " ") {
      this._strokes.push({ size: this._sizeOf(), points: [[x, y]] });
      this._cursor = [x, y];
      this._changed();
    } else if (event.key === "Backspace") {
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
  }

  _move(place) {
    this._cursor = place;
    this._draw();
  }

  _changed() {
    this._draw();
    this._onChange();
  }

  _draw() {
    const context = this._canvas.getContext("2d");
    context.clearRect(0, 0, SIDE, SIDE);
    if (this._image) {
      context.imageSmoothingQuality = "high";
      context.drawImage(this._image, 0, 0, SIDE, SIDE);
    }
    const layer = this._layer.getContext("2d");
    layer.clearRect(0, 0, SIDE, SIDE);
    this._paint(layer, "#2f5fd0");
    context.globalAlpha = 0.6; // of all strokes together: where they cross, too
    context.drawImage(this._layer, 0, 0);
    context.globalAlpha = 1;
    if (this._cursor) {
      ring(context, this._cursor, this._sizeOf() / 2);
    }
  }

  _paint(context, colour) {
    Object.assign(context, { strokeStyle: colour, lineCap: "round", lineJoin: "round" });
    for (const { size, points } of this._strokes) {
      context.lineWidth = size;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) {
        context.lineTo(...point);
      }
      context.stroke();
    }
  }

  _place(event) {
    const box = this._canvas.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return share.map((value) => value * SIDE);
  }
}

// Seen on light and on dark.
function ring(context, [x, y], radius) {
  for (const [width, colour] of [[6, "#fff"], [3, "#000"]]) {
    Object.assign(context, { lineWidth: width, strokeStyle: colour });
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }
}
