// Elements. Text only ever becomes text nodes, never markup.

// <tag> with properties (dashes make attributes, `on` has listeners) and children, of which null is none.
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

// <tag> that says `key` of the texts in the language of the moment.
function makeSaying(key, tag, properties = {}) {
  const element = make(tag, properties);
  inEveryLanguage(() => (element.textContent = say(key)));
  return element;
}

function notice(message) {
  return make("p", { class: "notice", role: "alert" }, message);
}
