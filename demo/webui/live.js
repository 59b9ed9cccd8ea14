// A source of answers (see recorded.js) that calls the API of a running demo (demo/api.py).

const POLL_BUSY = 400; // milliseconds
const POLL_IDLE = 1500;

class Live {
  // Connects to the demo at `address`. Throws a Refusal with the reason if that fails.
  static async connect(address) {
    const server = serverAt(address);
    if (server === null) throw new Refusal(() => say("server_malformed", { server: address }));
    const live = new Live(server, accountIn(address));
    live.heads = await live.request("status").catch(() => null);
    if (!live.heads?.[language]?.facts) throw await live.explain(); // another kind of server may answer too
    live.poll();
    return live;
  }

  constructor(server, account) {
    this.server = server;
    this.account = account; // for a demo with --auth
    this.onHeads = () => {};
    this.onLost = () => {};
    this.closed = new AbortController();
  }

  async load() {
    this.show(await this.request("load", {}));
  }

  async ask(tab, told, question, pictures, settings) {
    const turns = told.map(({ question, pictures, answer }) => ({ question, pictures, answer }));
    const response = await this.send("answer", { turns, question, pictures, settings });
    const lines = readLines(response.body);
    const { id, forgotten } = (await lines.next()).value;
    // A failure here is ignored: the stream of events fails too, and reports it.
    const stop = () => this.send("stop", { id }).catch(() => {});
    return { fresh: false, forgotten, events: this.events(lines), stop };
  }

  questions() {
    return [];
  }

  async *events(lines) {
    for await (const line of lines) {
      if ("piece" in line) yield line;
      else if ("waiting" in line) yield { waiting: () => line.waiting[language] };
      else yield { statistics: () => line.statistics[language], error: line.error && (() => line.error[language]) };
    }
  }

  close() {
    this.closed.abort();
    this.onHeads = this.onLost = () => {};
  }

  show(heads) {
    this.heads = heads;
    this.onHeads();
  }

  // Polls the loading progress until the model is ready.
  async poll() {
    while (this.heads[language].phase !== "ready") {
      await pause(this.heads[language].step ? POLL_BUSY : POLL_IDLE, this.closed.signal);
      if (this.closed.signal.aborted) return;
      try {
        this.show(await this.request("status"));
      } catch {
        return this.onLost();
      }
    }
  }

  async request(path, body) {
    return (await this.send(path, body)).json();
  }

  // Sends a GET, or a POST with `body`. Throws a Refusal if the demo answers with an error.
  async send(path, body) {
    const headers = { ...(this.account && { authorization: `Basic ${this.account}` }) };
    const post = { method: "POST", body: JSON.stringify(body) };
    if (body) headers["content-type"] = "application/json";
    const options = { ...(body && post), headers, signal: this.closed.signal };
    const response = await fetch(`${this.server}/api/${path}`, options);
    if (response.ok) return response;
    const said = await response.json().catch(() => ({}));
    const plain = `${response.status} ${response.statusText}`;
    throw new Refusal(() => said.error?.[language] ?? say("refused", { error: plain }));
  }

  // The reason why connecting failed. Browsers do not tell a missing server from one that refuses this origin, but a
  // no-cors request succeeds only with the latter.
  async explain() {
    const there = await fetch(this.server, { mode: "no-cors" }).then(
      () => true,
      () => false,
    );
    const values = { server: this.server, origin: location.protocol === "file:" ? "null" : location.origin };
    return new Refusal(() => say(there ? "server_refuses" : "server_silent", values));
  }
}

// The Basic credentials from http://user:password@host, base64-encoded, or null.
function accountIn(address) {
  const { username, password } = new URL(withScheme(address));
  if (!password) return null;
  const bytes = new TextEncoder().encode(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`);
  return btoa(String.fromCharCode(...bytes));
}

const withScheme = (address) => (/^\w+:\/\//.test(address) ? address : `http://${address}`);

// Normalizes an address to "http://host:port/path", or null if it is malformed.
function serverAt(address) {
  try {
    const url = new URL(withScheme(address));
    return /^https?:$/.test(url.protocol) ? (url.origin + url.pathname).replace(/\/+$/, "") : null;
  } catch {
    return null;
  }
}

// Yields the JSON values of a body in JSON Lines.
async function* readLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines.map((line) => JSON.parse(line));
  }
}
