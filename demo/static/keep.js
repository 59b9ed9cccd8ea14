// Keeps what is said while the page is open, and sees whether the server is there. See demo/session_storage.py.

(() => {
  const CHECK = 2000; // milliseconds
  const PATIENCE = 4000;
  const TABS = ["image", "text"];
  const GOES = /^(image|text)-(send|stop|continue)$/; // ids of buttons that go away when they are pressed

  // Nothing is kept where the browser allows no storage.
  const key = (what) => `gemma-tpu ${location.pathname} ${what}`;
  function read(what) {
    try {
      return sessionStorage.getItem(key(what)) ?? "";
    } catch {
      return "";
    }
  }
  function write(what, value) {
    try {
      if (value) sessionStorage.setItem(key(what), value);
      else sessionStorage.removeItem(key(what));
      return true;
    } catch {
      return false; // it is full
    }
  }

  // Keeps a conversation. The server says all of it each time, but a picture once.
  function keep(tab, packed) {
    if (!packed) return;
    const kept = JSON.parse(packed);
    if (!kept.turns.length) return write(tab, "");
    let before = {};
    try {
      before = JSON.parse(read(tab)).pictures;
    } catch {} // nothing that can be read has been kept
    const shown = kept.turns.flatMap((turn) => turn.pictures);
    const have = { ...before, ...kept.pictures };
    const paths = [...new Set(shown)].filter((path) => path in have);
    // The oldest pictures go first, then the oldest turns.
    for (;;) {
      kept.pictures = Object.fromEntries(paths.map((path) => [path, have[path]]));
      if (write(tab, JSON.stringify(kept))) return;
      if (paths.length) paths.shift();
      else if (kept.turns.length > 1) {
        kept.turns.shift();
        kept.shortened = true;
        kept.start = Math.max(0, kept.start - 1);
      } else return write(tab, "");
    }
  }

  const stored = (tab) => JSON.stringify({ kept: read(tab), draft: read(`${tab} draft`) });
  window.demoPage = { keep, stored, read, write };

  addEventListener("pagehide", () => {
    for (const tab of TABS) write(`${tab} draft`, document.querySelector(`#${tab}-prompt textarea`)?.value ?? "");
    write("tab", TABS.find((tab) => document.querySelector(`#${tab}-tab-button[aria-selected="true"]`)));
  });

  // The server is asked for its id, which is another one after a restart. The page is then loaded anew, and so it is
  // after the connection was lost, because with it Gradio has ended what was going on.
  let silent = 0;
  let gone = false;
  function showLost(lost) {
    document.documentElement.toggleAttribute("data-lost", lost);
  }
  async function check() {
    if (document.hidden) return;
    const { root, api_prefix, app_id } = window.gradio_config;
    try {
      const signal = AbortSignal.timeout(PATIENCE);
      const headers = { "x-requested-with": "fetch" }; // see demo/auth.py
      const response = await fetch(`${root}${api_prefix}/app_id`, { cache: "no-store", headers, signal });
      if (response.status === 401) return location.reload(); // other accounts: the browser asks for the password
      if (!response.ok) throw new Error(response.status);
      const now = await response.json();
      if (gone || now.app_id !== app_id) return location.reload();
      silent = 0;
      showLost(false);
    } catch (error) {
      gone ||= error.name !== "TimeoutError"; // a server that is slow to answer has ended nothing
      silent += 1;
      if (silent > 1) showLost(true);
    }
  }
  async function watch() {
    await check();
    setTimeout(watch, CHECK);
  }
  setTimeout(watch, CHECK);
  document.addEventListener("visibilitychange", check);

  // A number that is taken away and not given anew stays as it was; Gradio takes the smallest. One that has to be whole
  // is rounded, so that what is shown is what is used.
  const numbers = new WeakMap();
  const isNumber = (element) => element.matches?.('input[type="number"]');
  addEventListener("focus", ({ target }) => isNumber(target) && numbers.set(target, target.value), true);
  addEventListener(
    "blur",
    ({ target }) => {
      if (!isNumber(target)) return;
      const given = target.value || (numbers.get(target) ?? "");
      const used = given && target.step === "1" ? String(Math.round(Number(given))) : given;
      if (used === target.value) return;
      target.value = used;
      target.dispatchEvent(new Event("input", { bubbles: true }));
    },
    true,
  );

  // From a button that goes away when it is pressed by keyboard, the focus moves to the question.
  addEventListener("click", ({ target, detail }) => {
    const [, tab] = GOES.exec(target.closest?.("button")?.id) ?? [];
    const field = () => document.querySelector(`#${tab}-prompt textarea`);
    if (tab && detail === 0) setTimeout(() => field()?.focus()); // after this key, which would send the question
  });

  // With a keyboard at hand the question can be typed at once; on a phone it would cover the page, and scroll it.
  const start = new MutationObserver(() => {
    const tab = read("tab") || TABS[0];
    const field = document.querySelector(`#${tab}-prompt textarea`);
    if (tab !== TABS[0]) document.querySelector(`#${tab}-tab-button`)?.click();
    if (!field) return;
    start.disconnect();
    if (matchMedia("(hover: hover) and (pointer: fine)").matches) field.focus({ preventScroll: true });
  });
  start.observe(document, { childList: true, subtree: true });
})();
