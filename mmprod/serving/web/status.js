// Whether the server is there and takes requests.

import { byId } from "/web/dom.js";

const EVERY_MS = 5000;
const WORDS = {
  ready: "ready",
  draining: "stopping: takes no new requests",
  gone: "cannot be reached",
};

// Asks now and then while the page is seen. onReady is called when the server has become ready.
export function watchServer(onReady) {
  check(onReady);
  setInterval(() => document.hidden || check(onReady), EVERY_MS);
}

async function check(onReady) {
  const node = byId("server");
  const state = await ask();
  if (node.dataset.state !== state) {
    node.dataset.state = state;
    node.textContent = WORDS[state];
    if (state === "ready") {
      onReady();
    }
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
