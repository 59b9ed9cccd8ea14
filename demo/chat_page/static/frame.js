// The frame of the page: bar, conversation, prompt, drawers, notices. It knows no conversation.

import { BUSY } from "./api.js";
import { icon, iconButton, make } from "./dom.js";
import { meter } from "./inside.js";
import { showShortcuts } from "./shortcuts.js";
import { count, DATA, exampleUrl, framed, language, LANGUAGES, onLanguage, say, setLanguage } from "./words.js";

const NEAR = 80; // pixels from the end within which the page follows an answer

export class Frame {
  // `panels`: name → what the drawer of that name shows, {element, show()}. `events`: model() for a press on the model's
  // chip, stop() for Escape, example(example).
  constructor({ sidebar, composer, panels, events }) {
    Object.assign(this, { sidebar, panels, events, following: true, top: 0 });
    this.title = make("h1");
    this.chip = make("button", { type: "button", class: "chip-state", on: { click: () => events.model() } });
    this.column = make("div", { class: "column" });
    this.log = make(
      "div",
      { class: "log", role: "log", "aria-live": "off", tabIndex: 0, on: { scroll: () => this.scrolled() } },
      this.column,
    );
    new ResizeObserver(() => this.scrollToEnd()).observe(this.column); // pictures get their height when they are loaded
    this.toEnd = iconButton("down", say("to_end"), () => this.scrollToEnd(true), { class: "to-end", hidden: true });
    this.note = make("div", { class: "note" });
    this.foot = make("div", { class: "context" });
    this.side = make("aside", { class: "panel", hidden: true });
    this.backdrop = make("div", { class: "backdrop", on: { click: () => this.closeDrawers() } });
    this.bar = make("header", { class: "bar" });
    this.main = make(
      "main",
      {},
      this.bar,
      this.log,
      make("div", { class: "bottom" }, this.toEnd, this.note, composer.element, this.foot),
    );
    document.addEventListener("keydown", (event) => this.key(event));
    onLanguage(() => this.translate());
  }

  // Puts the page on the screen: once what the browser keeps is at hand, so that nothing done before is lost.
  attach() {
    if (!this.main.isConnected) document.body.append(this.sidebar.element, this.main, this.side, this.backdrop);
  }

  translate() {
    document.title = `${say("chat")} · gemma_tpu`;
    const drawers = Object.entries({ raw: "code", inside: "eye", settings: "sliders" });
    const buttons = drawers.map(([name, drawn]) =>
      iconButton(drawn, say(name), () => this.openPanel(name), { "data-drawer": name }),
    );
    const codes = framed ? [] : LANGUAGES.filter((code) => code !== language);
    const languages = codes.map((code) =>
      make(
        "button",
        { type: "button", class: "quiet", lang: code, on: { click: () => setLanguage(code) } },
        DATA.languages[code],
      ),
    );
    const own =
      framed && !DATA.address
        ? make(
            "a",
            {
              class: "icon-button",
              href: "./",
              target: "_blank",
              title: say("own_window"),
              "aria-label": say("own_window"),
            },
            icon("link"),
          )
        : "";
    this.bar.replaceChildren(
      iconButton("menu", say("conversations"), () => this.toggleSidebar()),
      this.title,
      this.chip,
      make("span", { class: "grow" }),
      ...languages,
      own,
      ...buttons,
    );
    this.toEnd.title = say("to_end");
    this.toEnd.setAttribute("aria-label", say("to_end"));
    this.log.setAttribute("aria-label", say("conversation"));
    if (this.side.dataset.shown) this.openPanel(this.side.dataset.shown, true);
  }

  // The conversation's rows, or, if there are none, what an empty chat shows.
  showRows(rows, status) {
    const wanted = rows.length ? rows : [this.empty(status)];
    const same =
      wanted.length === this.column.children.length && wanted.every((row, i) => row === this.column.children[i]);
    if (same) return; // else what has the focus would lose it
    const { scrollTop } = this.log;
    this.column.replaceChildren(...wanted);
    if (this.following) this.scrollToEnd();
    else this.log.scrollTop = scrollTop; // an empty column has no other place than its top
  }

  empty(status) {
    const { image, text } = DATA.examples;
    const cards = [...(status?.model?.vision ? image : []), ...text].map((example) => this.card(example));
    const name = status?.texts[language].title ?? "";
    return make(
      "div",
      { class: "empty" },
      make("h2", {}, name ? say("ask_model", { name }) : say("chat")),
      make("div", { class: "cards" }, ...cards),
    );
  }

