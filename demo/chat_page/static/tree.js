// A conversation is a tree of messages: asking again, editing and going on from another token make siblings. What is
// shown is the path to `leaf`. A message is {id, conversation, parent, role, parts, text, created, …}.

import { randomId } from "./dom.js";

export class Tree {
  constructor(conversation, messages = []) {
    this.conversation = conversation;
    this.messages = new Map(messages.map((message) => [message.id, message]));
  }

  // Takes over messages as another page has stored them.
  take(messages) {
    for (const message of messages) {
      const known = this.messages.get(message.id);
      if (known) {
        for (const key of Object.keys(known)) if (!(key in message)) delete known[key];
        Object.assign(known, message);
      } else this.messages.set(message.id, message);
    }
  }

  // The last message that is shown; if that was not stored before the browser ended, the newest.
  get leaf() {
    const { leaf } = this.conversation;
    if (!leaf || this.messages.has(leaf)) return this.messages.get(leaf) ?? null;
    return [...this.messages.values()].sort((a, b) => a.created - b.created).at(-1) ?? null;
  }

  // The messages from the first to `leaf`.
  path(leaf = this.leaf) {
    const path = [];
    for (let message = leaf; message; message = this.messages.get(message.parent)) path.unshift(message);
    return path;
  }

  children(parent) {
    const found = [...this.messages.values()].filter((message) => message.parent === parent);
    return found.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  }

  siblings(message) {
    return this.children(message.parent);
  }

  add(parent, role, fields = {}) {
    const latest = Math.max(0, ...[...this.messages.values()].map((message) => message.created));
    const created = Math.max(Date.now(), latest + 1); // siblings keep their order
    const message = { id: randomId(), conversation: this.conversation.id, parent, role, created, ...fields };
    this.messages.set(message.id, message);
    return message;
  }

  // The last message below `message`, by the newest child at each.
  deepest(message) {
    for (let children; (children = this.children(message.id)).length;) message = children.at(-1);
    return message;
  }

  // `message` and all below it.
  branch(message) {
    return [message, ...this.children(message.id).flatMap((child) => this.branch(child))];
  }
}

export function newConversation() {
  return {
    id: randomId(),
    title: "",
    created: Date.now(),
    changed: Date.now(),
    leaf: null,
    system: "",
    settings: null,
  };
}

// The text of a message without its pictures.
export function textOf(message) {
  if (message.role === "assistant") return message.text ?? "";
  return (message.parts ?? []).map((part) => part.text ?? "").join("");
}

// A title from the first question.
export function titleOf(message) {
  const text = textOf(message).replace(/\s+/g, " ").trim();
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
