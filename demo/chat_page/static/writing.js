// The answers that are being written: each goes on while another conversation is shown, and in a tab that is reloaded.

import { write } from "./answering.js";
import { bring } from "./checkpoints.js";
import { act, Problem } from "./api.js";
import { randomId } from "./dom.js";
import * as store from "./store.js";
import { say } from "./words.js";

const BEAT = 5000; // milliseconds between signs that an answer is still being written
const SAVE = 400; // milliseconds between writes of an answer that grows
const ACTIVE = ["waiting", "writing", "lost"];
const KEY = "gemma-tpu chat tab";
let tab = null;

// Finds out who this tab is: over a reload the same, but not the copy of another tab, which has the other's storage.
export async function claimTab() {
  const mine = stored() ?? randomId();
  const held = new Promise((resolve) => {
    if (!navigator.locks) return resolve(true); // where the origin is not secure
    const hold = (lock) => {
      resolve(Boolean(lock));
      return lock && new Promise(() => {}); // as long as the tab is there
    };
    navigator.locks.request(`${KEY} ${mine}`, { ifAvailable: true }, hold).catch(() => resolve(true)); // forbidden
  });
  tab = (await held) ? mine : randomId();
  try {
    sessionStorage.setItem(KEY, tab);
  } catch {} // storage may be forbidden
}

function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // storage may be forbidden
  }
}

export class Writing {
  // `page`: see Page in main.js.
  constructor(page) {
    this.page = page;
    this.running = new Map(); // message → {tree, controller, ended, forgotten}
  }

  has(message) {
    return this.running.has(message.id);
  }

  // What is loaded answers first.
  writeAll(messages) {
    const loaded = ({ settings }) => Number(settings.checkpoint === this.page.status?.checkpoint);
    const order = messages.toSorted((one, other) => loaded(other) - loaded(one));
    return Promise.all(order.map((message) => this.write(message, message.settings)));
  }

  async write(message, settings) {
    const { page } = this;
    const { tree } = page;
    const path = tree.path(tree.messages.get(message.parent));
    const before = [...this.running.values()].map(({ ended }) => ended);
    const one = { tree, controller: new AbortController(), forgotten: false };
    one.ended = new Promise((resolve) => (one.end = resolve));
    const keep = () => {
      message.beat = Date.now();
      return one.forgotten ? null : store.put("messages", message);
    };
    const beat = setInterval(keep, BEAT);
    this.running.set(message.id, one);
    message.tab = tab;
    let saved = 0;
    let drawn = false;
    const update = () => {
      if (performance.now() - saved > SAVE) {
        saved = performance.now();
        keep();
      }
      if (drawn) return;
      drawn = true;
      requestAnimationFrame(() => {
        drawn = false;
        if (page.tree !== tree) return;
        page.views.get(message.id)?.update();
        page.frame.scrollToEnd();
      });
    };
    if (page.tree === tree) page.show();
    page.frame.scrollToEnd(true);
    const { signal } = one.controller;
    const prepare = () => this.prepare(message, settings.checkpoint, before, signal, update);
    try {
      await write(message, path, settings, { signal, update, prepare });
    } finally {
      one.end();
      clearInterval(beat);
      this.running.delete(message.id);
      if (page.tree === tree) {
        page.show();
        page.frame.scrollToEnd();
      }
      await keep();
      if (!one.forgotten) page.conversations.changed(tree.conversation.id); // by others, meanwhile
    }
  }

  // Loads the checkpoint that an answer is asked of, if it names one, after the answers that were begun `before` it.
  async prepare(message, checkpoint, before, signal, update) {
    const { page } = this;
    await Promise.race([page.known, aborted(signal)]);
    const loaded = page.status.checkpoint;
    if (checkpoint && checkpoint !== loaded) {
      await Promise.race([Promise.all(before), aborted(signal)]);
      message.loading = { checkpoint };
      update();
      try {
        await bring(checkpoint, signal, (status) => page.changedStatus(status));
      } catch (error) {
        if (error.code === "refused") act("load", { checkpoint: loaded }).catch(() => {}); // who asks next is told
        throw error;
      } finally {
        delete message.loading;
      }
    }
    // What one model has begun no other goes on with.
    const now = checkpoint ?? page.status.checkpoint;
    if (message.text && message.checkpoint && message.checkpoint !== now)
      throw new Problem(say("by_another", { checkpoint: message.checkpoint }), "refused");
    message.checkpoint = now;
  }

  // What is being written in the conversation that is shown.
  get here() {
    return [...this.running.values()].filter(({ tree }) => tree === this.page.tree);
  }

  get isBusy() {
    return this.here.length > 0;
  }

  // Stops an answer, or all that are written here. Whether there was anything to stop.
  stop(message = null) {
    const running = message ? [this.running.get(message.id)] : this.here;
    running.forEach((one) => one?.controller.abort());
    return running.length > 0;
  }

  // The conversation `id` if an answer in it is being written.
  treeOf(id) {
    return [...this.running.values()].find(({ tree }) => tree.conversation.id === id)?.tree ?? null;
  }

  // Ends the answers of a conversation that is being deleted, and keeps nothing more of them.
  forget(id) {
    for (const one of this.running.values()) {
      if (one.tree.conversation.id !== id) continue;
      one.forgotten = true;
      one.controller.abort();
    }
  }

  // Answers go on that this tab was writing when it was reloaded, and those of tabs that are no longer there.
  resume() {
    const { tree } = this.page;
    const left = (message) => (message.tab === tab ? 0 : Math.max(0, (message.beat ?? 0) + 3 * BEAT - Date.now()));
    const begun = [...tree.messages.values()].filter(
      ({ state, id }) => ACTIVE.includes(state) && !this.running.has(id),
    );
    const others = begun.map(left).filter(Boolean);
    clearTimeout(this.later);
    if (others.length)
      this.later = setTimeout(() => this.page.tree === tree && this.resume(), Math.min(...others) + 100);
    this.writeAll(begun.filter((message) => !left(message)));
  }
}

// Rejects when `signal` is aborted.
const aborted = (signal) =>
  new Promise((_, reject) => {
    const reason = () => reject(signal.reason);
    if (signal.aborted) reason();
    signal.addEventListener("abort", reason, { once: true });
  });
