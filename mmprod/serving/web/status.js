// Whether the server is there and takes requests.

import { byId } from "/web/dom.js";

const EVERY_MS = 5000;
const WORDS = {
  ready: "ready",
  draining: "stopping: takes no new requests",
  gone: "cannot be reached",
};

// Asks now and then while the page is seen.
export function watchServer() {
  check();
  setInterval(() => document.hidden || check(), EVERY_MS);
}

async function check() {
  const node = byId("server");
  const state = await ask();
  if (node.dataset.state !== state) {
    node.dataset.state = state;
    node.textContent = WORDS[state];
  }
}

async function ask() {
  try {
    const response = await fetch("/v2/health/ready", { cache: "no-store", credentials: "omit" });
    return response.ok ? "ready" : "draining";
  } catch {
    return "gone";
  }
}
