// The conversations of this browser: open, keep, list, export and import them. What is shown of one is the page's.

import { download } from "./dom.js";
import { defaultSettings } from "./settings.js";
import { exported, imported, LINK, readLink } from "./share.js";
import * as store from "./store.js";
import { newConversation, textOf, titleOf, Tree } from "./tree.js";
import { say } from "./words.js";

const DRAFT = 400; // milliseconds after the last letter until a draft is stored
const CURRENT = "gemma-tpu chat current"; // the conversation that this tab shows

const OWN = { system: "", stop: [], tools: "", schema: "", must_call: false }; // of a conversation, not of the next one

export class Conversations {
  constructor(page) {
    this.page = page;
    store.onChange((id) => this.changed(id));
    addEventListener("hashchange", () => location.hash.startsWith(LINK) && this.openLink());
  }

  // The conversation that this tab showed last, or that its address has.
  async begin() {
    if (location.hash.startsWith(LINK)) return this.openLink();
    const current = remembered();
    try {
      if (current) return await this.open(current);
      this.page.start(new Tree(newConversation()));
    } catch (error) {
      this.page.start(new Tree(newConversation()));
      this.page.frame.notice(say("unreadable", { error: error.message }));
    }
  }

  // Answers go on in a conversation that is left: it is opened again as it is then.
  async open(id) {
    await this.leave();
    const running = this.page.writing.treeOf(id);
    const conversation = running?.conversation ?? (await store.get("conversations", id));
    if (!conversation) return this.create();
    const tree = running ?? new Tree(conversation, await store.messagesOf(id));
    this.page.settings = { ...defaultSettings(this.page.status?.model), ...conversation.settings };
    this.page.start(tree);
    this.page.writing.resume();
  }

  async create() {
    await this.leave();
    const { settings, tree } = this.page;
    this.page.settings = { ...structuredClone(settings), ...(tree.messages.size ? OWN : {}) };
    const chosen = tree.conversation.settings ? { settings: this.page.settings } : {};
    this.page.start(new Tree({ ...newConversation(), ...chosen }));
  }

  // Keeps the draft of the conversation that is left.
  async leave() {
    if (!this.drafting) return;
    clearTimeout(this.drafting);
    await this.save();
  }

  async save() {
    this.drafting = null;
    const { tree, composer } = this.page;
    const { conversation } = tree;
    // What another page of this browser has typed into the same conversation stays, unless something is typed here.
    const stored = await store.get("conversations", conversation.id);
    conversation.changed = Date.now();
    conversation.draft = (this.typed ? null : stored?.draft) ?? composer.draft;
    const { text, pictures } = conversation.draft;
    if (stored || conversation.leaf || text || pictures.length || conversation.settings) {
      await store.put("conversations", { ...conversation });
    }
    this.list();
  }

  saveDraft() {
    this.typed = true;
    clearTimeout(this.drafting);
    this.drafting = setTimeout(() => this.save(), DRAFT);
  }

  async list() {
    const current = this.page.tree.conversation.id;
    remember(current);
    const conversations = (await store.all("conversations"))
      .map((one) => ({ ...one, title: one.title || (one.id === current ? "" : draftTitle(one)) }))
      .filter(({ leaf, title }) => leaf || title);
    this.page.sidebar.set(conversations, current, store.kept);
  }

  // The whole text of each, in lower case.
  async texts() {
    const texts = new Map();
    for (const message of await store.all("messages")) {
      texts.set(message.conversation, `${texts.get(message.conversation) ?? ""} ${textOf(message)}`.toLowerCase());
    }
    return texts;
  }

  async remove(id) {
    this.page.writing.forget(id);
    await store.removeConversation(id);
    if (this.page.tree.conversation.id !== id) return this.list();
    clearTimeout(this.drafting);
    this.drafting = null;
    await this.create();
  }

  async rename(id, title) {
    const { tree } = this.page;
    const conversation = tree.conversation.id === id ? tree.conversation : await store.get("conversations", id);
    conversation.title = title;
    await store.put("conversations", { ...conversation });
    this.page.show();
    this.list();
  }

  async export(ids) {
    const name = `gemma-chat-${new Date().toISOString().slice(0, 10)}.json`;
    download(name, new Blob([JSON.stringify(await exported(ids))], { type: "application/json" }));
  }

  async import(files) {
    const found = [];
    const problems = [];
    for (const file of files) {
      try {
        found.push(...(await imported(parsed(await file.text()))));
      } catch (error) {
        problems.push(`${file.name}: ${error.message}`);
      }
    }
    const shown = found.findLast(({ added }) => added) ?? found.at(-1);
    if (shown) await this.open(shown.id);
    if (problems.length) this.page.frame.notice(problems.join(" "));
    else if (!shown.added) this.page.frame.notice(say("already_here"), "quiet");
  }

  async openLink() {
    const { hash } = location;
    history.replaceState(null, "", location.pathname); // else a reload would import it again
    try {
      const [{ id, leaf, added }] = await imported(await readLink(hash));
      await this.open(id);
      if (!added) this.page.setLeaf(this.page.tree.messages.get(leaf));
    } catch (error) {
      this.page.start(new Tree(newConversation()));
      this.page.frame.notice(error.message);
    }
  }

  // Another page of this browser has changed a conversation.
  async changed(id) {
    this.list();
    const { tree } = this.page;
    const stored = await store.get("conversations", id);
    if (!stored) this.page.writing.forget(id);
    if (id !== tree.conversation.id || (stored && this.page.writing.treeOf(id))) return;
    if (!stored && tree.messages.size) {
      const { draft } = this.page.composer;
      this.page.start(new Tree(newConversation()));
      this.page.composer.fill(draft);
      if (draft.text || draft.pictures.length) this.saveDraft();
      return this.page.frame.notice(say("deleted_elsewhere"));
    }
    tree.conversation.title = stored?.title ?? tree.conversation.title;
    tree.take(await store.messagesOf(id));
    // What was asked there below what is shown here is followed.
    const theirs = tree.messages.get(stored?.leaf);
    if (theirs && tree.path(theirs).includes(tree.leaf)) tree.conversation.leaf = theirs.id;
    if (this.page.tree !== tree) return;
    this.page.show();
    this.page.writing.resume();
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // what `imported` says of other things
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(CURRENT);
  } catch {
    return null; // storage may be forbidden
  }
}

function remember(id) {
  try {
    sessionStorage.setItem(CURRENT, id);
  } catch {} // storage may be forbidden
}

// The first words of what was typed into a conversation that nothing was asked in yet; empty without any.
function draftTitle({ leaf, draft }) {
  if (leaf || !(draft?.text || draft?.pictures.length)) return "";
  return titleOf({ parts: [{ text: draft.text }] }) || say("untitled");
}
