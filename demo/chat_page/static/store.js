// Conversations in the browser's IndexedDB. Each message is a record of its own, so that two open pages that write to one
// conversation lose nothing. Without IndexedDB all is kept in memory, and `kept` is false.

const NAME = "gemma-tpu chat";
const STORES = { conversations: "id", messages: "id", pictures: "id" };
const DAY = 86_400_000; // milliseconds
let database = null;
export let kept = false;
const memory = Object.fromEntries(Object.keys(STORES).map((name) => [name, new Map()]));
const channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;

export async function open() {
  try {
    database = await new Promise((resolve, reject) => {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => {
        for (const [name, keyPath] of Object.entries(STORES)) {
          const store = request.result.createObjectStore(name, { keyPath });
          if (name === "messages") store.createIndex("conversation", "conversation");
        }
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error("blocked"));
    });
    kept = true;
    navigator.storage?.persist?.().catch(() => {});
  } catch {
    kept = false; // forbidden, as in some private windows
  }
}

function run(name, mode, act) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(name, mode);
    const request = act(transaction.objectStore(name));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// Stores a record. One that the browser has no room for is kept in memory: `onFull` is told of the first.
export async function put(name, record) {
  await putAll({ [name]: [record] });
  if (name === "pictures") return;
  channel?.postMessage({ name, id: record.id, conversation: record.conversation ?? record.id });
}

// Stores all or nothing: store → records.
export async function putAll(records) {
  const names = Object.keys(records);
  if (database) {
    try {
      return await new Promise((resolve, reject) => {
        const transaction = database.transaction(names, "readwrite");
        transaction.oncomplete = resolve;
        transaction.onerror = transaction.onabort = () => reject(transaction.error);
        for (const name of names) for (const record of records[name]) transaction.objectStore(name).put(record);
      });
    } catch (error) {
      if (kept) full(error);
      kept = false;
    }
  }
  for (const name of names) for (const record of records[name]) memory[name].set(record.id, structuredClone(record));
}

let full = () => {};

// Calls `listener` with the error when the browser first fails to store something.
export function onFull(listener) {
  full = listener;
}

export async function get(name, id) {
  return memory[name].get(id) ?? (database ? run(name, "readonly", (store) => store.get(id)) : undefined);
}

export async function remove(name, id) {
  memory[name].delete(id);
  if (database) await run(name, "readwrite", (store) => store.delete(id));
}

export async function all(name) {
  return newest(name, database ? await run(name, "readonly", (store) => store.getAll()) : []);
}

export async function messagesOf(conversation) {
  const of = (store) => store.index("conversation").getAll(conversation);
  const stored = database ? await run("messages", "readonly", of) : [];
  return newest("messages", stored).filter((message) => message.conversation === conversation);
}

// Records as they are in memory where they could not be stored.
function newest(name, stored) {
  return [...new Map([...stored, ...memory[name].values()].map((record) => [record.id, record])).values()];
}

// Deletes a conversation, its messages, and the pictures that no other message has.
export async function removeConversation(id) {
  const messages = await all("messages");
  const mine = messages.filter((message) => message.conversation === id);
  const others = new Set(messages.filter((message) => message.conversation !== id).flatMap(picturesOf));
  for (const message of mine) await remove("messages", message.id);
  for (const picture of new Set(mine.flatMap(picturesOf))) if (!others.has(picture)) await remove("pictures", picture);
  await remove("conversations", id);
  channel?.postMessage({ name: "conversations", id, conversation: id });
}

// Deletes the pictures that no message and no draft has, as of one that was taken out of a prompt; not those of the last
// day, which another page may be about to use.
export async function sweep() {
  const old = (await all("pictures")).filter(({ created }) => created < Date.now() - DAY);
  if (!old.length) return;
  const drafts = (await all("conversations")).flatMap(({ draft }) => draft?.pictures ?? []);
  const used = new Set([...drafts, ...(await all("messages")).flatMap(picturesOf)]);
  for (const { id } of old) if (!used.has(id)) await remove("pictures", id);
}

export const picturesOf = (message) => (message.parts ?? []).filter((part) => part.picture).map((part) => part.picture);

// Calls `listener` with the conversation that another page of this browser has changed.
export function onChange(listener) {
  channel?.addEventListener("message", ({ data }) => listener(data.conversation));
}
