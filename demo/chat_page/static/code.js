// Colours in code, by highlight.js, which is loaded when code in a named language first comes.

import DOMPurify from "./vendor/purify.es.mjs";

const LONGEST = 50_000; // characters that are coloured: more would keep the page waiting
const SPANS = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };
let highlighter = null;
let loading = null;

function load() {
  loading ??= import("./vendor/highlight.min.js").then(
    (module) => (highlighter = module.default),
    () => (loading = null), // code stays as it is; the next block tries again
  );
  return loading;
}

// Colours the text of `element`, now or once that is possible. What is in no known language stays as it is.
export function colour(element, language) {
  if (!language || element.textContent.length > LONGEST) return;
  if (!highlighter) return load().then(() => highlighter && colour(element, language));
  if (!highlighter.getLanguage(language)) return;
  const { value } = highlighter.highlight(element.textContent, { language, ignoreIllegals: true });
  element.replaceChildren(DOMPurify.sanitize(value, SPANS));
}
