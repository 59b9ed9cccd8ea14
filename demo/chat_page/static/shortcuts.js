// Keyboard shortcuts, and the dialog that lists them.

import { make } from "./dom.js";
import { say } from "./words.js";

const APPLE = /Mac|iPhone|iPad/.test(navigator.platform);
const COMMAND = APPLE ? "⌘" : "Ctrl";
// `code`: a key with Ctrl or ⌘, whatever the keyboard's language; `key`: what it writes, alone where nothing is typed.
const SHORTCUTS = [
  { name: "find", keys: [COMMAND, "K"], code: "KeyK" },
  { name: "create", keys: [COMMAND, "Shift", "O"], code: "KeyO", shift: true },
  { name: "again", keys: [COMMAND, "Shift", "Enter"], code: "Enter", shift: true },
  { name: "edit", keys: ["↑"] }, // the prompt's own
  { name: "prompt", keys: ["/"], key: "/" },
  { name: "list", keys: [COMMAND, "/"], key: "/", command: true },
];
const FIXED = [
  ["Enter", "keys_send"],
  ["Shift+Enter", "keys_line"],
  ["Esc", "keys_stop"],
];

// `acts`: name → what the shortcut does.
export function listen(acts) {
  const all = { ...acts, list: showShortcuts };
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.altKey || document.querySelector("dialog[open]")) return;
    const found = SHORTCUTS.find((shortcut) => fits(shortcut, event));
    if (!found) return;
    event.preventDefault(); // which would open the browser's own search
    all[found.name]();
  });
}

function fits({ code, key, command: wanted = false, shift = false }, event) {
  const command = APPLE ? event.metaKey : event.ctrlKey;
  if (code) return command && event.code === code && event.shiftKey === shift;
  const typing = event.target.closest?.("input, textarea, select");
  return key !== undefined && event.key === key && (wanted ? command : !event.ctrlKey && !event.metaKey && !typing);
}

export function showShortcuts() {
  const dialog = make("dialog", { class: "keys", "aria-label": say("shortcuts") });
  const row = (keys, text) => [make("dt", {}, ...keys.map((key) => make("kbd", {}, key))), make("dd", {}, text)];
  dialog.append(
    make(
      "header",
      {},
      make("h2", {}, say("shortcuts")),
      make("button", { type: "button", class: "quiet", on: { click: () => dialog.close() } }, say("close")),
    ),
    make(
      "dl",
      { class: "facts" },
      ...FIXED.flatMap(([keys, text]) => row(keys.split("+"), say(text))),
      ...SHORTCUTS.flatMap(({ name, keys }) => row(keys, say(`keys_${name}`))),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
