// What the page is made of (see build.py), and its texts in the visitor's language.

const DATA = JSON.parse(document.getElementById("data").textContent);
const LANGUAGES = Object.keys(DATA.languages);
const spoken = new Set(); // functions that say something again when the language changes
let language = LANGUAGES.find((code) => navigator.language.toLowerCase().startsWith(code)) ?? LANGUAGES[0];

// The text `key` of demo/texts.py, with its {…} filled in.
function say(key, values = {}) {
  const text = DATA.texts[key][LANGUAGES.indexOf(language)];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Calls `speak` now and whenever the language changes.
function inEveryLanguage(speak) {
  spoken.add(speak);
  speak();
}

function setLanguage(code) {
  language = code;
  document.documentElement.lang = code;
  spoken.forEach((speak) => speak());
}

// What stands in the way of an answer. `words` says it, in the language of the moment.
class Refusal extends Error {
  constructor(words) {
    super(words());
    this.words = words;
  }
}
