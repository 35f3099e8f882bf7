// What is said about an answer: which engine gave it, in what time; or why there is none.

import { button, make, whole } from "/web/dom.js";

// reply: of protocol.infer
export function showAnswer(node, reply) {
  const { parameters, roundTripMs, id } = reply;
  const graphs = parameters.graph.split(",");
  const files = parameters.sha256.split(",");
  const facts = [
    ["Runner", parameters.runner],
    ["Precision", parameters.precision.replaceAll(",", ", ")],
    ["In the queue", milliseconds(parameters.queue_ms)],
    ["Computing", milliseconds(parameters.compute_ms)],
    ["Round trip", milliseconds(roundTripMs)],
  ];
  const short = make("dl", {});
  for (const [name, value] of facts) {
    short.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  }
  const engines = graphs.map((graph, index) => {
    const hash = files[index];
    return make("li", {}, `${graph} `, make("code", { title: hash }, hash.slice(0, 12)));
  });
  const request = make("p", {}, "Request ", make("code", {}, id));
  const files_ = make("div", { className: "files" }, make("ul", {}, ...engines), request);
  node.replaceChildren(make("h3", {}, "Answered by"), short, files_);
}

const ADVICE = {
  0: "Is it still running? Try again when it is.",
  401: "Enter the key at the top of the page, then try again.",
  403: "Open this page under the address that the server was started with.",
  408: "Try again, or choose a smaller picture.",
  413: "Choose a smaller picture.",
  429: "Others are being served.",
  503: "The server is stopping or has all it can do.",
  504: "Ask for less at once, or try again.",
};
const AGAIN = [0, 401, 408, 429, 500, 502, 503, 504];

// problem: of protocol.js, or any Error. again: a function that asks once more.
export function showProblem(node, problem, again) {
  const { status, message, retryAfter = 0, id } = problem;
  const words = message.charAt(0).toUpperCase() + message.slice(1);
  const box = make("div", { className: "problem" });
  box.setAttribute("role", "alert");
  box.append(make("p", {}, words.endsWith(".") ? words : `${words}.`));
  if (ADVICE[status]) {
    box.append(make("p", {}, ADVICE[status]));
  }
  if (id && status >= 500) {
    box.append(make("p", {}, "Request ", make("code", {}, id)));
  }
  if (AGAIN.includes(status)) {
    box.append(retry(again, retryAfter));
  }
  node.replaceChildren(box);
}

// A button that can be pressed when the time that the server named is over.
function retry(again, seconds) {
  const until = performance.now() + 1000 * seconds;
  const element = button("Try again", again);
  const count = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    element.disabled = left > 0;
    element.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) {
      setTimeout(count, 200);
    }
  };
  count();
  return element;
}

function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : `${whole(value)} ms`;
}
