// Creating elements. Text always becomes text nodes, never markup.

// Creates <tag>. Properties with a dash are attributes, `on` maps events to listeners, and null children are skipped.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") Object.entries(value).forEach(([event, listener]) => element.addEventListener(event, listener));
    else if (name === "class") element.className = value;
    else if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Creates <tag> with the text `key` in the current language, and updates it when the language changes.
function makeSaying(key, tag, properties = {}) {
  const element = make(tag, properties);
  inEveryLanguage(() => (element.textContent = say(key)));
  return element;
}

function notice(message) {
  return make("p", { class: "notice", role: "alert" }, message);
}
