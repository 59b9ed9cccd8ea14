// Where in the pictures the model looked when it wrote a token: a dialog with the pictures as it sees them.

import { act, seen } from "./api.js";
import { make } from "./dom.js";
import { dataUrl, toMessages } from "./request.js";
import { picturesOf } from "./store.js";
import { textBefore } from "./tokens.js";
import { say } from "./words.js";

const MEAN = "mean";
const SHARPEST = "sharpest";

// For token `index` of the answer `message` after `path`: a function that opens the dialog.
export async function attentionOf(path, message, index) {
  const { settings } = message;
  const messages = await toMessages(path, settings, message.forgotten ?? 0);
  const begun = textBefore(message, index);
  if (begun) messages.push({ role: "assistant", content: begun });
  const found = await act("attention", { messages, pan_and_scan: settings.pan_and_scan });
  const views = await viewsOf(messages, settings.pan_and_scan);
  return () => new AttentionDialog(message.tokens[index][0], found, views).open();
}

// The pictures that were sent as the model sees them, with their crops, in order.
async function viewsOf(messages, panAndScan) {
  const urls = messages
    .flatMap(({ content }) => (Array.isArray(content) ? content : []))
    .flatMap((part) => (part.image_url ? [part.image_url.url] : []));
  const found = await Promise.all(urls.map((url) => seen(url, panAndScan)));
  return found.flatMap(({ views, grid }, picture) =>
    views.map((url, i) => {
      const name = say("picture_number", { number: picture + 1 });
      return { url, grid, name: i ? `${name}, ${say("crop", { number: i })}` : name };
    }),
  );
}

class AttentionDialog {
  constructor(token, found, views) {
    Object.assign(this, { found, views });
    const { layer, head, images, global_layers } = found;
    const name = (i) => say(global_layers.includes(i) ? "layer_global" : "layer_local", { layer: i + 1 });
    const choices = [
      make("option", { value: SHARPEST }, say("sharpest", { layer: layer + 1, head: head + 1 })),
      make("option", { value: MEAN }, say("all_layers")),
      ...images[0].map((_, i) => make("option", { value: i }, name(i))),
    ];
    this.select = make("select", { "aria-label": say("layer"), on: { change: () => this.draw() } }, ...choices);
    this.shares = make("span", { class: "hint", role: "status" });
    this.canvases = views.map(({ grid }) => make("canvas", { width: grid, height: grid }));
    const panes = views.map(({ url, name }, i) => {
      const pane = make("div", { class: "pane" }, make("img", { src: url, alt: name }), this.canvases[i]);
      return make("figure", { class: "view" }, pane, make("figcaption", {}, name));
    });
    const close = make(
      "button",
      { type: "button", class: "quiet", on: { click: () => this.element.close() } },
      say("close"),
    );
    this.element = make(
      "dialog",
      { class: "attention", "aria-label": say("looked", { token: token.trim() }) },
      make("header", {}, make("h2", {}, say("looked", { token: token.trim() })), close),
      make("p", { class: "hint" }, say("look_about")),
      make("div", { class: "choice" }, this.select, this.shares),
      make("div", { class: "views" }, ...panes),
    );
    this.element.addEventListener("close", () => this.element.remove());
  }

  open() {
    document.body.append(this.element);
    this.draw();
    this.element.showModal();
    const sums = this.views.map((_, i) => this.weights(i).reduce((sum, share) => sum + share, 0));
    const most = sums.indexOf(Math.max(...sums));
    if (most > 0) this.canvases[most].closest("figure").scrollIntoView({ block: "nearest" });
  }

  // Those of a head, of a layer in the mean over its heads, or of all layers in the mean.
  weights(image) {
    const layers = this.found.images[image];
    if (this.select.value === SHARPEST) return this.found.sharpest[image];
    if (this.select.value !== MEAN) return layers[Number(this.select.value)];
    return layers[0].map((_, place) => layers.reduce((sum, layer) => sum + layer[place], 0) / layers.length);
  }

  draw() {
    const weights = this.views.map((_, i) => this.weights(i));
    const most = Math.max(...weights.flat(), 1e-9);
    let whole = 0;
    weights.forEach((values, i) => {
      const context = this.canvases[i].getContext("2d");
      const image = context.createImageData(this.canvases[i].width, this.canvases[i].height);
      values.forEach((value, place) => {
        // What got nothing is darkened, what got most is clear.
        image.data.set([10, 12, 20, 205 * (1 - Math.sqrt(value / most))], 4 * place);
        whole += value;
      });
      context.putImageData(image, 0, 0);
    });
    const percent = (share) => (100 * share).toFixed(share > 0.1 ? 0 : 1);
    this.shares.textContent = say("look_shares", { pictures: percent(whole), text: percent(1 - whole) });
  }
}
