// A prompt without the chat's format: the model goes on with a text as it is.

import { stream, tokenize } from "./api.js";
import { make } from "./dom.js";
import { toFields, toPrompt } from "./request.js";
import { resolved } from "./settings.js";
import { picturesOf } from "./store.js";
import { count, say } from "./words.js";

const KEY = "gemma-tpu chat raw"; // the texts, as this tab has them

export class RawPanel {
  constructor(page) {
    this.page = page;
    this.running = null;
    // The text; the conversation's as it was taken, and what stood here before that.
    Object.assign(this, { text: "", taken: null, before: null }, stored());
    this.element = make("div", { class: "raw" });
  }

  show() {
    if (!this.element.isConnected) return;
    this.field = make("textarea", {
      class: "mono",
      rows: 18,
      value: this.text,
      spellcheck: false,
      "aria-label": say("raw"),
      on: { input: () => this.set(this.field.value) },
    });
    this.go = make("button", { type: "button", class: "primary", on: { click: () => this.press() } }, say("raw_go"));
    this.take = make("button", { type: "button", on: { click: () => this.takeConversation() } }, say("raw_take"));
    const back = { type: "button", class: "quiet", hidden: this.before === null, on: { click: () => this.takeBack() } };
    this.back = make("button", back, say("raw_back"));
    this.state = make("p", { class: "hint", role: "status" });
    this.element.replaceChildren(
      make("p", { class: "hint" }, say("raw_about")),
      this.field,
      make("div", { class: "buttons" }, this.back, this.take, this.go),
      this.state,
    );
    if (this.running) this.lock(true);
  }

  async takeConversation() {
    const path = this.page.tree.path();
    if (path.some((message) => picturesOf(message).length)) return (this.state.textContent = say("raw_pictures"));
    if (!path.length) return (this.state.textContent = say("nothing_sent"));
    let found;
    try {
      found = await tokenize(await toPrompt(path, this.page.settings));
    } catch (error) {
      return (this.state.textContent = error.message);
    }
    if (this.text && this.text !== this.taken) this.before = this.text;
    this.taken = found.token_strs.slice(1).join(""); // <bos> is added to a text
    this.put(this.taken);
  }

  takeBack() {
    const { before } = this;
    this.before = null;
    this.put(before);
  }

  put(text) {
    this.field.value = text;
    this.set(text);
    this.back.hidden = this.before === null;
  }

  set(text) {
    this.text = text;
    keep({ text, taken: this.taken, before: this.before });
  }

  // While the model writes, the text is its own.
  lock(locked) {
    this.field.readOnly = this.take.disabled = this.back.disabled = locked;
    this.go.textContent = say(locked ? "stop_answer" : "raw_go");
  }

  async press() {
    if (this.running) return this.running.abort();
    const problem = this.page.problem();
    if (problem) return (this.state.textContent = problem);
    this.running = new AbortController();
    this.lock(true);
    const { logprobs, top_logprobs, response_format, tools, tool_choice, ...fields } = toFields(
      resolved(this.page.settings),
    );
    let usage = null;
    let lost = "";
    try {
      for await (const chunk of stream("completions", { prompt: this.text, ...fields }, this.running.signal)) {
        usage = chunk.usage ?? usage;
        this.set(this.text + (chunk.choices[0]?.text ?? ""));
        this.field.value = this.text;
        this.field.scrollTop = this.field.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") lost = error.message;
    }
    const length = usage ? say("tokens_count", { count: count(usage.completion_tokens) }) : "";
    this.state.textContent = [length, lost].filter(Boolean).join(" · ");
    this.running = null;
    this.lock(false);
  }
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? {};
  } catch {
    return {}; // storage may be forbidden
  }
}

function keep(state) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(state));
  } catch {} // storage may be forbidden, or full
}
