// Two answers side by side: the second's settings and checkpoint, and what is different between two.

import { iconButton, make } from "./dom.js";
import { LARGEST_SEED } from "./settings.js";
import { say } from "./words.js";

const NUMBERS = { temperature: [0, 2, 0.05], top_k: [0, 256, 1], top_p: [0.01, 1, 0.01], seed: [0, LARGEST_SEED, 1] };
const NAMES = ["checkpoint", ...Object.keys(NUMBERS), "min_p", "system"];

// A button, and fields that stand before the prompt while it is pressed. `settings()`: those of the first answer;
// `status()`: the server's.
export class Comparison {
  constructor(settings, status) {
    Object.assign(this, { settings, status });
    this.on = false;
    this.button = iconButton("compare", "", () => this.toggle(), { "aria-pressed": false });
    const keydown = (event) => {
      if (event.key !== "Escape" || event.isComposing || !this.on) return;
      event.preventDefault(); // which would stop an answer
      this.toggle();
      this.button.focus();
    };
    this.button.addEventListener("keydown", keydown);
    this.element = make("div", { class: "second", hidden: true, on: { keydown } });
    this.translate();
  }

  translate() {
    this.button.title = say("compare");
    this.button.setAttribute("aria-label", say("compare"));
    if (this.on) this.lay();
  }

  toggle() {
    this.on = !this.on;
    this.button.setAttribute("aria-pressed", this.on);
    this.element.hidden = !this.on;
    if (!this.on) return;
    const { temperature, top_k, top_p, seed, system } = this.settings();
    this.values = { temperature: temperature || 1, top_k, top_p, seed, system };
    this.other = null; // the second answer's checkpoint, if it is another than the first's
    this.first = null; // that of the first while the other is loaded
    this.lay();
  }

  // The settings of the answers to one question: one, or two. With two checkpoints both say theirs.
  get sets() {
    if (!this.on) return [this.settings()];
    const sets = [this.settings(), { ...this.settings(), ...this.values }];
    const { checkpoint } = this.status();
    if (checkpoint !== this.other) this.first = checkpoint;
    if (!this.other || !this.first) return sets;
    return sets.map((set, i) => ({ ...set, checkpoint: [this.first, this.other][i] }));
  }

  lay() {
    const fields = Object.entries(NUMBERS).map(([name, limits]) => this.number(name, ...limits));
    const input = ({ target }) => (this.values.system = target.value);
    const system = make("input", { value: this.values.system, on: { input } });
    const label = make("label", { class: "wide" }, say("system"), system);
    this.element.replaceChildren(make("span", {}, say("second_answer")), ...fields, label, this.chooser() ?? "");
  }

  // The second answer's checkpoint, where there is a choice.
  chooser() {
    const names = this.status()?.checkpoints ?? [];
    if (names.length < 2) return null;
    const options = names.map((name) => make("option", { value: name, selected: name === this.other }, name));
    const change = ({ target }) => {
      const { checkpoint } = this.status();
      this.other = target.value || null;
      this.first = checkpoint === this.other ? null : checkpoint;
    };
    const select = make("select", { on: { change } }, make("option", { value: "" }, say("as_first")), ...options);
    return make("label", { class: "wide", title: say("checkpoint_about") }, say("checkpoint"), select);
  }

  number(name, min, max, step) {
    const change = ({ target }) => {
      const given = target.value === "" ? null : Number(target.value);
      if (given === null && name !== "seed") return (target.value = this.values[name]);
      this.values[name] = given === null ? null : Math.min(max, Math.max(min, step === 1 ? Math.round(given) : given));
      target.value = this.values[name] ?? "";
    };
    const value = this.values[name] ?? "";
    const keydown = (event) => event.key === "Enter" && event.preventDefault(); // which would send the prompt
    const on = { change, keydown };
    return make("label", {}, say(name), make("input", { type: "number", min, max, step, value, on }));
  }
}

// What the settings of one of two answers have that the other's have not.
export function differences(message, pair) {
  const other = pair.find((one) => one !== message);
  const names = NAMES.filter((name) => message.settings[name] !== other.settings[name]);
  return names
    .map((name) => `${say(name)} ${message.settings[name] === "" ? "–" : message.settings[name]}`)
    .join(" · ");
}
