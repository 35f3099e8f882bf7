// The page put together: what the server offers, the views, the key.

import { startCompress } from "/web/compress.js";
import { startDescribe } from "/web/describe.js";
import { byId } from "/web/dom.js";
import { startDraw, tellSampler } from "/web/draw.js";
import { startEdit } from "/web/edit.js";
import { startInvent } from "/web/invent.js";
import { Picker, takeFromPage } from "/web/picker.js";
import { get, useKey } from "/web/protocol.js";
import { startSearch } from "/web/search.js";
import { watchServer } from "/web/status.js";
import { currentView, go, readAddress, startTabs } from "/web/tabs.js";

const server = { views: new Set() }; // the views whose models it has
const COUNTED = ["draw", "invent", "edit"]; // the views that draw as many pictures as are wanted
const pickers = {};
const panels = [...document.querySelectorAll('[role="tabpanel"]')];

function addPicker(view, onChange) {
  pickers[view] = new Picker(byId(view).querySelector(".pick"), onChange);
}

const drawAddress = startDraw(server);
addPicker("describe");
startDescribe(server, pickers.describe);
startInvent(server);
addPicker("edit", startEdit(server, () => pickers.edit));
addPicker("search", startSearch(server, () => pickers.search));
addPicker("compress", startCompress(server, () => pickers.compress));
takeFromPage(() => pickers[currentView()]);

document.addEventListener("carry", ({ detail }) => {
  pickers[detail.view].set(detail.picture);
  go(detail.view);
  byId(detail.view).focus();
});
document.addEventListener("refused", ({ detail }) => {
  if (detail.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});

// Which views can be used; again when the server has come back, and after a key.
async function start() {
  let models;
  try {
    ({ models } = await get("/v2/models"));
  } catch {
    return; // a key is asked for, or the state above will say that the server is gone
  }
  for (const panel of panels) {
    const served = models.includes(panel.dataset.model);
    panel.querySelector(".missing").hidden = served;
    panel.querySelector("form").hidden = panel.querySelector(".results").hidden = !served;
    if (served) {
      server.views.add(panel.id);
    }
  }
  await Promise.all(COUNTED.filter((view) => server.views.has(view)).map(tellLimits));
  drawFrom(...readAddress());
}

function drawFrom(view, values) {
  if (view === "draw" && server.views.has("draw")) {
    drawAddress(values);
  }
}

// How many pictures the view's model draws at once, and what its bundle fixed.
async function tellLimits(view) {
  const { model } = byId(view).dataset;
  const [graph, about] = await Promise.all([
    get(`/v2/models/graph.${model}`), get(`/v2/models/${model}`),
  ]);
  const count = byId(`${view}-count`);
  count.max = graph.parameters.max_batch;
  count.value = Math.min(count.value, count.max);
  if (view === "draw") {
    tellSampler(about.parameters);
  }
}

startTabs(drawFrom);
watchServer(start);
