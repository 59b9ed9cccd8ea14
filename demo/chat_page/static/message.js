// The view of one message. It is built once; while an answer is written, only what changes is laid anew.

import { copyText, iconButton, make } from "./dom.js";
import { fromParts, toParts } from "./composer.js";
import { leaveMarkdown, renderMarkdown } from "./markdown.js";
import { isHeld } from "./request.js";
import { enlarge, thumbnail } from "./pictures.js";
import { TokenView } from "./tokens.js";
import { textOf } from "./tree.js";
import { count, say } from "./words.js";

export class MessageView {
  // `page`: what the buttons do, see Page in main.js.
  constructor(message, page) {
    this.message = message;
    this.page = page;
    this.tokens = null;
    this.element = make("article", {
      class: `message ${message.role}`,
      "data-id": message.id,
      on: { keydown: (event) => this.key(event) },
    });
    this.lay();
    if (page.edits.has(message.id)) this.edit();
  }

  lay() {
    const { message } = this;
    this.editing = false;
    this.calls = new Map(); // what is typed as results stays there
    this.body = make("div", { class: "body", dir: "auto" });
    this.thinking = make(
      "details",
      { class: "thinking", hidden: true },
      make("summary", {}, say("thinking")),
      make("div"),
    );
    this.state = make("div", { class: "state", role: "status" });
    this.bar = make("div", { class: "actions" });
    this.element.replaceChildren(this.thinking, this.body, this.state, this.bar);
    this.element.setAttribute("aria-label", say(message.role === "user" ? "you" : "model"));
    this.tokens = null;
    this.update();
  }

  translate() {
    if (this.editing) return;
    const open = this.tokens !== null;
    this.lay();
    if (open) this.toggleTokens();
  }

  update() {
    const { message } = this;
    if (this.editing) return;
    // Questions do not change, and their pictures take a moment to be there; results stand in the call.
    if (message.role === "user" && !this.body.hasChildNodes())
      this.body.append(...message.parts.map((part) => this.part(part)));
    if (message.role === "assistant") this.showAnswer();
    this.bar.replaceChildren(...this.buttons());
  }

  part(part) {
    if (part.text !== undefined) {
      // Between pictures a line of its own, without the blanks around their marks.
      const text = this.message.parts.length > 1 ? part.text.trim() : part.text;
      return make("div", { class: "typed", dir: "auto" }, text);
    }
    const open = () => enlarge(part.picture);
    return make(
      "button",
      { type: "button", class: "picture", "aria-label": say("enlarge"), on: { click: open } },
      thumbnail(part.picture, say("picture")),
    );
  }

  showAnswer() {
    const { message } = this;
    const writing = ["waiting", "writing", "lost"].includes(message.state);
    this.element.setAttribute("aria-busy", writing);
    this.thinking.hidden = !message.thinking;
    this.thinking.lastChild.textContent = message.thinking ?? "";
    if (this.tokens) this.tokens.update();
    else if (message.text) renderMarkdown(this.body, message.text, writing);
    else
      this.body.replaceChildren(
        make(
          "span",
          { class: "dots", "aria-label": say("waiting") },
          writing ? "…" : message.calls ? "" : say("no_answer"),
        ),
      );
    if (!this.tokens) this.body.append(...(message.calls ?? []).map((call) => this.call(call)));
    this.state.replaceChildren(...this.states());
  }

  states() {
    const { message } = this;
    if (message.state === "failed") return [make("p", { class: "notice", role: "alert" }, message.problem)];
    if (message.state === "lost") return [make("p", { class: "notice quiet" }, say("lost"))];
    if (message.state === "waiting") return [message.loading ? say("loads", message.loading) : waiting(message.place)];
    if (message.state === "writing") return [say("writing")];
    const another = message.checkpoint !== this.page.status?.checkpoint ? [message.checkpoint] : [];
    const facts = statistics(message).map((fact) => make("span", { class: "fact" }, fact));
    return [...facts, ...another].flatMap((fact, i) => (i ? [" · ", fact] : [fact]));
  }

  call(call) {
    const given = this.page.resultOf(this.message, call);
    const key = `${call.id} ${given === null}`;
    if (!this.calls.has(key))
      this.calls.set(key, given === null ? this.openCall(call) : this.answeredCall(call, given));
    return this.calls.get(key);
  }

  openCall(call) {
    const field = make("textarea", { rows: 2, placeholder: say("call_result"), "aria-label": say("call_result") });
    const give = () => this.page.answerCall(this.message, call, field.value);
    const button = make("button", { type: "button", class: "quiet", on: { click: give } }, say("give"));
    return make("div", { class: "call" }, calledAs(call), make("div", { class: "result" }, field, button));
  }

  answeredCall(call, given) {
    return make(
      "div",
      { class: "call" },
      calledAs(call),
      make("p", { class: "hint" }, say("call_given")),
      make("pre", {}, given),
    );
  }

