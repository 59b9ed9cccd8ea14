// The data that came with the page, and its texts in the visitor's language.

export const DATA = JSON.parse(document.getElementById("data").textContent);
export const LANGUAGES = Object.keys(DATA.languages);
export const framed = window.parent !== window;
export const ADDRESS = DATA.address ?? location.origin + location.pathname; // a recording has that of a demo
// A recording has the examples' pictures in it.
export const exampleUrl = (file) => DATA.pictures?.[file] ?? `examples/${file}`;
const KEY = "gemma-tpu chat language";
const listeners = new Set();
export let language = LANGUAGES[0];

// The text `key` of texts.py with its {placeholders} filled in.
export function say(key, values = {}) {
  const texts = DATA.texts[key];
  if (!texts) throw new Error(`no text ${key}`);
  return texts[LANGUAGES.indexOf(language)].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const count = (number) => Math.round(number).toLocaleString(language);

export function onLanguage(listener) {
  listeners.add(listener);
}

export function setLanguage(code) {
  if (!LANGUAGES.includes(code)) return;
  language = code;
  document.documentElement.lang = code;
  remember(code);
  listeners.forEach((listener) => listener());
}

function remember(code) {
  try {
    localStorage.setItem(KEY, code);
  } catch {} // storage may be forbidden
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

// Inside the demo's page, the language and the colours are that page's.
export function followParent() {
  const parent = framed ? accessible() : null;
  if (!parent) {
    const own = LANGUAGES.find((code) => navigator.language.toLowerCase().startsWith(code));
    setLanguage(stored() ?? own ?? LANGUAGES[0]);
    return;
  }
  const follow = () => {
    const dark = parent.querySelector(":is(html, body).dark") !== null;
    document.documentElement.classList.toggle("dark", dark);
    document.documentElement.classList.toggle("light", !dark);
    const code = parent.documentElement.lang;
    if (code !== language || !document.documentElement.lang) setLanguage(code);
  };
  new MutationObserver(follow).observe(parent.documentElement, {
    attributes: true,
    attributeFilter: ["lang", "class"],
  });
  new MutationObserver(follow).observe(parent.body, { attributes: true, attributeFilter: ["class"] });
  setLanguage(LANGUAGES[0]);
  follow();
}

function accessible() {
  try {
    return window.parent.document;
  } catch {
    return null; // a notebook service's page
  }
}
