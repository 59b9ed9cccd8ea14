// A prompt without the chat's format: the model goes on with a text as it is.

import { stream, tokenize } from "./api.js";
import { make } from "./dom.js";
import { toFields, toPrompt } from "./request.js";
import { resolved } from "./settings.js";
import { picturesOf } from "./store.js";
import { count, say } from "./words.js";

const KEY = "gemma-tpu chat raw"; // the text, as this tab has it

export class RawPanel {
  constructor(page) {
    this.page = page;
    this.running = null;
    this.text = stored();
    this.before = null; // what stood here before the conversation's text was taken
    this.element = make("div", { class: "raw" });
  }

  show() {
    if (!this.element.isConnected || this.running) return;
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
    this.before = this.text || null;
    this.set(found.token_strs.slice(1).join("")); // <bos> is added to a text
    this.field.value = this.text;
    this.back.hidden = this.before === null;
  }

  takeBack() {
    this.field.value = this.before;
    this.set(this.before);
    this.before = null;
    this.back.hidden = true;
  }

  set(text) {
    this.text = text;
    keep(text);
  }

  async press() {
    if (this.running) return this.running.abort();
    const problem = this.page.problem();
    if (problem) return (this.state.textContent = problem);
    this.running = new AbortController();
    this.go.textContent = say("stop_answer");
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
    this.go.textContent = say("raw_go");
  }
}

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage may be forbidden
  }
}

function keep(text) {
  try {
    sessionStorage.setItem(KEY, text);
  } catch {} // storage may be forbidden, or full
}
