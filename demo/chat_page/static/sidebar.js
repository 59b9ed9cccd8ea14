// The list of conversations: search, open, rename, delete, export, import.

import { icon, iconButton, make } from "./dom.js";
import { say } from "./words.js";

export class Sidebar {
  // `events`: open(id), create(), remove(id), rename(id, title), exportOne(id), exportAll(), importFiles(files),
  // texts(): the text of each conversation, in lower case.
  constructor(events) {
    this.events = events;
    this.conversations = [];
    this.texts = new Map(); // as they were when the search began
    this.element = make("aside", { class: "sidebar" });
    this.list = make("ul", { class: "list" });
    const keydown = (event) => event.key === "Escape" && event.stopPropagation(); // it empties the field
    this.search = make("input", { type: "search", on: { input: () => this.find(), keydown } });
    this.file = make("input", {
      type: "file",
      accept: "application/json,.json",
      multiple: true,
      hidden: true,
      on: { change: () => this.take() },
    });
    this.lay();
  }

  lay() {
    this.element.setAttribute("aria-label", say("conversations"));
    this.search.placeholder = say("search");
    this.search.setAttribute("aria-label", say("search"));
    const create = make(
      "button",
      { type: "button", class: "new", on: { click: () => this.events.create() } },
      icon("plus"),
      say("new"),
    );
    const foot = make(
      "div",
      { class: "foot" },
      make(
        "button",
        { type: "button", class: "quiet", on: { click: () => this.events.exportAll() } },
        say("export_all"),
      ),
      make("button", { type: "button", class: "quiet", on: { click: () => this.file.click() } }, say("import")),
      this.file,
    );
    this.note = make("p", { class: "hint" });
    this.element.replaceChildren(create, this.search, this.list, this.note, foot);
    this.show();
  }

  set(conversations, current, kept) {
    Object.assign(this, { conversations, current, kept });
    this.show();
  }

  async find() {
    if (this.search.value) this.texts = await this.events.texts();
    this.show();
  }

  show() {
    if (this.list.querySelector("input")) return; // a title is being typed
    const wanted = this.search.value.trim().toLowerCase();
    const fits = ({ id, title }) =>
      !wanted || title.toLowerCase().includes(wanted) || this.texts.get(id)?.includes(wanted);
    const found = this.conversations.filter(fits).sort((a, b) => b.changed - a.changed);
    const key = JSON.stringify([
      document.documentElement.lang,
      this.current,
      found.map(({ id, title }) => [id, title]),
    ]);
    if (key !== this.shown) {
      const focused = this.rows.findIndex((row) => row.contains(document.activeElement));
      this.list.replaceChildren(...found.map((one) => this.row(one)));
      this.focus(focused);
    }
    this.shown = key;
    this.note.textContent = this.kept === false ? say("not_kept") : wanted && !found.length ? say("nothing_found") : "";
  }

  get rows() {
    return [...this.list.children];
  }

  focus(index) {
    this.rows[index]?.querySelector(".open").focus();
  }

  row(conversation) {
    const { id, title } = conversation;
    const open = make(
      "button",
      {
        type: "button",
        class: "open",
        "aria-current": id === this.current,
        on: { click: () => this.events.open(id), dblclick: () => this.rename(row, conversation) },
      },
      title || say("untitled"),
    );
    const tools = make(
      "span",
      { class: "tools" },
      iconButton("edit", `${say("rename")}: ${title}`, () => this.rename(row, conversation), { class: "small" }),
      iconButton("down", `${say("export")}: ${title}`, () => this.events.exportOne(id), { class: "small" }),
      iconButton(
        "trash",
        `${say("delete")}: ${title}`,
        () => confirm(say("delete_sure", { title: title || say("untitled") })) && this.events.remove(id),
        { class: "small" },
      ),
    );
    const row = make("li", {}, open, tools);
    return row;
  }

  rename(row, { id, title }) {
    const field = make("input", { value: title, "aria-label": say("rename") });
    const done = (keep, left = false) => {
      const at = this.rows.indexOf(row);
      field.removeEventListener("blur", leave);
      field.remove();
      this.shown = null;
      this.show();
      if (!left) this.focus(at);
      if (keep && field.value.trim() && field.value.trim() !== title) this.events.rename(id, field.value.trim());
    };
    const leave = () => done(true, true);
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault(); // Escape would stop an answer
      done(event.key === "Enter");
    });
    field.addEventListener("blur", leave);
    row.replaceChildren(field);
    field.select();
  }

  take() {
    const files = [...this.file.files];
    this.file.value = "";
    this.events.importFiles(files);
  }
}
