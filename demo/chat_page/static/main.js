// The Chat page: conversations that stay in this browser, answered by the server that the page came from.
//
//   main       the page, and what its buttons do          store      what the browser keeps
//   frame      bar, drawers, notices                      words      texts and language
//   sidebar    the list of conversations                  tree       a conversation as a tree of messages
//   message    one message                                request    messages and settings as OpenAI's fields
//   tokens     an answer's tokens and alternatives        answering  writes one answer
//   composer   the prompt and its pictures                writing    the answers that are being written
//   compare    two answers side by side                   api        requests to the server
//   settings   the settings                               media      files, PDFs, videos and the camera as pictures
//   inside     context, pictures, tokens, machine         markdown   an answer as nodes
//   reproduce  the same answer from elsewhere             share      files and links of conversations

import { getStatus, Problem } from "./api.js";
import { attentionOf } from "./attention.js";
import { Comparison, differences } from "./compare.js";
import { Composer, fromParts } from "./composer.js";
import { Conversations } from "./conversations.js";
import { make, randomId } from "./dom.js";
import { Frame } from "./frame.js";
import { contextParts, Inside } from "./inside.js";
import { keep as keepPicture } from "./media.js";
import { MessageView } from "./message.js";
import { ModelDialog } from "./model.js";
import { release } from "./pictures.js";
import { RawPanel } from "./raw.js";
import { showPrograms } from "./reproduce.js";
import { nthQuestion } from "./request.js";
import { defaultSettings, jsonProblem, resolved, SettingsPanel } from "./settings.js";
import { linkTo } from "./share.js";
import { listen } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";
import { newConversation, titleOf, Tree } from "./tree.js";
import { exampleUrl, followParent, language, onLanguage, say } from "./words.js";
import { claimTab, Writing } from "./writing.js";

const POLL = { ready: 3000, busy: 500, lost: 1000 }; // milliseconds

class Page {
  constructor() {
    this.status = null;
    this.lost = false;
    this.known = new Promise((resolve) => (this.learned = resolve)); // once the server has said its status
    this.writing = new Writing(this);
    this.views = new Map(); // message → its view
    this.edits = new Map(); // message → the text of an edit that is not sent yet
    this.tree = new Tree(newConversation());
    this.settings = defaultSettings(null);
    this.composer = new Composer({
      send: (parts) => this.send(parts),
      stop: () => this.writing.stop(),
      draft: () => this.conversations.saveDraft(),
      attached: () => this.status && this.showStatus(),
      problem: (text) => this.frame.notice(text),
      busy: (text, stays) => this.frame.notice(text, stays ? "quiet" : "busy"),
      edit: () => this.lastView("user")?.edit(),
    });
    this.sidebar = new Sidebar({
      open: (id) => this.conversations.open(id),
      create: () => this.conversations.create(),
      remove: (id) => this.conversations.remove(id),
      rename: (id, title) => this.conversations.rename(id, title),
      exportOne: (id) => this.conversations.export([id]),
      exportAll: () => this.conversations.export(this.sidebar.conversations.map(({ id }) => id)),
      texts: () => this.conversations.texts(),
      importFiles: (files) => this.conversations.import(files),
    });
    this.conversations = new Conversations(this);
    this.comparison = new Comparison(
      () => this.settings,
      () => this.status,
    );
    this.composer.extra.append(this.comparison.button);
    this.composer.above.append(this.comparison.element);
    this.panel = new SettingsPanel(this);
    this.inside = new Inside(this);
    this.frame = new Frame({
      sidebar: this.sidebar,
      composer: this.composer,
      panels: { raw: new RawPanel(this), inside: this.inside, settings: this.panel },
      events: {
        model: () => this.model.open(this.status),
        stop: () => this.writing.stop(),
        example: (example) => this.fillExample(example),
      },
    });
    this.model = new ModelDialog((status) => this.changedStatus(status));
    listen({
      find: () => this.frame.find(),
      create: () => this.conversations.create(),
      again: () => this.tree.leaf?.role === "assistant" && this.again(this.tree.leaf),
      prompt: () => this.composer.field.focus(),
    });
    onLanguage(() => this.translate());
  }

