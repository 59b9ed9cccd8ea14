// Builds the page.

const dark = matchMedia("(prefers-color-scheme: dark)");
const darken = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", darken);
darken();

const tabs = [...Object.keys(DATA.settings).map((name) => new Tab(name)), new ChatTab()];
const header = new Header({ onLoad: load, onConnect: connect, onDisconnect: () => use(new Recorded(DATA.recording)) });
let source = null;

function use(chosen) {
  source?.close();
  source = chosen;
  source.onHeads = () => header.show();
  source.onLost = () => header.refuse(() => say("server_lost", { server: chosen.server }));
  header.use(source);
  tabs.forEach((tab) => tab.use(source));
}

async function load() {
  try {
    await source.load();
  } catch (error) {
    header.refuse(error.words ?? (() => say("server_lost", { server: source.server })));
  }
}

async function connect(address) {
  header.connecting = true;
  header.show();
  try {
    use(await Live.connect(address));
  } catch (error) {
    header.refuse(error.words ?? (() => say("server_malformed", { server: address })));
  }
}

// The tabs. Arrow keys follow the ARIA Authoring Practices.
const buttons = tabs.map(({ name }) =>
  makeSaying(`tab_${name}`, "button", { id: `${name}-tab-button`, role: "tab", "aria-controls": `${name}-tab` }),
);
const panels = tabs.map(({ name, element }) =>
  make("div", { id: `${name}-tab`, class: "tabitem", role: "tabpanel", "aria-labelledby": `${name}-tab-button` }, element),
);
const list = make("div", { class: "tab-container", role: "tablist" }, ...buttons);
document.getElementById("tabs").append(list, ...panels);

function open(chosen) {
  buttons.forEach((button, i) => {
    button.className = i === chosen ? "selected" : "";
    button.setAttribute("aria-selected", i === chosen);
    button.tabIndex = i === chosen ? 0 : -1;
    panels[i].hidden = i !== chosen;
  });
  document.body.classList.toggle("wide", tabs[chosen].name === "chat");
  tabs[chosen].fit();
}

buttons.forEach((button, i) => button.addEventListener("click", () => open(i)));
list.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const chosen = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
  open(chosen);
  buttons[chosen].focus();
});

// A picture dropped outside a place must not replace the page. A pasted picture goes to the first place.
for (const type of ["dragover", "drop"]) addEventListener(type, (event) => event.preventDefault());
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  const tab = tabs.find(({ places }, i) => places.length && !panels[i].hidden);
  if (file && tab) tab.places[0].read(file);
});

use(new Recorded(DATA.recording));
setLanguage(language);
open(0);
const given = new URLSearchParams(location.search).get("server");
if (given !== null) {
  header.address.value = given;
  connect(given);
}
