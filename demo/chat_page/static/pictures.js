// Thumbnails of stored pictures.

import { make } from "./dom.js";
import { get } from "./store.js";
import { say } from "./words.js";

const addresses = new Map(); // picture → blob URL

async function address(id) {
  if (!addresses.has(id)) {
    const record = await get("pictures", id);
    addresses.set(id, record ? { url: URL.createObjectURL(record.blob), name: record.name } : null);
  }
  return addresses.get(id);
}

// Lets the browser free what was shown.
export function release() {
  for (const found of addresses.values()) if (found) URL.revokeObjectURL(found.url);
  addresses.clear();
}

// An <img> of a stored picture; a tile with its name where the browser cannot show it, as with HEIC.
export function thumbnail(id, alt) {
  const image = make("img", { alt, class: "thumbnail" });
  const tile = (text) => image.replaceWith(make("span", { class: "tile", role: "img", "aria-label": text }, text));
  address(id).then((found) => {
    if (!found) return tile(say("picture_gone"));
    image.title = found.name;
    image.onerror = () => tile(found.name || alt);
    image.src = found.url;
  });
  return image;
}

// The picture in its full size, over the page.
export async function enlarge(id) {
  const found = await address(id);
  if (!found) return;
  const dialog = make("dialog", {
    class: "large",
    "aria-label": say("picture"),
    on: { click: () => dialog.close(), close: () => dialog.remove() },
  });
  dialog.append(
    make("button", { type: "button", class: "close", autofocus: true, "aria-label": say("close") }, "×"),
    make("img", { src: found.url, alt: say("picture") }),
  );
  document.body.append(dialog);
  dialog.showModal();
}
