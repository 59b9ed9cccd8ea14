// Requests to the server (../app.py): its OpenAI endpoints, and what this page asks besides.

// The phases of a loader that is loading.
export const BUSY = ["starting", "reading", "compiling"];
export const SOFT = -1; // stands for a soft token of a picture
const STREAM = { include_usage: true, continuous_usage_stats: true };
const HEADERS = { "content-type": "application/json", "x-gemma-chat": "1" };

// What the server refused, or that it is not there. `code`: the server's, or "lost".
export class Problem extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

const lost = (error) => new Problem(error.message, "lost");

async function post(path, body, signal) {
  let response;
  try {
    response = await fetch(path, { method: "POST", headers: HEADERS, body: JSON.stringify(body ?? {}), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw lost(error);
  }
  if (response.ok) return response;
  if (response.status === 401) location.reload(); // the browser asks for the password
  const text = await response.text();
  let found = null;
  try {
    found = JSON.parse(text).error;
  } catch {} // not of the server: of a proxy
  const gone = [502, 503, 504].includes(response.status) && !found;
  if (gone) throw new Problem(`${response.status}`, "lost");
  throw new Problem(
    found?.message ?? (typeof found === "string" ? found : text.slice(0, 200)),
    found?.code ?? "refused",
  );
}

export async function getStatus() {
  let response;
  try {
    response = await fetch("status", {
      cache: "no-store",
      headers: { "x-requested-with": "fetch" },
      signal: AbortSignal.timeout(8000),
    });
  } catch (error) {
    throw lost(error);
  }
  if (response.status === 401) location.reload();
  if (!response.ok) throw new Problem(`${response.status}`, "lost");
  return response.json();
}

export const act = async (what, body) => (await post(what, body)).json();
export const seen = async (picture, panAndScan) => (await post("seen", { picture, pan_and_scan: panAndScan })).json();
export const tokenize = async (body, signal) =>
  (await post("api/tokenize", { ...body, return_token_strs: true }, signal)).json();

// The chunks of a streamed answer; one with `place` says how many answers are begun before it, undefined for none any
// more. Problem("lost") if the stream ends before it is done.
export async function* stream(path, body, signal) {
  const response = await post(`api/v1/${path}`, { ...body, stream: true, stream_options: STREAM }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done && ended) return;
      if (done) throw new Problem("the stream ended", "lost");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const comment = /^:(?: waiting (\d+))?$/.exec(event);
        if (comment) yield { choices: [], place: comment[1] && Number(comment[1]) };
        const data = event
          .split("\n")
          .filter((line) => line.startsWith("data: "))
          .map((line) => line.slice(6))
          .join("\n");
        ended ||= data === "[DONE]";
        if (!data || ended) continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Problem(chunk.error.message, chunk.error.code);
        yield chunk;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw lost(error); // of the network
  } finally {
    reader.cancel().catch(() => {});
  }
}
