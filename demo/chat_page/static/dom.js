// Creating elements. Text always becomes text nodes, never markup.

// Creates <tag>. Properties with a dash are attributes, `on` maps events to listeners, null children are skipped.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name === "on") Object.entries(value).forEach(([event, listener]) => element.addEventListener(event, listener));
    else if (name === "class") element.className = value;
    else if (name === "role" || name === "list" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Lucide-like line icons of 24 units, drawn here.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  again: "M5 12a7 7 0 1 0 2-5M5 4v4h4",
  go: "M7 5l8 7-8 7M18 5v14",
  undo: "M9 14L4 9l5-5M4 9h10a5 5 0 0 1 0 10h-3",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  close: "M6 6l12 12M18 6L6 18",
  eye: "M3 12s3-6 9-6 9 6 9 6-3 6-9 6-9-6-9-6zM12 9.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5",
  sliders: "M5 7h8M17 7h2M15 5v4M5 12h2M11 12h8M9 10v4M5 17h10M19 17h0M17 15v4",
  clip: "M18 11l-7 7a4 4 0 0 1-6-6l8-8a3 3 0 0 1 4 4l-8 8a1 1 0 0 1-2-2l7-7",
  camera: "M4 8h4l2-3h4l2 3h4v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7",
  code: "M9 8l-5 4 5 4M15 8l5 4-5 4",
  compare: "M5 5h5v14H5zM14 5h5v14h-5z",
  search: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12M16 16l4 4",
  down: "M12 5v13M6 13l6 6 6-6",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }))
    svg.setAttribute(key, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// A button with an icon, whose name is for screen readers and the tooltip.
export function iconButton(name, label, click, properties = {}) {
  return make(
    "button",
    {
      type: "button",
      title: label,
      "aria-label": label,
      on: { click },
      ...properties,
      class: `icon-button ${properties.class ?? ""}`,
    },
    icon(name),
  );
}

// Copies text, also where the page has no secure origin and so no clipboard API.
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = make("textarea", { value: text, class: "offscreen" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

export function download(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Random hexadecimal digits: crypto.randomUUID is missing where the origin is not secure.
export const randomId = () =>
  [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