  // ---- What is seen

  translate() {
    this.sidebar.lay();
    this.composer.lay();
    this.comparison.translate();
    for (const view of this.views.values()) view.translate();
    this.inside.lay();
    this.show();
  }

  // Everything that depends on the conversation.
  show() {
    const path = this.tree.path();
    this.frame.title.textContent = this.tree.conversation.title || say("new");
    const rows = path.map((message) => this.rowOf(message));
    const first = firstInContext(path);
    if (first > 0) rows.splice(first, 0, make("p", { class: "divider" }, say("left_out")));
    this.frame.showRows(rows, this.status);
    this.composer.setBusy(this.writing.isBusy);
    if (!this.writing.isBusy && this.frame.said === say("busy")) this.frame.notice("");
    this.showStatus();
    this.inside.show();
  }

  showStatus() {
    const model = this.status?.model;
    this.frame.showChip(this.status, this.lost);
    this.model.show(this.status);
    this.frame.showFoot(model ? this.contextParts(model) : null, model?.context);
  }

  contextParts(model) {
    return contextParts(this.tree.path(), model, this.composer.pictures.length);
  }

  viewOf(message) {
    if (!this.views.has(message.id)) this.views.set(message.id, new MessageView(message, this));
    const view = this.views.get(message.id);
    view.update();
    return view.element;
  }

  // The view of the last question or answer, if there is one and nothing is being written.
  lastView(role) {
    const message = this.tree.path().findLast((one) => one.role === role);
    return message && !this.writing.isBusy ? this.views.get(message.id) : null;
  }

  // Two answers that were asked for together stand side by side while one of them is the last.
  rowOf(message) {
    if (!this.standsBeside(message)) return this.viewOf(message);
    const pair = this.pairOf(message);
    const columns = pair.map((one) =>
      make(
        "div",
        { class: one === message ? "chosen" : "" },
        make("p", { class: "differs" }, differences(one, pair)),
        this.viewOf(one),
      ),
    );
    return make("div", { class: "pair" }, ...columns);
  }

  standsBeside(message) {
    const pair = this.pairOf(message);
    return pair.length > 1 && pair.includes(this.tree.leaf);
  }

  pairOf(message) {
    if (!message?.pair) return message ? [message] : [];
    return this.tree.siblings(message).filter((one) => one.pair === message.pair);
  }

  async fillExample(example) {
    const { tree } = this;
    const ids = [];
    for (const file of example.pictures ?? [])
      ids.push(await keepPicture(await (await fetch(exampleUrl(file))).blob(), file));
    if (tree !== this.tree) return; // another conversation was opened meanwhile
    this.composer.add({ text: example[language], pictures: ids });
    this.conversations.saveDraft();
    this.composer.focus();
  }

  changedStatus(status) {
    const { phase, checkpoint } = this.status ?? {};
    this.status = status;
    this.learned();
    if (status.phase === "ready" && (phase !== "ready" || checkpoint !== status.checkpoint)) this.ready();
    this.showStatus();
    this.inside.show();
  }

  // ---- Settings

  settingsChanged() {
    this.tree.conversation.settings = this.settings;
    this.conversations.save();
    this.inside.show();
  }

  // ---- Asking

  problem() {
    const phase = this.status?.phase;
    if (phase !== "ready") return say({ idle: "not_loaded", failed: "load_failed" }[phase] ?? "still_loading");
    const unsupported = this.status.model.unsupported[language];
    return unsupported || jsonProblem("schema", this.settings.schema) || jsonProblem("tools", this.settings.tools);
  }

