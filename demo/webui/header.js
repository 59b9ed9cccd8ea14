// The header: the model, loading progress, the language, and the source of answers. Like demo/header.py.

class Header {
  constructor({ onLoad, onConnect, onDisconnect }) {
    this.source = null;
    this.problem = null;
    this.connecting = false;
    this.head = document.getElementById("head");
    this.logo = this.head.querySelector(".logo");
    this.button = make("button", { id: "load", on: { click: onLoad } });
    document.getElementById("controls").append(this.layLanguages(), this.button);

    this.about = make("p");
    this.kind = make("strong", { class: "kind" });
    this.address = make("input", { type: "text", inputMode: "url", placeholder: "http://127.0.0.1:7860", spellcheck: false });
    const label = make("label", {}, makeSaying("server", "span"), this.address);
    this.connect = make("button", { type: "submit" });
    this.form = make("form", { class: "server" }, label, this.connect);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      onConnect(this.address.value.trim());
    });
    this.disconnect = makeSaying("disconnect", "button", { on: { click: onDisconnect } });
    this.notice = make("div", { id: "source-notice", class: "notice-place" });
    const words = make("div", { class: "about" }, this.kind, this.about);
    document.getElementById("source").append(words, this.form, this.disconnect, this.notice);
    inEveryLanguage(() => this.show());
  }

  layLanguages() {
    const options = Object.entries(DATA.languages).map(([code, name]) => {
      const input = make("input", { type: "radio", name: "language", value: code, checked: code === language });
      input.addEventListener("change", () => setLanguage(code));
      const label = make("label", { lang: code }, input, make("span", {}, name));
      inEveryLanguage(() => label.classList.toggle("selected", code === language));
      return label;
    });
    const element = make("fieldset", { id: "language" }, make("div", { class: "wrap" }, ...options));
    inEveryLanguage(() => element.setAttribute("aria-label", say("language")));
    return element;
  }

  use(source) {
    this.source = source;
    this.refuse(null);
  }

  refuse(words) {
    this.problem = words;
    this.connecting = false;
    this.show();
  }

  show() {
    if (!this.source) return;
    const head = this.source.heads[language];
    const title = make("div", {}, make("h1", {}, head.title), make("p", {}, head.tagline));
    const facts = make("dl", { class: "facts" }, ...layFacts(head));
    this.head.replaceChildren(
      make("header", { class: "head" }, make("div", { class: "brand" }, this.logo, title), facts, layProgress(head)),
    );
    this.button.textContent = head.button;
    this.button.disabled = !head.clickable;
    this.button.className = head.clickable ? "primary" : "";

    const live = this.source instanceof Live;
    const { checkpoint, date } = DATA.recording;
    this.kind.textContent = say(live ? "live" : "recording");
    this.about.textContent = live
      ? say("live_about", { server: this.source.server })
      : say("recording_about", { checkpoint, date, faster: LOADING_FASTER, slower: ANSWERS_SLOWER });
    this.connect.textContent = say(this.connecting ? "connecting" : "connect");
    this.form.hidden = live;
    this.disconnect.hidden = !live;
    this.notice.replaceChildren(...(this.problem ? [notice(this.problem())] : []));
  }
}

function layFacts({ facts, phase, state, aside }) {
  const items = Object.entries(facts).map(([key, [label, value]]) =>
    make("div", { class: "fact" }, make("dt", {}, label), make("dd", { "data-fact": key }, value)),
  );
  const said = aside ? [`${state} `, make("span", { class: "aside" }, aside)] : [state];
  const dd = make("dd", { class: "state", "data-phase": phase, role: "status" }, ...said);
  return [...items, make("div", { class: "fact" }, make("dt"), dd)];
}

function layProgress({ step, percent, error }) {
  if (error) return notice(error);
  if (!step) return null;
  const done = make("i");
  done.style.width = `${percent.toFixed(1)}%`;
  const values = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": percent.toFixed(0), "aria-label": step };
  return make("div", { class: "progress" }, make("p", {}, step), make("div", { role: "progressbar", ...values }, done));
}
