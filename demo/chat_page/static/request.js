// What is sent for an answer: the messages of a path, and the settings as OpenAI's fields.

import { jsonProblem } from "./settings.js";
import { get } from "./store.js";

export const TOP = 5; // alternatives that are shown of each token

const urls = new Map(); // picture → data URL, of the few used last

export async function dataUrl(id) {
  if (urls.has(id)) return urls.get(id);
  const record = await get("pictures", id);
  if (!record) return null; // the browser has deleted it
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(record.blob);
  });
  const typed = url.startsWith("data:image/") ? url : url.replace(/^data:[^;,]*/, "data:image/unknown");
  if (urls.size > 32) urls.delete(urls.keys().next().value);
  urls.set(id, typed);
  return typed;
}

// OpenAI's messages of `path`, without the first `forgotten` turns. A picture that is gone is left out.
export async function toMessages(path, settings, forgotten = 0) {
  const first = nthQuestion(path, forgotten);
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const message of path.slice(first)) messages.push(await toMessage(message, settings));
  return messages;
}

// The index of question `number` of `path`.
export function nthQuestion(path, number) {
  const questions = path.flatMap((message, i) => (message.role === "user" ? [i] : []));
  return questions[number] ?? 0;
}

export const countQuestions = (path) => path.filter((message) => message.role === "user").length;

async function toMessage(message, settings) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.call, content: message.text };
  if (message.role === "assistant") {
    const calls = message.calls?.length ? { tool_calls: message.calls } : {};
    return { role: "assistant", content: message.text || (message.calls?.length ? null : ""), ...calls };
  }
  const content = [];
  for (const part of message.parts) {
    if (part.picture === undefined) content.push({ type: "text", text: part.text });
    else {
      const url = await dataUrl(part.picture);
      if (url)
        content.push({ type: "image_url", image_url: { url, ...(settings.pan_and_scan ? { detail: "high" } : {}) } });
    }
  }
  const plain = content.length === 1 && content[0].type === "text";
  return { role: "user", content: plain ? content[0].text : content };
}

// Whether answers are held to a form, which the server follows from their beginning: a part cannot be gone on with.
export const isHeld = (settings) => Boolean(settings.schema.trim() || settings.tools.trim());

// The settings of one answer as fields of the request; those without effect are left out.
export function toFields(settings) {
  const fields = { max_tokens: settings.max_tokens, temperature: settings.temperature };
  if (settings.temperature > 0) {
    const { top_k, top_p, min_p, seed } = settings;
    Object.assign(fields, { top_k, top_p, min_p, seed });
  }
  const stop = settings.stop.filter(Boolean);
  if (stop.length) fields.stop = stop;
  if (settings.probabilities) Object.assign(fields, { logprobs: true, top_logprobs: TOP });
  if (settings.schema.trim()) {
    const schema = JSON.parse(settings.schema);
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (settings.tools.trim()) {
    fields.tools = JSON.parse(settings.tools);
    if (settings.must_call) fields.tool_choice = "required";
  }
  return fields;
}

// What the model has read once the last message of `path` is there, as fields of a request to count its tokens.
export async function toPrompt(path, settings) {
  const last = path.at(-1);
  const messages = await toMessages(path, settings, last.forgotten ?? 0);
  const tools =
    settings.tools.trim() && !jsonProblem("tools", settings.tools) ? { tools: JSON.parse(settings.tools) } : {};
  return { messages, ...(last.role === "assistant" ? { continue_final_message: true } : {}), ...tools };
}

// The body for an answer after `path` that begins with `begun`.
export async function chatBody(path, settings, begun = "", forgotten = 0) {
  const messages = await toMessages(path, settings, forgotten);
  const go = begun ? { continue_final_message: true, add_generation_prompt: false } : {};
  if (begun) messages.push({ role: "assistant", content: begun });
  return { messages, ...toFields(settings), ...go };
}