  // Asks, unless there is a problem, which is said. Whether it was asked.
  ask(parts, parent = this.tree.leaf) {
    const pictures = parts.some((part) => part.picture);
    const busy = this.writing.isBusy ? say("busy") : "";
    const problem = busy || this.problem() || (pictures && !this.status.model.vision ? say("no_vision") : "");
    this.frame.notice(problem);
    if (problem) return false;
    const { conversation } = this.tree;
    const question = this.tree.add(parent?.id ?? null, "user", { parts });
    conversation.title ||= titleOf(question);
    conversation.settings ??= this.settings;
    store.put("messages", question);
    this.answer(question);
    return true;
  }

  async send(parts) {
    await this.polled; // else a quick visitor is told that there is no model
    const { tree } = this;
    for (const id of store.picturesOf({ parts }))
      if (!(await store.get("pictures", id))) return this.frame.notice(say("picture_gone"));
    if (tree !== this.tree) return; // another conversation was opened meanwhile; the prompt is a draft of this one
    const draft = this.composer.draft;
    this.composer.fill(); // before the answer is begun, which stores the draft too
    this.conversations.typed = true;
    if (!this.ask(parts)) this.composer.fill(draft);
  }

  // Writes an answer to `question`, or two at once to compare. `begun`: the text that it begins with.
  async answer(question, begun = "", fields = {}) {
    const sets = (begun ? [this.settings] : this.comparison.sets).map(resolved);
    const forgotten = this.tree.path(question).findLast((message) => message.forgotten > 0)?.forgotten ?? 0;
    const pair = sets.length > 1 ? { pair: randomId() } : {};
    const all = { state: "waiting", text: begun, forgotten, ...pair, ...fields };
    const answers = sets.map((settings) => this.tree.add(question.id, "assistant", { ...all, settings }));
    this.setLeaf(answers[0]);
    await Promise.all([this.writing.writeAll(answers), this.sayBefore(question, sets)]);
  }

  // What a visitor would not expect of an answer.
  async sayBefore(question, sets) {
    const pictures = this.tree.path(question).flatMap(store.picturesOf);
    const stored = await Promise.all(pictures.map((id) => store.get("pictures", id)));
    const same = sets.length > 1 && new Set(sets.map((set) => JSON.stringify(set))).size === 1;
    const lines = [stored.every(Boolean) ? "" : say("without_pictures"), same ? say("same_settings") : ""];
    if (lines.some(Boolean)) this.frame.notice(lines.filter(Boolean).join(" "), "quiet");
  }

  // Everything below is pressed in a message (message.js).

  siblings(message) {
    return this.tree.siblings(message);
  }

  // `top`: where on the screen the buttons were that asked for it, and those of the message shall be.
  choose(message, top) {
    this.setLeaf(this.tree.deepest(message));
    this.frame.keepAt(this.views.get(message.id).bar, top);
  }

  keep(message) {
    for (const one of this.pairOf(message)) {
      delete one.pair;
      store.put("messages", one);
    }
    this.setLeaf(message);
  }

  async again(message) {
    if (this.blocked()) return;
    await this.answer(this.tree.messages.get(message.parent));
  }

  // Whether it was asked.
  edit(message, parts) {
    return this.ask(parts, this.tree.messages.get(message.parent) ?? null);
  }

  // Goes on with an answer that was cut, in its place and with its own settings.
  async goOn(message) {
    if (this.blocked()) return;
    const max_tokens = (message.written ?? 0) + this.settings.max_tokens;
    const settings = { ...message.settings, max_tokens };
    await this.writing.write(message, settings);
  }

  // Takes the last turn back into the prompt. It stays, as a version of the question that is asked next.
  undo() {
    if (this.writing.isBusy) return this.frame.notice(say("busy"));
    const question = this.tree.path().findLast((message) => message.role === "user");
    this.composer.add(fromParts(question.parts));
    this.conversations.typed = true;
    this.setLeaf(this.tree.messages.get(question.parent) ?? null);
    this.composer.focus();
  }

  async goOnFrom(message, text) {
    if (this.blocked()) return;
    const { checkpoint } = message;
    await this.answer(this.tree.messages.get(message.parent), text, { prefix: text.length, checkpoint });
  }

