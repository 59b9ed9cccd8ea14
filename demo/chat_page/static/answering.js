// Writes one answer: asks, collects what comes, and goes on by itself after a lost connection. The draws of a seed
// depend on the place of a token alone, so that an answer that goes on is the one that was begun.

import { getStatus, Problem, stream } from "./api.js";
import { chatBody, countQuestions } from "./request.js";

const RETRY = [500, 1000, 2000, 4000]; // milliseconds between attempts to find the server again
const encoder = new TextEncoder();
let prefillRate = null; // seconds for a token of a prompt that was not in the cache, measured here

// Fields of a message while it is written: state "waiting", "writing" or "lost", then "done" or "failed"; text; prefix,
// the characters it began with; tokens, [text, log-probability, [[text, log-probability], …]] of what follows it.
export async function write(message, path, settings, { signal, update }) {
  const started = performance.now();
  Object.assign(message, { state: "waiting", settings, tokens: message.tokens ?? [], problem: null, finish: null });
  message.prefix ??= message.text.length;
  message.forgotten ??= 0;
  let written = message.written ?? 0;
  let first = null;
  let pieces = 0;
  update();
  for (;;) {
    const begun = message.text;
    const before = written;
    try {
      const left = { ...settings, max_tokens: settings.max_tokens - written };
      if (left.max_tokens < 1) return finish("length");
      const body = await chatBody(path, left, begun, message.forgotten);
      const asked = performance.now();
      for await (const chunk of stream("chat/completions", body, signal)) {
        if (chunk.usage) count(chunk.usage, before);
        const [choice] = chunk.choices;
        if (!choice) continue;
        take(choice);
        if (choice.finish_reason) message.finish = choice.finish_reason;
      }
      const { prompt, cached } = message.usage;
      if (first !== null && prompt - cached >= 32) prefillRate = (first - asked) / 1000 / (prompt - cached);
      message.saved = prefillRate === null || !cached ? null : prefillRate * cached;
      return finish(message.finish);
    } catch (error) {
      if (error.name === "AbortError") return finish("cancelled");
      if (
        error.code === "context_length_exceeded" &&
        message.forgotten + 1 < countQuestions(path) &&
        settings.drop_oldest
      ) {
        message.forgotten += 1;
        continue;
      }
      if (!(error instanceof Problem) || error.code !== "lost") return fail(error);
      written -= dropUnfinished(message);
      message.state = "lost";
      update();
      if (!(await serverIsBack(signal))) return finish("cancelled");
      message.state = "waiting";
      update();
    }
  }

  function count(usage, before) {
    written = before + usage.completion_tokens;
    message.usage = { prompt: usage.prompt_tokens, cached: usage.prompt_tokens_details?.cached_tokens ?? 0 };
  }

  function take({ delta, logprobs }) {
    if (delta?.content || delta?.tool_calls || delta?.reasoning_content || logprobs?.content?.length) {
      first ??= performance.now();
      pieces += 1;
      message.first ??= (first - started) / 1000;
      message.state = "writing";
    }
    if (delta?.content) message.text += delta.content;
    if (delta?.reasoning_content) message.thinking = (message.thinking ?? "") + delta.reasoning_content;
    for (const call of delta?.tool_calls ?? [])
      (message.calls ??= []).push({ id: call.id, type: "function", function: call.function });
    for (const { token, logprob, bytes, top_logprobs } of logprobs?.content ?? []) {
      message.tokens.push([token, logprob, top_logprobs.map((other) => [other.token, other.logprob]), bytes.length]);
    }
    update();
  }

  function finish(reason) {
    message.seconds = (performance.now() - started) / 1000;
    Object.assign(message, { state: "done", finish: reason, written });
    // What came in one or two pieces has no speed: it was there when the first of it came.
    if (pieces > 2) message.speed = (written - 1) / ((performance.now() - first) / 1000);
    update(true);
  }

  function fail(error) {
    Object.assign(message, { state: "failed", problem: error.message, finish: "failed", written });
    update(true);
  }
}

// Drops the tokens at the end of which no text has come, as of a part of a character. Returns their number.
function dropUnfinished(message) {
  const bytes = encoder.encode(message.text.slice(message.prefix)).length;
  let held = 0;
  const kept = message.tokens.filter(([, , , length]) => (held += length) <= bytes);
  const dropped = message.tokens.length - kept.length;
  message.tokens = kept;
  return dropped;
}

async function serverIsBack(signal) {
  for (let attempt = 0; ; attempt++) {
    await new Promise((resolve) => {
      setTimeout(resolve, RETRY[Math.min(attempt, RETRY.length - 1)]);
      signal.addEventListener("abort", resolve, { once: true });
    });
    if (signal.aborted) return false;
    try {
      if ((await getStatus()).phase === "ready") return true;
    } catch {} // not yet
  }
}
