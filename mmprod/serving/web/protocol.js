// The Open Inference Protocol v2 with tensors as bytes: the one place that speaks to the server.
// A body is JSON, then the bytes of the tensors; numbers are little-endian, and each element of
// BYTES has its length before it, in 4 bytes.

const JSON_LENGTH = "Inference-Header-Content-Length";
const UTF8 = new TextEncoder();

let key = ""; // never stored: gone with the page

export function useKey(text) {
  key = text;
}

// Why there is no answer. status 0: the server was not reached; retryAfter: seconds, or 0.
export class Problem extends Error {
  constructor(status, message, retryAfter = 0, id = "") {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.id = id;
  }
}

// Inputs of a request, by datatype; each has one element.
export function text(name, value) {
  return bytes(name, UTF8.encode(value));
}

export function bytes(name, value) {
  const data = new Uint8Array(4 + value.length);
  new DataView(data.buffer).setUint32(0, value.length, true);
  data.set(value, 4);
  return { name, datatype: "BYTES", data };
}

export function int32(name, value) {
  return number(name, "INT32", 4, (view) => view.setInt32(0, value, true));
}

export function int64(name, value) {
  return number(name, "INT64", 8, (view) => view.setBigInt64(0, BigInt(value), true));
}

export function fp32(name, value) {
  return number(name, "FP32", 4, (view) => view.setFloat32(0, value, true));
}

function number(name, datatype, size, write) {
  const data = new Uint8Array(size);
  write(new DataView(data.buffer));
  return { name, datatype, data };
}

// {outputs: {name: elements}, parameters, id, roundTripMs}. Throws Problem, or AbortError.
export async function infer(model, inputs, signal) {
  const started = performance.now();
  const sent = encode(inputs);
  const headers = { "Content-Type": "application/octet-stream", [JSON_LENGTH]: sent.jsonLength };
  const path = `/v2/models/${model}/infer`;
  const response = await ask(path, { method: "POST", body: sent.body, headers, signal });
  const answer = decode(await response.arrayBuffer(), response.headers.get(JSON_LENGTH));
  return { ...answer, roundTripMs: performance.now() - started };
}

// A document of the server. Throws Problem.
export async function get(path) {
  return (await ask(path, {})).json();
}

export function encode(inputs) {
  const head = {
    inputs: inputs.map(({ name, datatype, data }) => {
      return { name, datatype, shape: [1], parameters: { binary_data_size: data.length } };
    }),
    parameters: { binary_data_output: true },
  };
  const json = UTF8.encode(JSON.stringify(head));
  return { body: new Blob([json, ...inputs.map((input) => input.data)]), jsonLength: json.length };
}

export function decode(buffer, jsonLength) {
  const end = jsonLength === null ? buffer.byteLength : Number(jsonLength);
  const message = JSON.parse(new TextDecoder().decode(buffer.slice(0, end)));
  const outputs = {};
  let at = end;
  for (const { name, datatype, parameters } of message.outputs) {
    const size = parameters.binary_data_size;
    outputs[name] = ELEMENTS[datatype](new DataView(buffer, at, size));
    at += size;
  }
  return { outputs, parameters: message.parameters, id: message.id };
}

const ELEMENTS = {
  BYTES(view) {
    const elements = [];
    for (let at = 0; at < view.byteLength; ) {
      const length = view.getUint32(at, true);
      elements.push(new Uint8Array(view.buffer, view.byteOffset + at + 4, length));
      at += 4 + length;
    }
    return elements;
  },
  FP32(view) {
    const elements = [];
    for (let at = 0; at < view.byteLength; at += 4) {
      elements.push(view.getFloat32(at, true));
    }
    return elements;
  },
};

async function ask(path, options) {
  const headers = { ...options.headers };
  if (key) {
    headers.Authorization = `Bearer ${key}`;
  }
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Problem(0, "The server cannot be reached.");
  }
  if (!response.ok) {
    throw await problem(response);
  }
  return response;
}

async function problem(response) {
  const { status, headers } = response;
  let message = `The server answered ${status}.`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // something between here and the server answered in its own words
  }
  const found = new Problem(
    status, message, Number(headers.get("Retry-After")) || 0, headers.get("X-Request-Id") ?? "",
  );
  document.dispatchEvent(new CustomEvent("refused", { detail: found }));
  return found;
}
