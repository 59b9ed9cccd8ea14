// The settings of a tab. settings.py extracts the list of controls from the real page.

class Settings {
  constructor(tab) {
    this.fields = new Map(); // name → the input that holds its value
    const settings = DATA.settings[tab].map((control) => this.lay(control));
    this.element = make("details", { class: "settings" }, makeSaying("settings", "summary"), make("div", { class: "grid" }, ...settings));
    const draw = this.fields.get("draw");
    const follow = () => (this.fields.get("seed").disabled = draw.checked);
    draw.addEventListener("change", follow);
    follow();
  }

  // The values by name, as `options` of demo/settings.py takes them.
  values() {
    const value = (field) => (field.type === "checkbox" ? field.checked : field.value === "" ? null : Number(field.value));
    return Object.fromEntries([...this.fields].map(([name, field]) => [name, value(field)]));
  }

  lay({ name, id, kind, texts, value, visible, minimum, maximum, step }) {
    const label = makeSaying(texts.label, "span");
    const limits = { min: minimum ?? "", max: maximum ?? "", step: step ?? 1 };
    if (kind === "checkbox") {
      const box = make("input", { type: "checkbox", checked: value });
      this.fields.set(name, box);
      return make("label", { class: "setting check", id, hidden: !visible }, box, label);
    }
    const number = make("input", { type: "number", ...limits, value });
    this.fields.set(name, number);
    // The page shows the value that is used.
    number.addEventListener("change", () => {
      if (limits.step === 1 && number.value !== "") number.value = Math.round(Number(number.value));
    });
    const head = make("label", { class: "name" }, label, number);
    const info = texts.info ? makeSaying(texts.info, "small") : null;
    if (kind === "number") return make("div", { class: "setting", id, hidden: !visible }, head, info);
    const range = make("input", { type: "range", ...limits, value });
    inEveryLanguage(() => range.setAttribute("aria-label", say(texts.label)));
    range.addEventListener("input", () => (number.value = range.value));
    number.addEventListener("change", () => {
      const given = number.value === "" ? value : Number(number.value);
      number.value = range.value = Math.min(maximum, Math.max(minimum, given));
    });
    return make("div", { class: "setting", id, hidden: !visible }, head, range, info);
  }
}
