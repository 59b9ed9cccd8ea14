// Runs in the real Chat page before its own scripts: notes each request and what came when.

globalThis.exchanges = [];
const realFetch = fetch;

globalThis.fetch = async (path, options = {}) => {
  const begun = performance.now();
  const response = await realFetch(path, options);
  if (options.method !== "POST") return response;
  const [seen, noted] = response.body.tee();
  note(requestKey(path, options.body), response.status, noted, begun);
  return new Response(seen, response);
};

async function note(key, status, body, begun) {
  const chunks = [];
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    chunks.push([Number(((performance.now() - begun) / 1000).toFixed(4)), value]);
  }
  exchanges.push({ key, status, chunks });
}
