// Markdown of an answer as nodes: parsed by marked, formulas by Temml, cleaned by DOMPurify. Nothing is loaded from
// elsewhere: a picture in the Markdown becomes a link.

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.mjs";
import { colour } from "./code.js";
import { copyText, icon, make } from "./dom.js";
import { say } from "./words.js";

const FORMULAS = [
  { open: "$$", close: "$$", display: true },
  { open: "\\[", close: "\\]", display: true },
  { open: "\\(", close: "\\)", display: false },
];
const PARSE_SHARE = 8; // a growing answer is parsed for at most a ninth of the time
let temml = null; // is loaded when a formula first comes
let loading = null;

function loadTemml() {
  loading ??= new Promise((resolve) => {
    const script = make("script", { src: "static/vendor/temml.min.js" });
    script.addEventListener("load", () => resolve((temml = window.temml)));
    document.head.append(script);
  });
  return loading;
}

function formula(source, display) {
  if (!temml) return escapeHtml(source);
  return temml.renderToString(source, { displayMode: display, throwOnError: false, trust: false, maxExpand: 500 });
}

const escapeHtml = (text) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);

// The formula at the beginning of `text`. A dollar sign before a space, or after which a digit comes, is money.
function formulaAt(text) {
  for (const { open, close, display } of FORMULAS) {
    if (!text.startsWith(open)) continue;
    const end = text.indexOf(close, open.length);
    if (end > open.length)
      return { raw: text.slice(0, end + close.length), source: text.slice(open.length, end), display };
  }
  const inline = /^\$(?!\s)((?:\\.|[^\\$\n])+?)(?<!\s)\$(?!\d)/.exec(text);
  return inline && { raw: inline[0], source: inline[1], display: false };
}

const extension = {
  name: "formula",
  level: "inline",
  start: (text) => {
    const found = text.search(/\$|\\\[|\\\(/);
    return found < 0 ? undefined : found;
  },
  tokenizer: (text) => {
    const found = formulaAt(text);
    return found ? { type: "formula", ...found } : undefined;
  },
  renderer: (token) =>
    `<span class="${token.display ? "formula display" : "formula"}">${formula(token.source, token.display)}</span>`,
};
const block = {
  ...extension,
  name: "formulaBlock",
  level: "block",
  start: (text) => {
    const found = text.search(/^(?:\$\$|\\\[)/m);
    return found < 0 ? undefined : found;
  },
  tokenizer: (text) => {
    const found = formulaAt(text);
    const alone = found?.display && /^[ \t]*(?:\n|$)/.test(text.slice(found.raw.length));
    return alone ? { type: "formulaBlock", ...found } : undefined;
  },
  renderer: (token) => `<p class="formula display">${formula(token.source, true)}</p>`,
};
const renderer = {
  image: ({ href, text }) => `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`,
  checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  html: ({ text }) => escapeHtml(text), // tags in an answer are shown as they are
};
const marked = new Marked({ gfm: true, breaks: false, extensions: [extension, block], renderer });
const CLEAN = {
  USE_PROFILES: { html: true, mathMl: true },
  ADD_ATTR: ["target"],
  FORBID_TAGS: ["img", "style", "form", "input", "video", "audio"],
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
});

// Fills `element` with `text`; again once formulas can be shown.
// While it `grows` it is parsed as often as its length allows.
export function renderMarkdown(element, text, grows = false) {
  const wait = grows ? (element.next ?? 0) - performance.now() : 0;
  if (wait > 0) {
    element.markdown = text;
    element.later ??= setTimeout(() => {
      element.later = null; // what came meanwhile is shown though nothing may follow
      if (element.isConnected) renderMarkdown(element, element.markdown, true);
    }, wait);
    return;
  }
  if (!temml && /\$|\\\[|\\\(/.test(text))
    loadTemml().then(() => element.isConnected && element.markdown !== null && fill(element, element.markdown));
  leaveMarkdown(element);
  element.markdown = text;
  const began = performance.now();
  fill(element, text);
  element.next = performance.now() + PARSE_SHARE * (performance.now() - began);
}

// Nothing more is filled into `element`, which may show something else.
export function leaveMarkdown(element) {
  clearTimeout(element.later);
  element.later = element.markdown = null;
}

function fill(element, text) {
  let content;
  try {
    content = DOMPurify.sanitize(marked.parse(text), CLEAN);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return element.replaceChildren(make("div", { class: "typed" }, text)); // nested too deep for the stack
  }
  for (const item of content.querySelectorAll("p, li, h1, h2, h3, h4, h5, h6, blockquote, td, th")) item.dir = "auto";
  for (const pre of content.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre.cloneNode(true)));
  for (const table of content.querySelectorAll("table")) {
    const scroller = make("div", { class: "table", tabIndex: 0 });
    table.replaceWith(scroller);
    scroller.append(table);
  }
  element.replaceChildren(content);
}

function codeBlock(pre) {
  const language = /language-(\S+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  const button = make(
    "button",
    { type: "button", class: "quiet", on: { click: () => copyText(pre.textContent) } },
    icon("copy"),
    say("copy_code"),
  );
  if (pre.firstElementChild) colour(pre.firstElementChild, language);
  pre.tabIndex = 0; // to be scrolled by keys
  return make("figure", { class: "code" }, make("figcaption", {}, make("span", {}, language), button), pre);
}
