// Conversations as files and as links. A file has the pictures, a link has not.

import { checkedConversation, checkedPicture } from "./checked.js";
import { randomId } from "./dom.js";
import { all, get, messagesOf, picturesOf, putAll } from "./store.js";
import { dataUrl } from "./request.js";
import { textOf } from "./tree.js";
import { ADDRESS, say } from "./words.js";

const FORMAT = "gemma_tpu chat";
const VERSION = 1;
export const LINK = "#open=";
const ID = /^[\w-]{1,64}$/;

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

// Stores what `exported` gave and this browser lacks, all of it or nothing. Ids that something here has already are
// replaced by new ones. Returns {id, leaf, added} of each conversation. Error if it is something else.
export async function imported(data) {
  if (data?.format !== FORMAT || !Array.isArray(data.conversations) || !data.conversations.length)
    throw new Error(say("not_an_export"));
  if (data.version > VERSION) throw new Error(say("newer_export"));
  const given = data.conversations.map(checkedConversation);
  const here = await Promise.all(given.map(isHere));
  const free = await freeIds();
  const pictureIds = new Map(); // an id in the file → one here
  const created = Date.now();
  const pictures = Object.entries(data.pictures ?? {}).map(([id, picture]) => {
    pictureIds.set(id, free(id));
    return { id: pictureIds.get(id), created, ...checkedPicture(picture) };
  });
  const fresh = given.filter((_, i) => !here[i]).map((conversation) => renamed(conversation, free, pictureIds));
  const used = new Set(
    [...fresh, ...given.filter((_, i) => here[i])].flatMap(({ messages }) => messages.flatMap(picturesOf)),
  );
  await putAll({
    pictures: pictures.filter(({ id }) => used.has(id)),
    messages: fresh.flatMap(({ messages }) => messages),
    conversations: fresh.map(({ messages: _, ...head }) => ({ ...head, changed: created })),
  });
  const added = fresh.values();
  return given.map((conversation, i) => {
    const { id, leaf } = here[i] ? conversation : added.next().value;
    return { id, leaf, added: !here[i] };
  });
}

// Whether this browser has all that is said in a conversation of a file.
async function isHere({ id, messages }) {
  if (!(await get("conversations", id))) return false;
  const stored = new Map((await messagesOf(id)).map((message) => [message.id, message]));
  return messages.every((message) => stored.has(message.id) && has(stored.get(message.id), message));
}

// An answer may have grown since.
function has(stored, message) {
  if (message.role === "assistant") return stored.text?.startsWith(message.text) ?? false;
  return message.role === "tool" ? stored.text === message.text : textOf(stored) === textOf(message);
}

// A function that gives an id which nothing here has: the one it is given, or a new one.
async function freeIds() {
  const stores = await Promise.all(["conversations", "messages", "pictures"].map(all));
  const taken = new Set(stores.flat().map(({ id }) => id));
  return (id) => {
    const free = ID.test(id) && !taken.has(id) ? id : randomId();
    taken.add(free);
    return free;
  };
}

function renamed(conversation, free, pictureIds) {
  const id = free(conversation.id);
  const ids = new Map([[null, null], ...conversation.messages.map((message) => [message.id, free(message.id)])]);
  const part = (one) => (one.picture ? { picture: pictureIds.get(one.picture) ?? one.picture } : one);
  const messages = conversation.messages.map((message) => ({
    ...message,
    ...(message.parts ? { parts: message.parts.map(part) } : {}),
    id: ids.get(message.id),
    parent: ids.get(message.parent),
    conversation: id,
  }));
  return { ...conversation, id, leaf: ids.get(conversation.leaf), messages };
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
  return `${ADDRESS}${LINK}${base64.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
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
