// Requests to the server, with the key of this tab, and streams that can be rejoined.

const KEY = "tokenswift-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// The answer to a request. Throws ApiError for a refusal (status 0: no connection).
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const given = { ...headers };
  if (key.get()) given.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) given["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers: given, signal, cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  if (answer.ok) return answer;
  const data = await answer.json().catch(() => null);
  throw new ApiError(answer.status, data?.error?.message ?? `The server answers with status ${answer.status}.`);
}

export const get = async (path, signal) => (await send(path, { signal })).json();
export const post = async (path, body = {}) => (await send(path, { method: "POST", body })).json();

// The events of a run after number `after`: pairs of number and data. It ends when the server ends the stream.
export async function* events(id, after, signal) {
  const headers = after < 0 ? {} : { "last-event-id": String(after) };
  const answer = await send(`/v1/runs/${id}/events`, { headers, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      waiting += value;
      let start = 0;
      for (let end; (end = waiting.indexOf("\n\n", start)) >= 0; start = end + 2) {
        const event = parsed(waiting.slice(start, end));
        if (event) yield event;
      }
      waiting = waiting.slice(start);
    }
  } finally {
    reader.cancel().catch(() => {}); // a stream that broke has nothing to cancel
  }
}

function parsed(frame) {
  let number = null, data = null;
  for (const line of frame.split("\n")) {
    if (line.startsWith("id: ")) number = Number(line.slice(4));
    else if (line.startsWith("data: ")) data = line.slice(6);
  }
  return data === null ? null : [number, JSON.parse(data)];
}
