// Seeing inside: the context, what the model sees of the pictures, the tokens that are sent, the machine.

import { make } from "./dom.js";
import { seen, SOFT, tokenize } from "./api.js";
import { dataUrl, toPrompt } from "./request.js";
import { picturesOf } from "./store.js";
import { Prediction } from "./prediction.js";
import { count, say } from "./words.js";

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(size) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(1, size)) / 3));
  return `${(size / 1000 ** power).toFixed(power ? 1 : 0)} ${UNITS[power]}`;
}

// The share of a bar, with its name and number.
function segment(kind, size, whole) {
  const part = make("i", { class: kind, title: `${say(kind)}: ${count(size)}` });
  part.style.width = `${(100 * size) / whole}%`;
  return part;
}

export function meter(parts, whole) {
  const label = Object.entries(parts)
    .map(([kind, size]) => `${say(kind)} ${count(size)}`)
    .join(", ");
  return make(
    "div",
    { class: "meter", role: "img", "aria-label": label },
    ...Object.entries(parts).map(([kind, size]) => segment(kind, size, whole)),
  );
}

// Tokens of the context after `path`, by kind; those of pictures that are `attached` to the prompt are the least.
export function contextParts(path, model, attached) {
  const last = [...path].reverse().find((message) => message.usage);
  const used = last ? last.usage.prompt + (last.written ?? 0) : 0;
  const soft = model.vision ? model.vision.soft : 0;
  const at = last ? path.slice(0, path.indexOf(last)) : [];
  const questions = at.filter((message) => message.role === "user").slice(last?.forgotten ?? 0);
  const sent = last?.usage.pictures ?? questions.flatMap(picturesOf).length;
  const pictures = Math.min(used, last?.usage.soft ?? sent * soft);
  const more = attached * soft;
  const parts = { text: used - pictures, pictures, ...(more ? { attached: more } : {}) };
  return { ...parts, free: Math.max(0, model.context - used - more) };
}

export class Inside {
  constructor(page) {
    this.page = page;
    this.element = make("div", { class: "inside" });
    this.sections = {};
    this.prediction = new Prediction(
      () => this.page.tree.path().findLast((message) => message.speed > 0 && this.isOfLoaded(message))?.speed ?? null,
    );
    this.lay();
  }

  // Whether the model that is loaded has written it.
  isOfLoaded(message) {
    return (message.checkpoint ?? this.page.status.checkpoint) === this.page.status.checkpoint;
  }

  lay() {
    const section = (key) => {
      const body = make("div");
      this.sections[key] = body;
      return make("section", { "data-section": key }, make("h3", {}, say(`inside_${key}`)), body);
    };
    this.element.replaceChildren(...["context", "pictures", "sequence", "machine"].map(section));
    this.bare = false;
    this.shownFor = null;
    this.machine = make("div");
    this.prediction.translate();
    this.sections.machine.append(this.machine, this.prediction.element);
    this.show();
  }

  // Everything that is cheap; what asks the server only if the conversation or the settings have changed.
  async show() {
    const { tree, status } = this.page;
    const model = status?.model;
    if (!this.element.isConnected) return;
    if (!model) {
      this.element.replaceChildren(make("p", { class: "hint" }, say("not_loaded")));
      this.bare = true;
      return;
    }
    if (this.bare) return this.lay();
    const path = tree.path();
    this.showContext(path, model);
    this.showMachine(model);
    const key = JSON.stringify([
      tree.conversation.id,
      path.map(({ id, state, text }) => [id, state, text?.length]),
      this.page.settings.system,
      this.page.settings.pan_and_scan,
    ]);
    if (key === this.shownFor || path.at(-1)?.state === "writing") return;
    this.shownFor = key;
    await Promise.all([this.showPictures(path, model), this.showSequence(path)]);
  }

  showContext(path, model) {
    const parts = this.page.contextParts(model);
    const last = [...path].reverse().find((message) => message.usage);
    const facts = [
      ...Object.entries(parts).map(([kind, size]) => [say(kind), count(size)]),
      [say("context_whole"), count(model.context)],
    ];
    if (last)
      facts.push([say("from_cache"), say("of", { part: count(last.usage.cached), whole: count(last.usage.prompt) })]);
    if (last?.saved > 0.005) facts.push([say("saved_label"), `${last.saved.toFixed(2)} s`]);
    if (last?.forgotten) facts.push([say("forgotten_label"), count(last.forgotten)]);
    this.sections.context.replaceChildren(
      meter(parts, model.context),
      table(facts),
      make("p", { class: "hint" }, say("context_about")),
    );
  }

