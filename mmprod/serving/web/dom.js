// Making and finding elements.

export function byId(id) {
  return document.getElementById(id);
}

// make("a", {href: "#"}, "text", node ...)
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    element[name] = value;
  }
  element.append(...children);
  return element;
}

export function button(label, onClick) {
  const element = make("button", { type: "button" }, label);
  element.addEventListener("click", onClick);
  return element;
}

// 12,345
export function whole(number) {
  return Math.round(number).toLocaleString("en");
}

export function plural(count, word) {
  return `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
}
