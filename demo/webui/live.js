// A source of answers (see recorded.js) that asks a running demo, through the API of demo/api.py.

const POLL_BUSY = 400; // milliseconds
const POLL_IDLE = 1500;

class Live {
  // The demo at `address`. Throws a Refusal that says what is wrong if it cannot be used.
  static async connect(address) {
    const server = serverAt(address);
    if (server === null) throw new Refusal(() => say("server_malformed", { server: address }));
    const live = new Live(server, accountIn(address));
    live.heads = await live.request("status").catch(() => null);
    if (!live.heads?.[language]?.facts) throw await live.explain(); // also for what answers and is no demo
    live.poll();
    return live;
  }

  constructor(server, account) {
    this.server = server;
    this.account = account; // of a demo with --auth
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
    // If this fails, so do the events, which say so.
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

  // Looks how far loading is, until there is nothing more to see.
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

  // The response to GET, or to POST of `body`. Throws a Refusal for what the demo refuses.
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

  // Why a demo could not be asked. Browsers hide whether a server is not there or does not let this page in; but a
  // request whose answer may not be read succeeds in the second case alone.
  async explain() {
    const there = await fetch(this.server, { mode: "no-cors" }).then(
      () => true,
      () => false,
    );
    const values = { server: this.server, origin: location.protocol === "file:" ? "null" : location.origin };
    return new Refusal(() => say(there ? "server_refuses" : "server_silent", values));
  }
}

// What a header says of the user and the password in http://user:password@host; null if it has none.
function accountIn(address) {
  const { username, password } = new URL(withScheme(address));
  if (!password) return null;
  const bytes = new TextEncoder().encode(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`);
  return btoa(String.fromCharCode(...bytes));
}

const withScheme = (address) => (/^\w+:\/\//.test(address) ? address : `http://${address}`);

// "http://host:port" of an address, with its path if it has one; null if it is none.
function serverAt(address) {
  try {
    const url = new URL(withScheme(address));
    return /^https?:$/.test(url.protocol) ? (url.origin + url.pathname).replace(/\/+$/, "") : null;
  } catch {
    return null;
  }
}

// The JSON values of a body that has one a line.
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
