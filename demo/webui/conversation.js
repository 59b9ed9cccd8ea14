// The conversation of one tab, and the part of it that is in the model's prompt. Like Conversation in demo/chat.py.

class Conversation {
  constructor() {
    this.turns = []; // {question, pictures, answer, fresh}
    this.laid = []; // the pictures in the tab's places at the last question that had any
    this.start = 0; // the first turn in the model's prompt
  }

  // The earlier turns in the prompt of a question with the pictures `laid`. Other pictures start a new conversation.
  told(laid) {
    const now = laid.filter(Boolean);
    if (now.length && this.laid.some((picture, i) => picture !== now[i])) return [];
    return this.turns.slice(this.start).filter((turn) => turn.answer);
  }

  // The pictures of `laid` that are not yet in the model's prompt.
  unseen(laid) {
    return withoutSeen(laid.filter(Boolean), this.told(laid));
  }

  // Adds a question without an answer. `forgotten` and `fresh` come from a source's `ask` (recorded.js).
  add(question, laid, forgotten, fresh) {
    const told = fresh ? [] : this.told(laid);
    const lost = told.slice(0, forgotten).flatMap((turn) => turn.pictures);
    const kept = told.slice(forgotten);
    const wanted = [...new Set([...lost, ...laid.filter(Boolean)])];
    const turn = { question, pictures: withoutSeen(wanted, kept), answer: "", fresh: fresh && this.turns.length > 0 };
    this.start = kept.length ? this.turns.indexOf(kept[0]) : this.turns.length;
    if (laid.some(Boolean)) this.laid = laid.filter(Boolean);
    this.turns.push(turn);
    return turn;
  }
}

function withoutSeen(pictures, turns) {
  const seen = new Set(turns.flatMap((turn) => turn.pictures));
  return pictures.filter((picture) => !seen.has(picture));
}
