// An answer's tokens, coloured by their probability, and the alternatives of one.

import { make } from "./dom.js";
import { say } from "./words.js";

const decoder = new TextDecoder();
const encoder = new TextEncoder();

// The text of `message` before token `index`.
export function textBefore(message, index) {
  const own = encoder.encode(message.text.slice(message.prefix));
  const length = message.tokens.slice(0, index).reduce((sum, [, , , bytes]) => sum + bytes, 0);
  return message.text.slice(0, message.prefix) + decoder.decode(own.slice(0, length));
}

const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  if (p < 0.0005) return "< 0.001 %";
  return p >= 10 ? `${p.toFixed(0)} %` : `${p.toFixed(p >= 0.1 ? 1 : 3)} %`;
};
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");

// `goOn(text)` begins another answer with that text.
export class TokenView {
  constructor(message, goOn) {
    Object.assign(this, { message, goOn, look: null });
    this.chosen = null;
    this.text = make("div", { class: "tokens", dir: "auto", on: { click: (event) => this.click(event) } });
    this.detail = make("div", { class: "alternatives" });
    this.element = make("div", {}, this.text, this.detail);
    this.shown = 0;
    this.update();
  }

  update() {
    const { message } = this;
    if (!this.shown && message.prefix)
      this.text.append(make("span", { class: "begun", title: say("begun") }, message.text.slice(0, message.prefix)));
    for (; this.shown < message.tokens.length; this.shown++) {
      const [token, logprob] = message.tokens[this.shown];
      const likely = Math.exp(logprob);
      const label = `${token} ${percent(logprob)}`;
      const span = make(
        "button",
        { type: "button", class: "token", "data-index": this.shown, title: label, "aria-label": label },
        token,
      );
      span.style.setProperty("--doubt", (1 - likely).toFixed(3));
      this.text.append(span);
    }
    if (!message.tokens.length) this.detail.replaceChildren(make("p", { class: "hint" }, say("no_probabilities")));
    else if (this.chosen === null) this.detail.replaceChildren(make("p", { class: "hint" }, say("choose_token")));
  }

  // `look(index, wanted)` shows where the attention went, if it is still wanted then.
  allowLook(look) {
    this.look = look;
    if (this.chosen !== null) this.showChosen();
  }

  click({ target }) {
    const index = target.closest("[data-index]")?.dataset.index;
    if (index === undefined) return;
    this.chosen = Number(index);
    for (const token of this.text.querySelectorAll(".token"))
      token.setAttribute("aria-pressed", token.dataset.index === index);
    this.showChosen();
    this.detail.scrollIntoView({ block: "nearest" });
  }

  showChosen() {
    const [drawn, logprob, top] = this.message.tokens[this.chosen];
    const all = top.some(([token]) => token === drawn) ? top : [...top, [drawn, logprob]];
    const rows = all.map(([token, p]) => this.row(token, p, token === drawn));
    const ask = async ({ target }) => {
      if (target.ariaBusy === "true") return;
      Object.assign(target, { ariaBusy: "true", textContent: say("looking") });
      await this.look(this.chosen, () => target.isConnected);
      Object.assign(target, { ariaBusy: "false", textContent: say("look") });
    };
    const look = this.look && make("button", { type: "button", class: "quiet", on: { click: ask } }, say("look"));
    this.detail.replaceChildren(make("ul", {}, ...rows), look ?? "");
  }

  row(token, logprob, drawn) {
    const bar = make("i");
    bar.style.width = `${100 * Math.exp(logprob)}%`;
    const text = textBefore(this.message, this.chosen) + token;
    const usable = !drawn && !text.includes("\ufffd") && !/^<[a-z_]+>$/.test(token) && this.message.state === "done";
    const go =
      usable &&
      make("button", { type: "button", class: "quiet", on: { click: () => this.goOn(text) } }, say("go_on_from"));
    return make(
      "li",
      { class: drawn ? "drawn" : "" },
      make("code", {}, visible(token)),
      make("span", { class: "bar" }, bar),
      make("span", { class: "share" }, percent(logprob)),
      go || make("span", {}, drawn ? say("drawn") : ""),
    );
  }
}
