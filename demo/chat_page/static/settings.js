// The settings of a conversation: a panel of controls and their values.

import { make } from "./dom.js";
import { say } from "./words.js";

export const LONGEST = 8192;
export const LARGEST_SEED = 2 ** 31 - 1;
export const NUMBERS = {
  max_tokens: { low: 1, high: LONGEST, step: 1 },
  temperature: { low: 0, high: 2, step: 0.05 },
  top_k: { low: 0, high: 256, step: 1 },
  top_p: { low: 0.01, high: 1, step: 0.01 },
  min_p: { low: 0, high: 1, step: 0.01 },
};
const SAMPLING = ["top_k", "top_p", "min_p", "seed"]; // without effect at temperature 0
// What Google recommends for Gemma 3 is temperature 1, top-k 64, top-p 0.95.
const PRESETS = {
  exact: { temperature: 0 },
  recommended: { temperature: 1, top_k: 64, top_p: 0.95, min_p: 0 },
  balanced: { temperature: 0.7, top_k: 64, top_p: 0.9, min_p: 0.02 },
  creative: { temperature: 1.3, top_k: 0, top_p: 1, min_p: 0.05 },
};
const FALLBACK = { max_tokens: 1024, temperature: 0, top_k: 64, top_p: 0.95, min_p: 0 };

export function defaultSettings(model) {
  const { max_new_tokens, ...rest } = model?.defaults ?? {};
  const numbers = {
    ...FALLBACK,
    ...rest,
    ...(max_new_tokens ? { max_tokens: Math.min(max_new_tokens, LONGEST) } : {}),
  };
  return {
    ...numbers,
    seed: null,
    stop: [],
    system: "",
    pan_and_scan: false,
    drop_oldest: true,
    probabilities: true,
    tools: "",
    schema: "",
    must_call: false,
  };
}

// What an answer is asked with: a seed is drawn here, so that the answer can be had again.
export function resolved(settings) {
  return { ...settings, seed: settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 };
}

export function presetOf(settings) {
  const fits = ([, values]) => Object.entries(values).every(([name, value]) => settings[name] === value);
  return Object.entries(PRESETS).find(fits)?.[0] ?? "own";
}

// The panel for `page.settings`, which it changes; `page.settingsChanged` is called after each change.
export class SettingsPanel {
  constructor(page) {
    this.page = page;
    this.element = make("div", { class: "settings" });
  }

  get values() {
    return this.page.settings;
  }

  changed() {
    this.page.settingsChanged();
  }

  // If it is open.
  show() {
    if (this.element.isConnected) this.lay();
  }

  lay() {
    const { values } = this;
    this.greyed = [];
    const presets = Object.keys(PRESETS).map((name) => this.preset(name));
    const rows = [
      make("div", { class: "presets", role: "group", "aria-label": say("presets") }, ...presets),
      this.area("system", say("system"), say("system_hint"), 3),
      ...Object.keys(NUMBERS).map((name) => this.number(name)),
      this.seed(),
      this.field(
        say("stop"),
        make("textarea", {
          value: values.stop.join("\n"),
          rows: 2,
          placeholder: say("stop_hint"),
          on: { change: ({ target }) => this.set("stop", target.value.split("\n").filter(Boolean)) },
        }),
      ),
      this.check("probabilities"),
      this.check("drop_oldest"),
      this.page.status?.model && !this.page.status.model.vision ? null : this.check("pan_and_scan"),
      make(
        "details",
        { open: Boolean(values.schema || values.tools) },
        make("summary", {}, say("forms")),
        this.json("schema", 5),
        this.json("tools", 6),
        this.check("must_call"),
      ),
    ];
    this.element.replaceChildren(...rows.filter(Boolean));
    this.grey();
  }

  set(name, value, again = false) {
    this.values[name] = value;
    if (again) this.lay();
    else this.grey();
    this.changed();
  }

  grey() {
    const off = this.values.temperature === 0;
    for (const element of this.greyed) {
      element.classList.toggle("greyed", off);
      element.setAttribute("aria-disabled", off);
      for (const input of element.querySelectorAll("input")) input.disabled = off;
    }
    const chosen = presetOf(this.values);
    for (const button of this.element.querySelectorAll("[data-preset]"))
      button.setAttribute("aria-pressed", button.dataset.preset === chosen);
  }

