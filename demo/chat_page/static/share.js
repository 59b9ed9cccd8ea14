// Conversations as files and as links. A file has the pictures, a link has not.

import { checkedConversation, checkedPicture } from "./checked.js";
import { randomId } from "./dom.js";
import { get, messagesOf, picturesOf, putAll } from "./store.js";
import { dataUrl } from "./request.js";
import { ADDRESS, say } from "./words.js";

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

// Stores what `exported` gave under new ids, all of it or nothing; returns those of the conversations.
// Error if it is something else.
export async function imported(data) {
  if (data?.format !== FORMAT || !Array.isArray(data.conversations) || !data.conversations.length)
    throw new Error(say("not_an_export"));
  if (data.version > VERSION) throw new Error(say("newer_export"));
  const conversations = data.conversations.map(checkedConversation);
  const names = new Map(); // an id in the file → a new one
  const renamed = (id) => {
    if (id === null) return null;
    if (!names.has(id)) names.set(id, randomId());
    return names.get(id);
  };
  const created = Date.now();
  const given = Object.entries(data.pictures ?? {});
  const pictures = given.map(([id, picture]) => ({ id: renamed(id), created, ...checkedPicture(picture) }));
  const messages = conversations.flatMap((conversation) =>
    conversation.messages.map((message) => ({
      ...message,
      ...(message.parts ? { parts: message.parts.map((part) => renamedPart(part, renamed)) } : {}),
      id: renamed(message.id),
      parent: renamed(message.parent),
      conversation: renamed(conversation.id),
    })),
  );
  const heads = conversations.map(({ id, leaf, messages: _, ...rest }) => {
    return { ...rest, id: renamed(id), leaf: renamed(leaf), changed: created };
  });
  await putAll({ pictures, messages, conversations: heads });
  return heads.map(({ id }) => id);
}

const renamedPart = (part, renamed) => (part.picture ? { picture: renamed(part.picture) } : part);

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