  card(example) {
    const pictures = (example.pictures ?? []).map((file) => make("img", { src: exampleUrl(file), alt: "" }));
    return make(
      "button",
      { type: "button", class: "card", on: { click: ({ detail }) => detail < 2 && this.events.example(example) } },
      pictures.length ? make("span", { class: "pictures" }, ...pictures) : "",
      make("span", {}, example[language]),
    );
  }

  // `parts`: tokens of the context by kind, see inside.js; null if there is no model.
  showFoot(parts, whole) {
    if (!parts) return this.foot.replaceChildren();
    const used = whole - parts.free;
    this.foot.replaceChildren(
      meter(parts, whole),
      make("span", {}, say("context_used", { used: count(used), whole: count(whole) })),
      make("button", { type: "button", class: "keys", on: { click: showShortcuts } }, say("keys")),
    );
  }

  showChip(status, lost) {
    const texts = status?.texts[language];
    const phase = lost ? "lost" : (status?.phase ?? "starting");
    const percent = BUSY.includes(phase) && status ? ` ${Math.round(status.percent)} %` : "";
    const label = lost ? say("away") : texts ? `${texts.title} · ${texts.state}${percent}` : "…";
    this.chip.dataset.phase = phase;
    const [name, ...state] = label.split(" · ");
    this.chip.replaceChildren(
      make("span", { class: state.length ? "name" : "" }, name),
      make("span", {}, state.join(" · ")),
    );
    this.chip.title = texts?.error || texts?.step || label;
    this.chip.disabled = !status || lost;
  }

  // `kind`: "" for an error, "busy" or "quiet" for other news.
  notice(text, kind = "") {
    this.said = text;
    const close = () => this.notice("");
    this.note.replaceChildren(
      ...(text
        ? [
            make(
              "p",
              { class: `notice ${kind}`, role: kind ? "status" : "alert" },
              text,
              iconButton("close", say("close"), close, { class: "small" }),
            ),
          ]
        : []),
    );
  }

  keepAt(element, top) {
    this.log.scrollTop += element.getBoundingClientRect().top - top;
    this.following = false;
    this.scrolled();
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    // Who has not moved up has not left the end: pictures may have got their height before this was called.
    this.following = near || (this.following && scrollTop >= this.top);
    this.top = scrollTop;
    this.toEnd.hidden = this.following;
  }

  // Unless the visitor reads further up.
  scrollToEnd(always = false) {
    if (this.column.querySelector(".empty")) return; // which is read from its top
    if (always) this.following = true;
    if (!this.following) return;
    this.log.scrollTop = this.log.scrollHeight;
    this.top = this.log.scrollTop;
  }

  find() {
    if (getComputedStyle(this.sidebar.element).display === "none") this.toggleSidebar();
    this.sidebar.search.focus();
  }

  toggleSidebar() {
    const open = document.body.classList.toggle("sidebar-open");
    document.body.classList.toggle("sidebar-closed", !open);
    if (open) this.sidebar.search.focus();
  }

  get shown() {
    return this.side.dataset.shown ?? "";
  }

  openPanel(name, again = false) {
    const close = !again && this.shown === name;
    this.side.hidden = close;
    document.body.classList.toggle("panel-open", !close);
    if (close) {
      delete this.side.dataset.shown;
      this.side.replaceChildren(); // what is not shown asks the server for nothing
      return this.bar.querySelector(`[data-drawer=${name}]`)?.focus();
    }
    this.side.dataset.shown = name;
    this.side.setAttribute("aria-label", say(name));
    const head = make(
      "header",
      {},
      make("h2", {}, say(name)),
      iconButton("close", say("close"), () => this.openPanel(name)),
    );
    this.side.replaceChildren(head, this.panels[name].element);
    this.panels[name].show();
    if (!again) head.querySelector("button").focus(); // it comes after the whole conversation
  }

  closeDrawers() {
    if (document.body.classList.contains("sidebar-open")) this.bar.querySelector("button").focus();
    document.body.classList.remove("sidebar-open");
    if (this.shown) this.openPanel(this.shown);
  }

  key(event) {
    if (event.key !== "Escape" || document.querySelector("dialog[open]") || event.defaultPrevented || event.isComposing)
      return;
    if (!this.events.stop()) this.closeDrawers();
  }
}