  preset(name) {
    const click = () => {
      Object.assign(this.values, PRESETS[name]);
      this.lay();
      this.changed();
    };
    return make("button", { type: "button", "data-preset": name, on: { click } }, say(`preset_${name}`));
  }

  field(label, control, hint = null) {
    return make(
      "label",
      { class: "field" },
      make("span", { class: "name" }, label),
      control,
      hint && make("small", {}, hint),
    );
  }

  number(name) {
    const { low, high, step } = NUMBERS[name];
    const value = Math.min(high, Math.max(low, this.values[name]));
    const range = make("input", { type: "range", min: low, max: high, step, value, "aria-label": say(name) });
    const exact = make("input", { type: "number", min: low, max: high, step, value, "aria-label": say(name) });
    const take = (given) => {
      const clamped = Math.min(high, Math.max(low, step === 1 ? Math.round(given) : given));
      range.value = exact.value = clamped;
      this.set(name, clamped);
    };
    range.addEventListener("input", () => take(Number(range.value)));
    exact.addEventListener("change", () => take(exact.value === "" ? this.values[name] : Number(exact.value)));
    const hint = DATA_HINTS.includes(name) ? make("small", {}, say(`${name}_hint`)) : null;
    const element = make(
      "div",
      { class: "field number", "data-setting": name },
      make("span", { class: "name" }, say(name)),
      exact,
      range,
      hint,
    );
    if (SAMPLING.includes(name)) this.greyed.push(element);
    return element;
  }

  seed() {
    const { seed } = this.values;
    const exact = make("input", {
      type: "number",
      min: 0,
      max: LARGEST_SEED,
      step: 1,
      value: seed ?? "",
      placeholder: say("seed_any"),
      "aria-label": say("seed"),
    });
    exact.addEventListener("change", () =>
      this.set(
        "seed",
        exact.value === "" ? null : Math.min(LARGEST_SEED, Math.max(0, Math.round(Number(exact.value)))),
      ),
    );
    const element = make(
      "div",
      { class: "field number", "data-setting": "seed" },
      make("span", { class: "name" }, say("seed")),
      exact,
    );
    this.greyed.push(element);
    return element;
  }

  area(name, label, hint, rows) {
    return this.field(
      label,
      make("textarea", {
        value: this.values[name],
        rows,
        placeholder: hint,
        "data-setting": name,
        on: { input: ({ target }) => this.set(name, target.value) },
      }),
    );
  }

  check(name) {
    const box = make("input", {
      type: "checkbox",
      checked: this.values[name],
      on: { change: ({ target }) => this.set(name, target.checked) },
    });
    return make("label", { class: "check", "data-setting": name }, box, say(name));
  }

  // JSON that is said to be wrong where it is written.
  json(name, rows) {
    const problem = make("small", { class: "problem", role: "alert" });
    const check = () => {
      const wrong = jsonProblem(name, this.values[name]);
      problem.textContent = wrong ?? "";
      area.setAttribute("aria-invalid", wrong !== null);
    };
    const input = ({ target }) => {
      this.set(name, target.value);
      check();
    };
    const area = make("textarea", {
      value: this.values[name],
      rows,
      spellcheck: false,
      class: "mono",
      placeholder: EXAMPLES[name],
      "data-setting": name,
      on: { input },
    });
    check();
    return make("label", { class: "field" }, make("span", { class: "name" }, say(name)), area, problem);
  }
}

const DATA_HINTS = ["temperature", "top_k", "min_p"];
const EXAMPLES = {
  schema: '{"type": "object", "properties": {"colour": {"type": "string"}}}',
  tools: '[{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]',
};

// Why the text of `name` (schema or tools) cannot be used; null if it can.
export function jsonProblem(name, text) {
  if (!text.trim()) return null;
  try {
    const value = JSON.parse(text);
    if (name === "tools" && !Array.isArray(value)) return say("tools_list");
    if (name === "schema" && (typeof value !== "object" || value === null)) return say("schema_object");
    return null;
  } catch (error) {
    return say("not_json", { error: error.message });
  }
}
