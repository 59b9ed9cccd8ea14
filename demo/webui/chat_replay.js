// Runs in a recording of the Chat page before its own scripts: answers its requests with what was recorded.

const RECORDED = JSON.parse(document.getElementById("recorded").textContent);
const byKey = new Map(RECORDED.exchanges.map((exchange) => [exchange.key, exchange]));
const { pictures } = JSON.parse(document.getElementById("data").textContent);
const names = Object.entries(pictures).map(([name, url]) => [url, `picture:${name}`]);

globalThis.fetch = async (path, { body, method, signal } = {}) => {
  if (path.startsWith("data:")) return new Response(bytesOf(path), { headers: { "content-type": path.slice(5).split(";")[0] } });
  if (method !== "POST") return Response.json(RECORDED.status);
  const named = names.reduce((text, [url, name]) => text?.replaceAll(url, name), body);
  const exchange = byKey.get(requestKey(path, named));
  if (!exchange) return Response.json({ error: RECORDED.missing[document.documentElement.lang] }, { status: 404 });
  return new Response(replayed(exchange.chunks, signal).pipeThrough(new TextEncoderStream()), { status: exchange.status });
};

const bytesOf = (url) => Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (char) => char.charCodeAt(0));

// At the pace of the recording.
function replayed(chunks, signal) {
  const begun = performance.now();
  let next = 0;
  return new ReadableStream({
    async pull(controller) {
      if (signal?.aborted) return controller.error(signal.reason);
      if (next === chunks.length) return controller.close();
      const [seconds, text] = chunks[next++];
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds - (performance.now() - begun)));
      if (signal?.aborted) controller.error(signal.reason);
      else controller.enqueue(text);
    },
  });
}
