// Writes one answer: asks, collects what comes, and goes on by itself after a lost connection. The draws of a seed
// depend on the place of a token alone, so that an answer that goes on is the one that was begun.

import { getStatus, Problem, SOFT, stream, tokenize } from "./api.js";
import { say } from "./words.js";
import { chatBody, countQuestions, isHeld } from "./request.js";

// What fewer turns help against: too many tokens, or pictures.
const TOO_MUCH = /^context_length_exceeded|more than \d+ images/;
const RETRY = [500, 1000, 2000, 4000]; // milliseconds between attempts to find the server again
const encoder = new TextEncoder();
const LEAST = 256; // tokens of a prompt whose time says something of each: shorter ones take as long
let prefillRate = null; // seconds for a token of a prompt that was not in the cache, measured here

// `prepare` is awaited before the server is asked, also once more after a lost connection.
//
// Fields of a message while it is written: state "waiting", "writing" or "lost", then "done" or "failed"; text; prefix,
// the characters it began with; tokens, [text, log-probability, [[text, log-probability], …]] of what follows it.
export async function write(message, path, settings, { signal, update, prepare }) {
  let started = null;
  Object.assign(message, { state: "waiting", settings, tokens: message.tokens ?? [], problem: null, finish: null });
  message.prefix ??= message.text.length;
  message.forgotten ??= 0;
  let written = message.written ?? 0;
  takeUp();
  let first = null; // when the first piece came of what was asked for last
  let pieces = 0;
  let from = written; // tokens before it
  update();
  for (;;) {
    const begun = message.text;
    const before = written;
    [first, pieces, from] = [null, 0, written];
    try {
      const left = { ...settings, max_tokens: settings.max_tokens - written };
      if (left.max_tokens < 1) return finish("length");
      await prepare();
      started ??= performance.now();
      const body = await chatBody(path, left, begun, message.forgotten);
      const asked = performance.now();
      for await (const chunk of stream("chat/completions", body, signal)) {
        if (chunk.usage) count(chunk.usage, before);
        if ("place" in chunk) {
          message.place = chunk.place;
          update();
        }
        const [choice] = chunk.choices;
        if (!choice) continue;
        take(choice);
        if (choice.finish_reason) message.finish = choice.finish_reason;
      }
      const { prompt, cached } = message.usage;
      if (first !== null && prompt - cached >= LEAST) prefillRate = (first - asked) / 1000 / (prompt - cached);
      message.usage.pictures = body.messages.flatMap(picturesIn).length;
      if (settings.pan_and_scan) message.usage.soft = await softTokens(body.messages, signal);
      message.saved = prefillRate === null || !cached ? null : prefillRate * cached;
      return finish(message.finish);
    } catch (error) {
      if (error.name === "AbortError") return finish("cancelled");
      const more = message.forgotten + 1 < countQuestions(path);
      if (settings.drop_oldest && more && TOO_MUCH.test(`${error.code} ${error.message}`)) {
        message.forgotten += 1;
        continue;
      }
      const again = error.code === "lost" || (error.code === "unloaded" && settings.checkpoint);
      if (!(error instanceof Problem) || !again) return fail(error);
      takeUp();
      message.state = "lost";
      update();
      try {
        if (!(await serverIsBack(signal, settings.checkpoint))) return finish("cancelled");
      } catch (problem) {
        return fail(problem);
      }
      message.state = "waiting";
      update();
    }
  }

  // Keeps what the answer can go on from.
  function takeUp() {
    if (!isHeld(settings)) written -= dropUnfinished(message);
    else {
      Object.assign(message, { text: message.text.slice(0, message.prefix), tokens: [], calls: undefined });
      message.thinking = undefined;
      message.written = written = 0;
    }
  }

  function count(usage, before) {
    message.written = written = before + usage.completion_tokens;
    message.usage = {
      prompt: usage.prompt_tokens - before,
      cached: Math.min(usage.prompt_tokens_details?.cached_tokens ?? 0, usage.prompt_tokens - before),
    };
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
    delete message.place;
    message.seconds = (performance.now() - (started ?? performance.now())) / 1000;
    Object.assign(message, { state: "done", finish: reason, written });
    // What came in one or two pieces has no speed: it was there when the first of it came.
    if (pieces > 2) message.speed = (written - from - 1) / ((performance.now() - first) / 1000);
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

const picturesIn = ({ content }) => (Array.isArray(content) ? content.filter(({ type }) => type === "image_url") : []);

// Those of the pictures and their crops, whose number only the server knows.
async function softTokens(messages, signal) {
  const continued = messages.at(-1).role === "assistant" ? { continue_final_message: true } : {};
  const { tokens } = await tokenize({ messages, ...continued }, signal);
  return tokens.filter((token) => token === SOFT).length;
}

// Whether the server is there again, with a model or, if a checkpoint is to be loaded anyway, without.
async function serverIsBack(signal, checkpoint) {
  for (let attempt = 0; ; attempt++) {
    await new Promise((resolve) => {
      setTimeout(resolve, RETRY[Math.min(attempt, RETRY.length - 1)]);
      signal.addEventListener("abort", resolve, { once: true });
    });
    if (signal.aborted) return false;
    let phase = null;
    try {
      ({ phase } = await getStatus());
    } catch {} // not yet
    if (phase === "ready" || (phase && checkpoint)) return true;
    if (phase === "failed" || phase === "idle")
      throw new Problem(say(phase === "idle" ? "not_loaded" : "load_failed"), "refused");
  }
}
