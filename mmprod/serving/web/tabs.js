// The views as tabs; which one is shown stands in the address, after the #.

import { byId } from "/web/dom.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];
const viewOf = (tab) => tab.getAttribute("aria-controls");
const addresses = new Map(); // what stands after the # for a view, where that is more than its name

// "draw"
export function currentView() {
  return viewOf(tabs.find((tab) => tab.getAttribute("aria-selected") === "true") ?? tabs[0]);
}

export function showView(name) {
  const found = tabs.some((tab) => viewOf(tab) === name) ? name : viewOf(tabs[0]);
  for (const tab of tabs) {
    const chosen = viewOf(tab) === found;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(viewOf(tab)).hidden = !chosen;
  }
}

// onAddress is called with the name and the values of the address when it changes.
export function startTabs(onAddress) {
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => go(viewOf(tab)));
    tab.addEventListener("keydown", (event) => {
      const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 }[event.key];
      if (next !== undefined) {
        event.preventDefault();
        const chosen = tabs.at(next % tabs.length);
        go(viewOf(chosen));
        chosen.focus();
      }
    });
  }
  addEventListener("popstate", () => {
    const [name, values] = readAddress();
    showView(name);
    onAddress(name, values);
  });
  showView(readAddress()[0]);
}

// [name of the view, values]
export function readAddress() {
  const [name, values] = location.hash.slice(1).split("?");
  return [name, new URLSearchParams(values)];
}

// What a view shows can be had again at this address.
export function setAddress(name, values) {
  addresses.set(name, `${name}?${values}`);
  if (currentView() === name) {
    history.replaceState(null, "", `#${addresses.get(name)}`);
  }
}

export function go(name) {
  history.pushState(null, "", `#${addresses.get(name) ?? name}`);
  showView(name);
}
