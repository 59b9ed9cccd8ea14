// The prompt at the foot of the page, with its pictures.

import { icon, iconButton, make } from "./dom.js";
import { addFiles, MOST, takePicture } from "./media.js";
import { thumbnail } from "./pictures.js";
import { say } from "./words.js";

const DOUBLE_CLICK = 500; // milliseconds
const MARK = /\[(?:picture|图片) (\d+)\]/g; // where in the text a picture is shown

export class Composer {
  // `events`: send(parts), stop(), draft(), attached(), problem(text), busy(text, stays), edit() for the last question
  constructor(events) {
    this.events = events;
    this.pictures = [];
    this.element = make("form", { class: "composer", on: { submit: (event) => this.submit(event) } });
    this.field = make("textarea", { rows: 1, on: { input: () => this.typed(), keydown: (event) => this.key(event) } });
    this.strip = make("div", { class: "strip" });
    this.chooser = make("input", {
      type: "file",
      multiple: true,
      accept: "image/*,.heic,.heif,.avif,application/pdf,video/*",
      hidden: true,
      on: { change: () => this.choose() },
    });
    this.shooter = make("input", {
      type: "file",
      accept: "image/*",
      hidden: true,
      on: { change: () => this.choose(this.shooter) },
    });
    this.shooter.setAttribute("capture", "environment");
    this.extra = make("span", { class: "extra" }); // buttons of the page
    this.above = make("div"); // and what they show
    this.lay();
    document.addEventListener("paste", (event) => this.paste(event));
    document.addEventListener("dragover", (event) => this.dragged(event, true));
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && this.dragged(event, false));
    document.addEventListener("drop", (event) => this.drop(event));
  }

  lay() {
    const { field } = this;
    field.placeholder = say("prompt");
    field.setAttribute("aria-label", say("prompt"));
    this.sending = make("button", { class: "send", title: say("send"), "aria-label": say("send") }, icon("send"));
    this.stopping = make(
      "button",
      {
        type: "button",
        class: "send stop",
        hidden: true,
        title: say("stop_answer"),
        "aria-label": say("stop_answer"),
        // It takes the place of the button that sends: the second press of a double click stops nothing.
        on: { click: () => performance.now() - this.busySince > DOUBLE_CLICK && this.events.stop() },
      },
      icon("stop"),
    );
    const row = make(
      "div",
      { class: "row" },
      iconButton("clip", say("attach"), () => this.chooser.click()),
      iconButton("camera", say("camera"), () => this.camera()),
      this.extra,
      make("span", { class: "grow" }),
      this.sending,
      this.stopping,
    );
    this.element.replaceChildren(this.above, this.strip, field, row, this.chooser, this.shooter);
    this.showStrip();
    this.setBusy(this.busy ?? false);
  }

  get draft() {
    return { text: this.field.value, pictures: [...this.pictures] };
  }

  fill({ text = "", pictures = [] } = {}) {
    this.field.value = text;
    this.pictures = [...pictures];
    this.showStrip();
    this.fit();
  }

  // Beside what is typed already.
  add({ text, pictures }) {
    const { draft } = this;
    const mark = (_, number) => say("picture_mark", { number: Number(number) + draft.pictures.length });
    this.fill({
      text: [draft.text, text.replace(MARK, mark)].filter(Boolean).join("\n\n"),
      pictures: [...draft.pictures, ...pictures],
    });
  }

  focus() {
    if (matchMedia("(hover: hover) and (pointer: fine)").matches) this.field.focus({ preventScroll: true });
  }

  setBusy(busy) {
    if (busy && !this.busy) this.busySince = performance.now();
    this.busy = busy;
    this.stopping.hidden = !busy;
    this.sending.hidden = busy;
  }

  typed() {
    this.fit();
    this.events.draft();
  }

  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * 0.3)}px`;
  }

  key(event) {
    const { text, pictures } = this.draft;
    if (event.key === "ArrowUp" && !text && !pictures.length && !event.isComposing) {
      event.preventDefault();
      this.events.edit();
    }
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.submit(event);
  }

  submit(event) {
    event.preventDefault();
    const { text, pictures } = this.draft;
    if (!text.trim() && !pictures.length) return this.events.problem(say("empty"));
    this.events.send(toParts(text, pictures));
  }

  async choose(input = this.chooser) {
    const files = [...input.files];
    input.value = "";
    await this.addFiles(files);
  }

  async camera() {
    if (!navigator.mediaDevices || matchMedia("(pointer: coarse)").matches) return this.shooter.click();
    try {
      const id = await takePicture();
      if (id) this.attach([id]);
    } catch (error) {
      this.events.problem(say("no_camera", { error: error.message }));
    }
  }

  paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    if (!event.clipboardData.types.includes("text/plain")) event.preventDefault(); // else the text is wanted too
    this.addFiles(files);
  }

  dragged(event, over) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", over);
  }

  drop(event) {
    document.body.classList.remove("dropping");
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.addFiles(files);
  }

  async addFiles(files) {
    this.events.problem("");
    const busy = (text, stays) => this.events.busy(text, stays);
    const { place } = this;
    let moved = false; // whether another conversation was opened while the files were read
    const attach = (ids) => {
      moved ||= place !== this.place;
      if (!moved) this.attach(ids);
    };
    const room = MOST - this.pictures.length;
    const problems = await addFiles(files, room, { busy, chooseFrames, attach });
    if (moved) problems.push(say("attached_nowhere"));
    if (problems.length) this.events.problem(problems.join(" "));
  }

  attach(ids) {
    this.pictures.push(...ids);
    this.showStrip();
    this.events.draft();
    this.focus();
  }

  showStrip() {
    this.strip.hidden = !this.pictures.length;
    this.strip.replaceChildren(
      ...this.pictures.map((id, i) => {
        const name = say("picture_number", { number: i + 1 });
        const insert = make(
          "button",
          {
            type: "button",
            class: "insert",
            title: say("insert"),
            "aria-label": `${name}: ${say("insert")}`,
            on: { click: () => this.insert(i + 1) },
          },
          thumbnail(id, name),
          make("span", {}, String(i + 1)),
        );
        const drop = iconButton("close", `${say("remove")}: ${name}`, () => this.detach(i), { class: "small" });
        return make("div", { class: "attached" }, insert, drop);
      }),
    );
    this.events.attached();
  }

  insert(number) {
    const { selectionStart, selectionEnd } = this.field;
    this.field.setRangeText(say("picture_mark", { number }), selectionStart, selectionEnd, "end");
    this.typed();
    this.field.focus();
  }

  detach(index) {
    this.pictures.splice(index, 1);
    this.showStrip();
    this.events.draft();
    this.focus();
  }
}

// Pictures whose mark is in the text stand there, the others before it.
export function toParts(text, pictures) {
  const marked = new Set();
  const inline = [];
  let end = 0;
  for (const match of text.matchAll(MARK)) {
    const id = pictures[Number(match[1]) - 1];
    if (id === undefined || marked.has(id)) continue;
    marked.add(id);
    inline.push({ text: text.slice(end, match.index) }, { picture: id });
    end = match.index + match[0].length;
  }
  inline.push({ text: text.slice(end) });
  const before = pictures.filter((id) => !marked.has(id)).map((picture) => ({ picture }));
  return [...before, ...inline.filter((part) => part.picture || part.text)];
}

// The other way round: the text and pictures of a message, to be edited.
export function fromParts(parts) {
  const pictures = parts.filter((part) => part.picture).map((part) => part.picture);
  const firstText = parts.findIndex((part) => part.text !== undefined);
  let number = 0;
  const text = parts.map((part, i) => {
    if (part.text !== undefined) return part.text;
    number += 1;
    return firstText >= 0 && i > firstText ? say("picture_mark", { number }) : "";
  });
  return { text: text.join(""), pictures };
}

// How many frames of a video to take, by a slider.
function chooseFrames(name, seconds, room) {
  const most = Math.min(room, MOST);
  const value = Math.min(8, most);
  const label = make("output", {}, say("frames", { count: value }));
  const range = make("input", {
    type: "range",
    min: 1,
    max: most,
    value,
    "aria-label": say("frames", { count: value }),
    on: { input: () => (label.textContent = say("frames", { count: range.value })) },
  });
  const dialog = make("dialog", { class: "choose", "aria-label": say("video") });
  return new Promise((resolve) => {
    const close = (count) => {
      resolve(count);
      dialog.remove();
    };
    const buttons = make(
      "div",
      { class: "buttons" },
      make("button", { type: "button", on: { click: () => close(0) } }, say("cancel")),
      make(
        "button",
        { type: "button", class: "primary", on: { click: () => close(Number(range.value)) } },
        say("take"),
      ),
    );
    dialog.append(make("p", {}, say("video_about", { name, seconds: seconds.toFixed(1) })), range, label, buttons);
    dialog.addEventListener("cancel", () => close(0));
    document.body.append(dialog);
    dialog.showModal();
  });
}
