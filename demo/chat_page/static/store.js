// Conversations in the browser's IndexedDB. Each message is a record of its own, so that two open pages that write to one
// conversation lose nothing. Without IndexedDB all is kept in memory, and `kept` is false.

const NAME = "gemma-tpu chat";
const STORES = { conversations: "id", messages: "id", pictures: "id" };
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

export async function put(name, record) {
  if (database) await run(name, "readwrite", (store) => store.put(record));
  else memory[name].set(record.id, structuredClone(record));
  if (name !== "pictures")
    channel?.postMessage({ name, id: record.id, conversation: record.conversation ?? record.id });
}

export async function get(name, id) {
  return database ? run(name, "readonly", (store) => store.get(id)) : memory[name].get(id);
}

export async function remove(name, id) {
  if (database) await run(name, "readwrite", (store) => store.delete(id));
  else memory[name].delete(id);
}

export async function all(name) {
  return database ? run(name, "readonly", (store) => store.getAll()) : [...memory[name].values()];
}

export async function messagesOf(conversation) {
  if (database) return run("messages", "readonly", (store) => store.index("conversation").getAll(conversation));
  return [...memory.messages.values()].filter((message) => message.conversation === conversation);
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

export const picturesOf = (message) => (message.parts ?? []).filter((part) => part.picture).map((part) => part.picture);

// Calls `listener` with the conversation that another page of this browser has changed.
export function onChange(listener) {
  channel?.addEventListener("message", ({ data }) => listener(data.conversation));
}
