// The dialog about the model: what it is, how far its loading is, and, where visitors may, another in its place.

import { act, BUSY } from "./api.js";
import { make } from "./dom.js";
import { language, say } from "./words.js";

export class ModelDialog {
  // `changed(status)` is told what the server said.
  constructor(changed) {
    this.changed = changed;
    this.element = make("dialog", { class: "model" });
    this.element.addEventListener("close", () => this.element.remove());
  }

  open(status) {
    document.body.append(this.element);
    this.show(status);
    this.element.showModal();
  }

  // Anew with each status, unless it says the same.
  show(status) {
    if (!this.element.isConnected || !status) return;
    const key = JSON.stringify([status.texts[language], status.checkpoints, status.checkpoint]);
    if (key === this.shown && this.element.open) return;
    this.shown = key;
    const texts = status.texts[language];
    const busy = BUSY.includes(status.phase);
    const facts = Object.values(texts.facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    const progress = busy
      ? [
          make("p", { class: "hint" }, texts.step),
          make("progress", { max: 100, value: texts.percent, "aria-label": texts.step }),
        ]
      : [];
    this.element.setAttribute("aria-label", say("model_dialog"));
    this.element.replaceChildren(
      make(
        "header",
        {},
        make("h2", {}, texts.title),
        make("button", { type: "button", class: "quiet", on: { click: () => this.element.close() } }, say("close")),
      ),
      make("p", { class: "hint" }, `${texts.tagline} · ${texts.state} ${texts.aside}`),
      make("dl", { class: "facts" }, ...facts),
      ...progress,
      ...(texts.error ? [make("p", { class: "notice", role: "alert" }, texts.error)] : []),
      ...this.buttons(status, busy),
    );
  }

  buttons(status, busy) {
    const button = (label, path, body) =>
      make("button", { type: "button", class: "quiet", on: { click: () => this.send(path, body) } }, label);
    const shown = [];
    if (["idle", "failed"].includes(status.phase)) shown.push(button(status.texts[language].button, "load"));
    if (!status.checkpoints) return shown;
    if (busy) shown.push(button(say("cancel_load"), "unload"));
    if (status.phase === "ready")
      shown.push(button(say("unload"), "unload"), make("small", {}, " ", say("unload_about")));
    const others = status.checkpoints.filter((name) => name !== status.checkpoint);
    if (!others.length) return shown;
    return [
      ...shown,
      make("p", {}, say("other_checkpoints")),
      make("div", { class: "others" }, ...others.map((name) => button(name, "load", { checkpoint: name }))),
    ];
  }

  async send(path, body) {
    try {
      this.changed(await act(path, body));
    } catch (error) {
      this.element.append(make("p", { class: "notice", role: "alert" }, error.message));
    }
  }
}