  blocked() {
    const problem = this.writing.isBusy ? say("busy") : this.problem();
    if (problem) this.frame.notice(problem);
    return Boolean(problem);
  }

  resultOf(message, call) {
    // The results of several calls follow each other.
    const below = this.tree.branch(message);
    return below.find(({ role, call: answered }) => role === "tool" && answered === call.id)?.text ?? null;
  }

  // The result of a call; once all calls of the answer have theirs, the model goes on.
  async answerCall(message, call, text) {
    if (this.blocked()) return;
    message.results = { ...message.results, [call.id]: text };
    await store.put("messages", message);
    if (!message.calls.every(({ id }) => id in message.results)) return this.views.get(message.id).update();
    let parent = message;
    for (const { id } of message.calls) {
      parent = this.tree.add(parent.id, "tool", { call: id, text: message.results[id] });
      await store.put("messages", parent);
    }
    await this.answer(parent);
  }

  // Whether there are pictures to look at before `message` that this browser has.
  async canLook(message) {
    if (!this.status?.model?.vision) return false;
    const pictures = this.tree.path(message).flatMap(store.picturesOf);
    return (await Promise.all(pictures.map((id) => store.get("pictures", id)))).some(Boolean);
  }

  // `wanted`: whether the visitor still waits for it.
  async look(message, index, wanted) {
    try {
      const open = await attentionOf(this.tree.path(this.tree.messages.get(message.parent)), message, index);
      if (wanted()) open();
    } catch (error) {
      this.frame.notice(error.message);
    }
  }

  async reproduce(message) {
    const { tree } = this;
    const unusable = jsonProblem("schema", message.settings.schema) || jsonProblem("tools", message.settings.tools);
    if (unusable) return this.frame.notice(unusable);
    await showPrograms(
      message.checkpoint ?? message.settings.checkpoint ?? this.status?.checkpoint ?? "gemma3-demo",
      tree.path(tree.messages.get(message.parent)),
      message,
      () => linkTo(tree, message),
      this.status?.account,
    );
  }

  // ---- Conversations

  setLeaf(message) {
    this.tree.conversation.leaf = message?.id ?? null;
    this.conversations.save();
    this.show();
  }

  // Shows `tree` in place of the present conversation.
  start(tree) {
    this.tree = tree;
    release();
    this.frame.attach();
    this.views.clear();
    this.inside.shownFor = null;
    document.body.classList.remove("sidebar-open");
    this.composer.fill(tree.conversation.draft);
    this.composer.place = tree.conversation.id;
    this.conversations.typed = false;
    this.frame.notice("");
    this.panel.show();
    this.show();
    this.conversations.list();
    requestAnimationFrame(() => this.frame.scrollToEnd(true));
    this.composer.focus();
  }

  // ---- The server

  async poll() {
    try {
      const status = await getStatus();
      this.lost = false;
      this.changedStatus(status);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.lost = true;
      this.showStatus();
    } finally {
      const wait = this.lost ? POLL.lost : this.status?.phase === "ready" ? POLL.ready : POLL.busy;
      setTimeout(() => this.poll(), document.hidden ? 4 * wait : wait);
    }
  }

  // The model is there: its defaults hold where nothing else was set.
  ready() {
    if (this.frame.said === say("still_loading")) this.frame.notice("");
    if (!this.tree.conversation.settings) this.settings = defaultSettings(this.status.model);
    this.panel.show();
    this.show();
  }

  async begin() {
    this.polled = this.poll();
    await Promise.all([store.open(), claimTab()]);
    store.onFull((error) => this.frame.notice(say("storage_full", { error: error?.message ?? "" })));
    await this.conversations.begin();
    store.sweep();
  }
}

// The index of the first message that the last answer was made from: the turns before it did not fit.
function firstInContext(path) {
  const forgotten = path.findLast((message) => message.role === "assistant")?.forgotten ?? 0;
  return forgotten ? nthQuestion(path, forgotten) : 0;
}

const page = new Page();
followParent();
await page.begin();
