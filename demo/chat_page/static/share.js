// Conversations as files and as links. A file has the pictures, a link has not.

import { randomId } from "./dom.js";
import { get, messagesOf, picturesOf, put } from "./store.js";
import { dataUrl } from "./request.js";
import { say } from "./words.js";

const FORMAT = "gemma_tpu chat";
const VERSION = 1;
export const LINK = "#open=";

export async function exported(ids) {
  const conversations = [];
  const pictures = {};
  for (const id of ids) {
    const messages = await messagesOf(id);
    conversations.push({ ...(await get("conversations", id)), messages });
    for (const picture of messages.flatMap(picturesOf)) {
      const record = await get("pictures", picture);
      if (record) pictures[picture] = { name: record.name, url: await dataUrl(picture) };
    }
  }
  return { format: FORMAT, version: VERSION, exported: new Date().toISOString(), conversations, pictures };
}

// Stores what `exported` gave under new ids; returns those of the conversations. Error if it is something else.
export async function imported(data) {
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) throw new Error(say("not_an_export"));
  if (data.version > VERSION) throw new Error(say("newer_export"));
  for (const conversation of data.conversations) check(conversation);
  const names = new Map(); // an id in the file → a new one
  const rename = (id) => {
    if (id === null || id === undefined) return null;
    if (!names.has(id)) names.set(id, randomId());
    return names.get(id);
  };
  for (const [id, { name, url }] of Object.entries(data.pictures ?? {})) {
    if (!/^data:/.test(url)) throw new Error(say("not_an_export"));
    await put("pictures", { id: rename(id), name, created: Date.now(), blob: await blobOf(url) });
  }
  const ids = [];
  for (const { messages, ...conversation } of data.conversations) {
    const id = rename(conversation.id);
    for (const message of messages) {
      const parts = message.parts?.map((part) => (part.picture ? { picture: rename(part.picture) } : part));
      const state = message.role === "assistant" ? { state: "done" } : {};
      await put("messages", {
        ...message,
        ...(parts ? { parts } : {}),
        ...state,
        id: rename(message.id),
        parent: rename(message.parent),
        conversation: id,
      });
    }
    await put("conversations", { ...conversation, id, leaf: rename(conversation.leaf), changed: Date.now() });
    ids.push(id);
  }
  return ids;
}

function check({ id, title, messages }) {
  const fits = typeof id === "string" && typeof title === "string" && Array.isArray(messages);
  const known = (message) =>
    ["user", "assistant", "tool"].includes(message?.role) &&
    typeof message.id === "string" &&
    (message.role === "user" ? Array.isArray(message.parts) : typeof message.text === "string");
  if (!fits || !messages.every(known)) throw new Error(say("not_an_export"));
}

// fetch() of data URLs is not allowed by the page's policy.
function blobOf(url) {
  const [head, body] = [url.slice(5, url.indexOf(",")), url.slice(url.indexOf(",") + 1)];
  const bytes = Uint8Array.from(atob(body), (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: head.split(";")[0] });
}

// The path to one answer as a link: texts and settings, compressed, behind the #, which no server sees.
export async function linkTo(tree, message) {
  const path = tree.path(message);
  const strip = ({ tokens, ...rest }) => ({ ...rest, tokens: [] });
  const { id, title } = tree.conversation;
  const conversation = {
    id,
    title,
    created: Date.now(),
    leaf: message.id,
    system: "",
    settings: message.settings,
    messages: path.map(strip),
  };
  const text = JSON.stringify({ format: FORMAT, version: VERSION, conversations: [conversation], pictures: {} });
  const bytes = await piped(new TextEncoder().encode(text), new CompressionStream("deflate-raw"));
  const base64 = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return `${location.origin}${location.pathname}${LINK}${base64.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
}

export async function readLink(hash) {
  const base64 = hash.slice(LINK.length).replaceAll("-", "+").replaceAll("_", "/");
  try {
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(await piped(bytes, new DecompressionStream("deflate-raw"))));
  } catch {
    throw new Error(say("bad_link"));
  }
}

async function piped(bytes, transform) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(transform)).arrayBuffer());
}