  showMachine(model) {
    const { occupancy, memory, mesh } = model;
    const whole = Object.values(memory).reduce((sum, size) => sum + size, 0);
    const facts = [
      [say("devices"), model.devices],
      [say("mesh"), say("mesh_value", { data: mesh[0], model: mesh[1] })],
      [say("precision"), model.dtype],
      [say("rows"), say("of", { part: occupancy.running, whole: model.rows })],
      [say("in_line"), count(occupancy.waiting)],
      [say("cache_pages"), say("pages", { needed: occupancy.needed, kept: occupancy.kept, free: occupancy.free })],
      ...Object.entries(memory).map(([name, size]) => [say(`memory_${name}`), bytes(size)]),
      [say("memory_whole"), bytes(whole)],
    ];
    this.machine.replaceChildren(table(facts), make("p", { class: "hint" }, say("machine_about")));
    this.prediction.lay(this.page.status);
  }

  async showPictures(path, model) {
    const place = this.sections.pictures;
    const pictures = [...new Set(path.flatMap(picturesOf))];
    if (!model.vision || !pictures.length)
      return place.replaceChildren(make("p", { class: "hint" }, say(model.vision ? "no_pictures" : "no_vision")));
    const current = this.shownFor;
    const shown = [];
    for (const id of pictures) {
      try {
        const url = await dataUrl(id);
        if (!url) {
          shown.push(make("p", { class: "hint" }, say("picture_gone")));
          continue;
        }
        const found = await seen(url, this.page.settings.pan_and_scan);
        const views = found.views.map((url, i) =>
          grid(url, found.grid, say(i ? "crop" : "whole_picture", { number: i })),
        );
        shown.push(
          make(
            "p",
            { class: "hint" },
            say("seen_about", { width: found.width, height: found.height, side: found.side, soft: found.grid ** 2 }),
          ),
          ...views,
        );
      } catch (error) {
        shown.push(make("p", { class: "notice" }, error.message));
      }
    }
    if (this.shownFor === current) place.replaceChildren(...shown);
  }

  async showSequence(path) {
    const place = this.sections.sequence;
    if (!path.length) return place.replaceChildren(make("p", { class: "hint" }, say("nothing_sent")));
    const shown = this.shownFor;
    try {
      const found = await tokenize(await toPrompt(path, this.page.settings));
      if (this.shownFor !== shown) return; // of a conversation that is no longer shown
      const about = make("p", { class: "hint" }, say("sequence_about", { count: count(found.count) }));
      place.replaceChildren(about, sequence(found));
    } catch (error) {
      this.shownFor = null; // it is tried again
      place.replaceChildren(make("p", { class: "notice" }, error.message));
    }
  }
}

function table(facts) {
  return make(
    "dl",
    { class: "facts" },
    ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
  );
}

// A picture under the grid of its soft tokens.
export function grid(url, side, caption) {
  const lines = make("span", { class: "grid", "aria-hidden": "true" });
  lines.style.setProperty("--side", side);
  return make(
    "figure",
    { class: "view" },
    make("div", { class: "pane" }, make("img", { src: url, alt: caption }), lines),
    make("figcaption", {}, caption),
  );
}

function sequence({ tokens, token_strs }) {
  const chips = [];
  for (let i = 0; i < tokens.length; i++) {
    if (tokens[i] === SOFT) {
      let end = i;
      while (tokens[end] === SOFT) end += 1;
      chips.push(make("span", { class: "chip soft" }, say("soft_tokens", { count: end - i })));
      i = end - 1;
    } else {
      const special = /^<[a-z_]+>$/.test(token_strs[i]);
      chips.push(
        make(
          "span",
          { class: special ? "chip special" : "chip", title: `${tokens[i]}` },
          token_strs[i].replaceAll("\n", "↵\n") || "∅",
        ),
      );
    }
  }
  return make("div", { class: "sequence", tabIndex: 0 }, ...chips);
}
