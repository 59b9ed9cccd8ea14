// Stores conversations in the browser's session storage and polls the server. See demo/session_storage.py.

(() => {
  const POLL_INTERVAL = 2000; // milliseconds
  const POLL_TIMEOUT = 4000; // milliseconds
  const TABS = ["image", "text"];
  const ALL_TABS = [...TABS, "chat"]; // the last keeps its own conversations (demo/chat_page)
  const DISAPPEARING = /^(image|text)-(send|stop|continue)$/; // ids of buttons that disappear when pressed

  // A browser may forbid storage: reading then gives nothing, and writing fails.
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
      return false; // the quota is used up
    }
  }

  // Stores a conversation. The server sends all its turns each time, but each picture only once.
  function keep(tab, packed) {
    if (!packed) return;
    const kept = JSON.parse(packed);
    if (!kept.turns.length) return write(tab, "");
    let before = {};
    try {
      before = JSON.parse(read(tab)).pictures;
    } catch {} // nothing readable is stored
    const shown = kept.turns.flatMap((turn) => turn.pictures);
    const have = { ...before, ...kept.pictures };
    const paths = [...new Set(shown)].filter((path) => path in have);
    // Past the quota, drop the oldest pictures first, then the oldest turns.
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
    write("tab", ALL_TABS.find((tab) => document.querySelector(`#${tab}-tab-button[aria-selected="true"]`)));
  });

  // A restarted server has another id: the page must reload. It must also reload after a lost connection, because
  // Gradio has then ended the events that were running.
  let failures = 0; // in a row
  let disconnected = false;
  function showLost(lost) {
    document.documentElement.toggleAttribute("data-lost", lost);
  }
  async function check() {
    if (document.hidden) return;
    const { root, api_prefix, app_id } = window.gradio_config;
    try {
      const signal = AbortSignal.timeout(POLL_TIMEOUT);
      const headers = { "x-requested-with": "fetch" }; // see demo/auth.py
      const response = await fetch(`${root}${api_prefix}/app_id`, { cache: "no-store", headers, signal });
      if (response.status === 401) return location.reload(); // the browser asks for the new password
      if (!response.ok) throw new Error(response.status);
      const now = await response.json();
      if (disconnected || now.app_id !== app_id) return location.reload();
      failures = 0;
      showLost(false);
    } catch (error) {
      disconnected ||= error.name !== "TimeoutError"; // a slow server has not ended any event
      failures += 1;
      if (failures > 1) showLost(true);
    }
  }
  async function watch() {
    await check();
    setTimeout(watch, POLL_INTERVAL);
  }
  setTimeout(watch, POLL_INTERVAL);
  document.addEventListener("visibilitychange", check);

  // An emptied number field gets its previous value back; Gradio would use the minimum. A field for integers is
  // rounded, so that the page shows the value that is used.
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

  // When a button pressed by keyboard disappears, the focus moves to the prompt.
  addEventListener("click", ({ target, detail }) => {
    const [, tab] = DISAPPEARING.exec(target.closest?.("button")?.id) ?? [];
    const field = () => document.querySelector(`#${tab}-prompt textarea`);
    if (tab && detail === 0) setTimeout(() => field()?.focus()); // after this key event, which would send the prompt
  });

  // Focus the prompt where there is a keyboard. On a phone the on-screen keyboard would cover and scroll the page.
  const start = new MutationObserver(() => {
    const tab = read("tab") || TABS[0];
    const field = document.querySelector(`#${tab}-prompt textarea`);
    const button = document.querySelector(`#${tab}-tab-button`);
    if (tab !== TABS[0]) button?.click();
    if (!(TABS.includes(tab) ? field : button)) return;
    start.disconnect();
    if (matchMedia("(hover: hover) and (pointer: fine)").matches) field?.focus({ preventScroll: true });
  });
  start.observe(document, { childList: true, subtree: true });
})();