  buttons() {
    const { message, page } = this;
    const busy = ["waiting", "writing", "lost"].includes(message.state);
    const found = [this.siblings()];
    const button = (name, key, act) => iconButton(name, say(key), act, { class: "small" });
    if (busy && message.pair) found.push(button("stop", "stop_answer", () => page.writing.stop(message)));
    if (busy) return found.filter(Boolean);
    found.push(button("copy", "copy", () => copyText(textOf(message))));
    if (message.role === "user") found.push(button("edit", "edit", () => this.edit()));
    if (message.role === "assistant") {
      found.push(button("again", "again", () => page.again(message)));
      if (["length", "cancelled", "failed"].includes(message.finish) && message.text && !isHeld(message.settings))
        found.push(button("go", "go_on", () => page.goOn(message)));
      found.push(
        iconButton("eye", say("tokens"), () => this.toggleTokens(), {
          class: "small",
          "aria-pressed": this.tokens !== null,
        }),
      );
      found.push(button("code", "reproduce", () => page.reproduce(message)));
      if (message === page.tree.leaf) found.push(button("undo", "undo", () => page.undo()));
      if (page.standsBeside(message))
        found.push(
          make("button", { type: "button", class: "quiet keep", on: { click: () => page.keep(message) } }, say("keep")),
        );
    }
    return found.filter(Boolean);
  }

  siblings() {
    const all = this.page.siblings(this.message);
    if (all.length < 2) return null;
    const at = all.indexOf(this.message);
    const go = (step) => this.page.choose(all[at + step], this.bar.getBoundingClientRect().top);
    const before = iconButton("left", say("version_before"), () => go(-1), { class: "small", disabled: at === 0 });
    const after = iconButton("right", say("version_after"), () => go(1), {
      class: "small",
      disabled: at === all.length - 1,
    });
    return make("span", { class: "versions" }, before, make("span", {}, `${at + 1}/${all.length}`), after);
  }

  toggleTokens() {
    const { message, page } = this;
    if (this.tokens) this.tokens = null;
    else {
      const view = new TokenView(message, (text) => page.goOnFrom(message, text));
      page.canLook(message).then((can) => can && view.allowLook((...which) => page.look(message, ...which)));
      this.tokens = view;
      leaveMarkdown(this.body);
      this.body.replaceChildren(this.tokens.element);
    }
    this.update();
    this.bar.querySelector("[aria-pressed]")?.focus();
  }

  key(event) {
    if (event.key !== "Escape" || !this.tokens || this.page.writing.isBusy || event.defaultPrevented) return;
    event.preventDefault(); // which would close a drawer
    this.toggleTokens();
  }

  edit() {
    if (this.editing) return this.body.querySelector("textarea").focus();
    const { text, pictures } = fromParts(this.message.parts);
    const { edits } = this.page;
    const field = make("textarea", {
      value: edits.get(this.message.id) ?? text,
      on: { input: () => edits.set(this.message.id, field.value) },
      rows: Math.min(12, text.split("\n").length + 1),
      "aria-label": say("edit"),
    });
    const close = () => {
      edits.delete(this.message.id);
      this.lay();
      this.bar.querySelector(`[aria-label="${say("edit")}"]`)?.focus();
    };
    const send = () => {
      if (!this.page.edit(this.message, toParts(field.value, pictures))) return;
      close();
      this.page.show();
      this.page.composer.focus();
    };
    const key = (event) => {
      if (event.key === "Escape" && !event.isComposing) {
        event.preventDefault(); // which would stop an answer
        close();
      }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    };
    field.addEventListener("keydown", key);
    const strip = make(
      "div",
      { class: "strip" },
      ...pictures.map((id, i) =>
        make("span", { class: "attached" }, thumbnail(id, say("picture_number", { number: i + 1 }))),
      ),
    );
    const buttons = make(
      "div",
      { class: "buttons" },
      make("button", { type: "button", on: { click: close } }, say("cancel")),
      make("button", { type: "button", class: "primary", on: { click: send } }, say("send")),
    );
    this.editing = true;
    this.body.replaceChildren(pictures.length ? strip : "", field, buttons);
    this.bar.replaceChildren();
    field.focus();
  }
}

// Why nothing of an answer is there: `place` others are begun before it.
function waiting(place) {
  if (place === undefined) return say("waiting");
  return say({ 0: "queued_next", 1: "queued_one" }[place] ?? "queued", { count: place });
}

const calledAs = (call) => make("code", {}, `${call.function.name}(${call.function.arguments})`);

// Facts about an answer: length, speed, cached prompt, forgotten turns, and why it ended early.
function statistics(message) {
  const { usage, written = 0 } = message;
  const parts = [say(written === 1 ? "one_token" : "tokens_count", { count: count(written) })];
  if (message.speed > 0)
    parts.push(say("speed", { speed: message.speed >= 100 ? count(message.speed) : message.speed.toFixed(1) }));
  if (message.first) parts.push(say("first", { seconds: message.first.toFixed(2) }));
  if (usage)
    parts.push(
      say(usage.cached ? "cached" : "prompt_of", { cached: count(usage.cached), prompt: count(usage.prompt) }),
    );
  if (message.saved > 0.005) parts.push(say("saved", { seconds: message.saved.toFixed(2) }));
  if (message.forgotten) parts.push(say("forgotten", { count: message.forgotten }));
  if (message.settings?.temperature > 0) parts.push(say("with_seed", { seed: message.settings.seed }));
  if (["length", "cancelled"].includes(message.finish)) parts.push(say(`ended_${message.finish}`));
  return parts;
}
