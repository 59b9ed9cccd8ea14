// The speed measured here beside what `gemma-tpu plan` predicts for a TPU slice.

import { act } from "./api.js";
import { make } from "./dom.js";
import { count, say } from "./words.js";

export class Prediction {
  // `measured()`: tokens per second of the last answer, or null.
  constructor(measured) {
    this.measured = measured;
    this.element = make("div", { class: "prediction" });
    this.found = null;
  }

  lay(status) {
    this.slices = status.slices;
    this.element.hidden = !this.slices;
    if (!this.slices || this.select) return this.showFacts();
    this.select = make("select", { "aria-label": say("plan") }, ...this.slices.map((name) => make("option", {}, name)));
    this.button = make("button", { type: "button", class: "quiet", on: { click: () => this.ask() } }, say("plan_ask"));
    this.facts = make("div", { role: "status" });
    this.element.replaceChildren(
      make("h4", {}, say("plan")),
      make("p", { class: "hint" }, say("plan_about")),
      make("div", { class: "choice" }, this.select, this.button),
      this.facts,
    );
    this.showFacts();
  }

  translate() {
    this.select = null;
  }

  async ask() {
    this.button.disabled = true;
    this.facts.replaceChildren(make("p", { class: "hint" }, say("planning")));
    try {
      this.found = await act("plan", { topology: this.select.value });
      this.problem = null;
    } catch (error) {
      this.found = null;
      this.problem = error.message;
    }
    this.button.disabled = false;
    this.showFacts();
  }

  showFacts() {
    if (!this.facts || this.button.disabled) return;
    if (this.problem) return this.facts.replaceChildren(make("p", { class: "notice", role: "alert" }, this.problem));
    if (!this.found) return this.facts.replaceChildren();
    const { slice, fits, seconds, roofline, total, capacity } = this.found;
    const gib = (size) => `${(size / 2 ** 30).toFixed(1)} GiB`;
    if (!fits)
      return this.facts.replaceChildren(
        make("p", {}, say("plan_unfit", { slice, total: gib(total), capacity: gib(capacity) })),
      );
    const speed = (rate) => say("per_second", { speed: count(rate) });
    const here = this.measured();
    const rows = [
      [say("measured"), here ? speed(here) : say("not_measured")],
      [say("predicted", { slice }), speed(1 / seconds)],
      [say("roofline", { slice }), speed(1 / roofline)],
      [say("plan_memory"), say("of", { part: gib(total), whole: gib(capacity) })],
    ];
    this.facts.replaceChildren(
      make("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    );
  }
}
