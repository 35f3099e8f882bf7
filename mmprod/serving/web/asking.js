// One view's form and the requests it makes: a new one ends the one before, each can be stopped,
// errors are told.

import { showAnswer, showProblem } from "/web/answer.js";

// work(parts, signal) is done when the form is sent; it returns the reply that it shows, or nothing
// when it asked for something else first. Returns a function that sends the form.
export function onAsk(view, work) {
  const form = view.querySelector("form");
  const stop = form.querySelector("button.stop");
  const parts = partsOf(view);
  let running = null;

  async function ask() {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    show(true);
    parts.said.textContent = "Asking";
    parts.answer.replaceChildren();
    try {
      const reply = await work(parts, mine.signal);
      if (running === mine) {
        finish(parts, reply);
      }
    } catch (error) {
      if (running === mine) {
        fail(parts, error, ask);
      }
    }
    if (running === mine) {
      running = null;
      show(false);
    }
  }

  function show(busy) {
    view.setAttribute("aria-busy", String(busy));
    stop.hidden = !busy;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  stop.addEventListener("click", () => running?.abort());
  return () => (form.reportValidity() ? ask() : undefined);
}

// Where a view shows what it has to say.
export function partsOf(view) {
  const names = ["empty", "said", "shown", "answer"];
  return Object.fromEntries(names.map((name) => [name, view.querySelector(`.${name}`)]));
}

function finish(parts, reply) {
  if (!reply) {
    parts.said.textContent = "";
    return;
  }
  parts.empty.hidden = true;
  showAnswer(parts.answer, reply);
}

function fail(parts, error, again) {
  if (error.name === "AbortError") {
    parts.said.textContent = "Stopped.";
    return;
  }
  parts.empty.hidden = true;
  showProblem(parts.said, error, again);
}
