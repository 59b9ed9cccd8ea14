// A source of answers that replays recorded runs, and refuses questions that were not recorded.
//
// A source has `heads` (the header by language), `onHeads` (called when those change), `load`, `close`, `questions` and
// `ask`, which resolves to {fresh, forgotten, events, stop} or throws a Refusal. `fresh` says that the answer is given
// without the turns before it, `forgotten` how many turns did not fit into the context; `events` yields {piece}s, then
// one {statistics, error}: functions that return the text in the current language (error is absent on success).

const LOADING_FASTER = 4;
const ANSWERS_SLOWER = 8;

class Recorded {
  constructor(recording) {
    this.recording = recording;
    this.heads = recording.idle;
    this.onHeads = () => {};
  }

  async load() {
    const began = performance.now();
    for (const [seconds, heads] of this.recording.loading) {
      await pause((1000 * seconds) / LOADING_FASTER - (performance.now() - began));
      this.heads = heads;
      this.onHeads();
    }
  }

  // `told` are the turns so far, as {question, pictures, answer}; `pictures` those to be shown with this question.
  async ask(tab, told, question, pictures, settings) {
    const roots = this.recording.runs[tab];
    const after = told.reduce((runs, turn) => find(runs, turn.question, turn.pictures)?.next ?? [], roots);
    const run = find(after, question, pictures) ?? find(roots, question, pictures);
    if (!run) {
      const known = (runs) => runs.some((one) => samePictures(one.pictures, pictures) || known(one.next));
      throw unrecorded(known(roots) ? "question" : "picture");
    }
    if (!this.sameAnswer(run, settings)) throw unrecorded("settings");
    const stopped = new AbortController();
    const events = this.replay(run, stopped.signal);
    return { fresh: !after.includes(run), forgotten: 0, events, stop: () => stopped.abort() };
  }

  // The recorded questions that can follow `told` without new pictures.
  questions(tab, told) {
    const roots = this.recording.runs[tab];
    return told.reduce((runs, turn) => find(runs, turn.question, turn.pictures)?.next ?? [], roots).map((run) => run.question);
  }

  // Whether the answer would be the same with `settings`. With temperature 0 no other setting changes an answer that
  // is shorter than max_tokens.
  sameAnswer(run, settings) {
    const without = new Set(["drop_oldest"]);
    if (settings.temperature === 0) ["top_k", "top_p", "min_p", "draw", "seed"].forEach((name) => without.add(name));
    if (settings.max_tokens > run.pieces.at(-1)[1]) without.add("max_tokens");
    return Object.entries(settings).every(([name, value]) => without.has(name) || value === this.recording.settings[name]);
  }

  async *replay(run, stopped) {
    const began = performance.now();
    let written = 0;
    for (const [seconds, tokens, piece] of run.pieces) {
      await pause(1000 * seconds * ANSWERS_SLOWER - (performance.now() - began), stopped);
      if (stopped.aborted) {
        const count = () => say(written === 1 ? "stat_token" : "stat_tokens", { count: written });
        yield { statistics: () => `${say("recording")} · ${count()} · ${say("ended_cancelled")}` };
        return;
      }
      written = tokens;
      yield { piece };
    }
    yield { statistics: () => `${say("recording")} · ${run.statistics[language]}` };
  }

  close() {
    this.onHeads = () => {};
  }
}

function unrecorded(what) {
  return new Refusal(() => `${say(`unrecorded_${what}`)} ${say("unrecorded_help")}`);
}

function find(runs, question, pictures) {
  return runs.find((run) => run.question === question && samePictures(run.pictures, pictures));
}

// Whether the examples named `files` equal `pictures`, which are data URLs.
function samePictures(files, pictures) {
  return files.length === pictures.length && files.every((file, i) => DATA.pictures[file] === pictures[i]);
}

// Resolves after `milliseconds`, or as soon as `stopped` is aborted.
function pause(milliseconds, stopped) {
  return new Promise((resolve) => {
    if (stopped?.aborted) return resolve();
    setTimeout(resolve, Math.max(0, milliseconds));
    stopped?.addEventListener("abort", resolve, { once: true });
  });
}
