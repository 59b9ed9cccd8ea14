// The page's data (see build.py), and its texts in the visitor's language.

const DATA = JSON.parse(document.getElementById("data").textContent);
const LANGUAGES = Object.keys(DATA.languages);
const spoken = new Set(); // called when the language changes
let language = LANGUAGES.find((code) => navigator.language.toLowerCase().startsWith(code)) ?? LANGUAGES[0];

// The text `key` of demo/texts.py with its {placeholders} filled in.
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

// The reason why there is no answer. `words` returns it in the current language.
class Refusal extends Error {
  constructor(words) {
    super(words());
    this.words = words;
  }
}
