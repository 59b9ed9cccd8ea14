// What a file or link says is a conversation, made anew from what is known and has the right type.

import { defaultSettings, NUMBERS } from "./settings.js";
import { say } from "./words.js";

const MOST_TEXT = 4_000_000; // characters of a message
const PICTURE = /^data:image\/[a-z0-9.+-]+;base64,[A-Za-z0-9+/=\s]*$/;

const wrong = () => new Error(say("not_an_export"));
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const text = (value) => {
  if (typeof value !== "string" || value.length > MOST_TEXT) throw wrong();
  return value;
};
const list = (value, each) => {
  if (!Array.isArray(value)) throw wrong();
  return value.map(each);
};
const number = (value) => (value >= 0 && value <= Number.MAX_SAFE_INTEGER ? value : undefined);

// Only those keys that have a value.
const only = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

// Settings; what is missing or of another type is as by default. `null` where there are none.
export function checkedSettings(given) {
  if (!isObject(given)) return null;
  const settings = defaultSettings(null);
  for (const [name, value] of Object.entries(settings)) {
    const found = given[name];
    if (name === "seed") settings.seed = number(found) ?? null;
    else if (name === "stop")
      settings.stop = Array.isArray(found) ? found.filter((one) => typeof one === "string") : [];
    else if (typeof found === typeof value && (typeof found !== "number" || Number.isFinite(found)))
      settings[name] = name in NUMBERS ? Math.min(NUMBERS[name].high, Math.max(NUMBERS[name].low, found)) : found;
  }
  return settings;
}

// {title, created, settings, leaf, messages}. Error if it is none.
export function checkedConversation(given) {
  if (!isObject(given)) throw wrong();
  const messages = list(given.messages, checkedMessage);
  const known = new Map(messages.map((message) => [message.id, message]));
  if (known.size !== messages.length) throw wrong();
  for (const message of messages) if (message.parent !== null && !known.has(message.parent)) throw wrong();
  checkRooted(messages, known);
  const newest = messages.reduce((best, message) => (!best || message.created > best.created ? message : best), null);
  const leaf = known.has(given.leaf) ? given.leaf : (newest?.id ?? null);
  const created = number(given.created) ?? Date.now();
  return {
    id: text(given.id),
    title: text(given.title),
    created,
    settings: checkedSettings(given.settings),
    leaf,
    messages,
  };
}

// Every message leads to one without a parent.
function checkRooted(messages, known) {
  const rooted = new Set();
  for (const message of messages) {
    const seen = new Set();
    for (let one = message; one && !rooted.has(one.id); one = known.get(one.parent)) {
      if (seen.has(one.id) || (one.parent === null && one.role !== "user")) throw wrong();
      seen.add(one.id);
    }
    seen.forEach((id) => rooted.add(id));
  }
}

function checkedMessage(given) {
  if (!isObject(given)) throw wrong();
  const parent = given.parent === null || given.parent === undefined ? null : text(given.parent);
  const base = { id: text(given.id), parent, role: given.role, created: number(given.created) ?? 0 };
  if (given.role === "user") return { ...base, parts: list(given.parts, checkedPart) };
  if (given.role === "tool") return { ...base, call: text(given.call), text: text(given.text) };
  if (given.role === "assistant") return { ...base, ...checkedAnswer(given) };
  throw wrong();
}

function checkedPart(given) {
  if (!isObject(given)) throw wrong();
  return given.picture === undefined ? { text: text(given.text) } : { picture: text(given.picture) };
}

function checkedAnswer(given) {
  const written = text(given.text);
  const usage = isObject(given.usage) ? { prompt: number(given.usage.prompt), cached: number(given.usage.cached) } : {};
  return only({
    state: "done",
    text: written,
    prefix: Math.min(written.length, Math.max(0, number(given.prefix) ?? 0)),
    tokens: checkedTokens(given.tokens ?? []),
    settings: checkedSettings(given.settings) ?? defaultSettings(null),
    calls: given.calls === undefined ? undefined : list(given.calls, checkedCall),
    usage: usage.prompt === undefined || usage.cached === undefined ? undefined : usage,
    finish: typeof given.finish === "string" ? given.finish : undefined,
    thinking: typeof given.thinking === "string" ? given.thinking : undefined,
    checkpoint: typeof given.checkpoint === "string" ? given.checkpoint : undefined,
    written: number(given.written),
    first: number(given.first),
    seconds: number(given.seconds),
    speed: number(given.speed),
    saved: number(given.saved),
    forgotten: number(given.forgotten) ?? 0,
  });
}

function checkedTokens(given) {
  const pair = (one) => {
    if (!Array.isArray(one) || !Number.isFinite(one[1]) || one[1] > 0) throw wrong(); // a log-probability
    return [text(one[0]), one[1]];
  };
  return list(given, (one) => {
    if (!Array.isArray(one) || !Number.isFinite(one[3])) throw wrong();
    return [...pair(one), list(one[2], pair), one[3]];
  });
}

function checkedCall(given) {
  if (!isObject(given) || !isObject(given.function)) throw wrong();
  const called = { name: text(given.function.name), arguments: text(given.function.arguments) };
  return { id: text(given.id), type: "function", function: called };
}

// {name, blob} of a picture in a file.
export function checkedPicture(given) {
  if (!isObject(given) || typeof given.url !== "string" || !PICTURE.test(given.url)) throw wrong();
  const comma = given.url.indexOf(",");
  let bytes;
  try {
    // fetch() of data URLs is not allowed by the page's policy.
    bytes = Uint8Array.from(atob(given.url.slice(comma + 1)), (char) => char.charCodeAt(0));
  } catch {
    throw wrong();
  }
  const type = given.url.slice("data:".length, given.url.indexOf(";"));
  return { name: typeof given.name === "string" ? given.name : "", blob: new Blob([bytes], { type }) };
}
