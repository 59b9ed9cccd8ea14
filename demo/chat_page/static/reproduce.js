// The same answer from Python, the command line and curl.

import { copyText, download, iconButton, make, randomId } from "./dom.js";
import { nthQuestion, toFields } from "./request.js";
import { get, picturesOf } from "./store.js";
import { ADDRESS, say } from "./words.js";

const python = (value) => {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([key, item]) => `${JSON.stringify(key)}: ${python(item)}`)
      .join(", ")}}`;
  // JSON's strings are Python's, but for surrogates and what JSON leaves as it is.
  return typeof value === "string"
    ? JSON.stringify(value).replace(/[\u2028\u2029]/g, (char) => `\\u${char.charCodeAt(0).toString(16)}`)
    : String(value);
};
const shell = (text) => (/^[\w./:=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

// {messages, files}: pictures stand as "picture-1.png" and so on.
function named(path, settings) {
  const files = [];
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const message of path) {
    if (message.role === "user")
      messages.push({
        role: "user",
        content: message.parts.map((part) =>
          part.picture ? { type: "image", image: file(part.picture) } : { type: "text", text: part.text },
        ),
      });
    else if (message.role === "assistant")
      messages.push({
        role: "assistant",
        content: message.text,
        ...(message.calls?.length ? { tool_calls: message.calls } : {}),
      });
    else messages.push({ role: "tool", content: message.text, tool_call_id: message.call });
  }
  return { messages, files };

  function file(id) {
    let at = files.indexOf(id);
    if (at < 0) at = files.push(id) - 1;
    return `picture-${at + 1}`;
  }
}

const extensions = {
  "image/jpeg": "jpg",
  "image/png": "png",
  "image/webp": "webp",
  "image/gif": "gif",
  "image/heic": "heic",
  "image/avif": "avif",
  "image/bmp": "bmp",
  "image/tiff": "tiff",
};

async function withExtensions(files) {
  const names = new Map();
  for (const [i, id] of files.entries()) {
    const record = await get("pictures", id);
    // A name may come from a file that somebody sent: only what cannot mean anything to a shell is taken from it.
    const extension = extensions[record?.blob.type] ?? /\.([a-z0-9]{1,5})$/i.exec(record?.name ?? "")?.[1] ?? "png";
    names.set(`picture-${i + 1}`, { name: `picture-${i + 1}.${extension}`, blob: record?.blob });
  }
  return names;
}

// Python, command line and curl for the answer `message` after `path`. `command` is null for what one command cannot ask, and
// `python` for what only the server holds answers to. `account`: whose password the server asks for, if it does.
export function programs(checkpoint, path, message, names, address, account) {
  const { settings } = message;
  const { messages } = named(path, settings);
  const begun = message.text.slice(0, message.prefix ?? 0);
  const fields = toFields({ ...settings, probabilities: false });
  return {
    python: fields.tool_choice ? null : pythonProgram(checkpoint, messages, begun, settings, fields, names),
    command: command(checkpoint, path, messages, begun, settings, fields, names),
    curl: curl(messages, begun, settings, fields, names, address, account),
  };
}

function pythonProgram(checkpoint, messages, begun, settings, fields, names) {
  const shown = messages.map((message) => ({
    ...message,
    content: Array.isArray(message.content)
      ? message.content.map((part) => (part.image ? { ...part, image: names.get(part.image).name } : part))
      : message.content,
  }));
  if (begun) shown.push({ role: "assistant", content: begun });
  const { max_tokens, response_format, ...sampling } = fields;
  const options = {
    max_new_tokens: max_tokens,
    ...sampling,
    ...(settings.pan_and_scan ? { pan_and_scan: true } : {}),
    ...(begun ? { continue_final: true } : {}),
  };
  const given = Object.entries(options).map(([name, value]) => `    ${name}=${python(value)},`);
  if (response_format)
    given.push(`    grammar=gemma_tpu.Grammar.json_schema(${python(response_format.json_schema.schema)}),`);
  const list = shown.map((message) => `    ${python(message)},`).join("\n");
  return `import gemma_tpu\n\nmodel = gemma_tpu.load(${python(checkpoint)})\nmessages = [\n${list}\n]\nanswer = model.generate(\n    messages,\n${given.join("\n")}\n)\nprint(${begun ? 'messages[-1]["content"] + ' : ""}answer.text)\n`;
}

function command(checkpoint, path, messages, begun, settings, fields, names) {
  const single = path.length === 1 && path[0].parts.every((part, i) => part.picture || i === path[0].parts.length - 1);
  if (!single || fields.response_format || fields.tools) return null;
  const question = path[0].parts.map((part) => part.text ?? "").join("");
  const images = [...names.values()].flatMap(({ name }) => ["--image", name]);
  const options = {
    "max-new-tokens": fields.max_tokens,
    temperature: fields.temperature,
    "top-k": fields.top_k,
    "top-p": fields.top_p,
    "min-p": fields.min_p,
    seed: fields.seed,
  };
  const given = Object.entries(options).flatMap(([name, value]) =>
    value === undefined ? [] : [`--${name}`, String(value)],
  );
  // With "=", as a value may begin with a dash.
  const texts = [
    ...(fields.stop ?? []).map((text) => ["stop", text]),
    ...(settings.system.trim() ? [["system", settings.system]] : []),
    ...(begun ? [["continue", begun]] : []),
  ];
  const more = texts.map(([name, value]) => `--${name}=${value}`);
  if (settings.pan_and_scan) more.push("--pan-and-scan");
  return (
    ["gemma-tpu", "generate", checkpoint, ...images, ...given, ...more, "--", question].map(shell).join(" ") + "\n"
  );
}

// Pictures are put in by the shell, and so the body is a here document in which $ and ` stand for themselves.
function curl(messages, begun, settings, fields, names, address, account) {
  const places = new Map();
  const place = (image) => {
    const key = randomId(); // which nothing else in the text is
    const { name, blob } = names.get(image);
    const type = extensions[blob?.type] ? blob.type : "image/png";
    places.set(key, `data:${type};base64,$(base64 < ${name} | tr -d '\\n')`);
    return key;
  };
  const sent = messages.map((message) => ({
    ...message,
    content: Array.isArray(message.content)
      ? message.content.map((part) =>
          part.image
            ? {
                type: "image_url",
                image_url: { url: place(part.image), ...(settings.pan_and_scan ? { detail: "high" } : {}) },
              }
            : part,
        )
      : message.content,
  }));
  if (begun) sent.push({ role: "assistant", content: begun });
  const body = { messages: sent, ...fields, ...(begun ? { continue_final_message: true } : {}) };
  let text = JSON.stringify(body, null, 1).replace(/[\\$`]/g, "\\$&");
  for (const [key, value] of places) text = text.replaceAll(key, () => value);
  const user = account ? ` -u ${shell(account)}` : ""; // it asks for the password
  return `curl -s${user} ${address}/v1/chat/completions -H 'Content-Type: application/json' -d @- <<END\n${text}\nEND\n`;
}

// As it is sent: without the pictures that are not in this browser.
async function withoutMissing(message) {
  if (!message.parts) return message;
  const stored = await Promise.all(message.parts.map(({ picture }) => !picture || get("pictures", picture)));
  return { ...message, parts: message.parts.filter((_, i) => stored[i]) };
}

// A dialog with the programs and the pictures that they read.
export async function showPrograms(checkpoint, whole, message, link, account) {
  const read = whole.slice(nthQuestion(whole, message.forgotten ?? 0)); // without the turns that were left out
  const path = await Promise.all(read.map(withoutMissing));
  const missing = read.some((one, i) => picturesOf(one).length > picturesOf(path[i]).length);
  const { files } = named(path, message.settings);
  const names = await withExtensions(files);
  const address = new URL("..", ADDRESS).href.replace(/\/$/, "");
  const made = programs(checkpoint, path, message, names, address, account);
  const dialog = make("dialog", { class: "programs", "aria-label": say("reproduce") });
  const block = (title, text) =>
    make(
      "section",
      {},
      make(
        "h3",
        {},
        title,
        iconButton("copy", `${say("copy")}: ${title}`, () => copyText(text), { class: "small" }),
      ),
      make("pre", { tabIndex: 0 }, text),
    );
  const pictures = [...names.values()]
    .filter(({ blob }) => blob)
    .map(({ name, blob }) =>
      make("button", { type: "button", class: "quiet", on: { click: () => download(name, blob) } }, name),
    );
  const close = iconButton("close", say("close"), () => dialog.close(), { class: "close" });
  dialog.append(
    make("header", {}, make("h2", {}, say("reproduce")), close),
    make("p", { class: "hint" }, say("reproduce_about")),
    ...(pictures.length ? [make("p", { class: "files" }, say("reproduce_pictures"), ...pictures)] : []),
    ...(made.python ? [block("Python", made.python)] : []),
    ...(missing ? [make("p", { class: "hint" }, say("without_pictures"))] : []),
    ...(message.prefix ? [make("p", { class: "hint" }, say("only_rest"))] : []),
    made.command ? block(say("command_line"), made.command) : make("p", { class: "hint" }, say("no_command")),
    block("curl", made.curl),
    make(
      "p",
      {},
      make(
        "button",
        { type: "button", class: "quiet", on: { click: async () => copyText(await link()) } },
        say("copy_link"),
      ),
      " ",
      make("small", {}, say("link_about")),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
