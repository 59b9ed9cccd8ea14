// What was said in a tab, and what of it the model is told: as Conversation in demo/chat.py.

class Conversation {
  constructor() {
    this.turns = []; // {question, pictures, answer, fresh}
    this.laid = []; // the pictures laid out when last asked about
    this.start = 0; // the turn from which on the model is told
  }

  // The turns that a question with the pictures `laid` out would be told. Other pictures are a new subject.
  told(laid) {
    const now = laid.filter(Boolean);
    if (now.length && this.laid.some((picture, i) => picture !== now[i])) return [];
    return this.turns.slice(this.start).filter((turn) => turn.answer);
  }

  // Those of `laid` that the model has not seen in what it is told.
  unseen(laid) {
    return withoutSeen(laid.filter(Boolean), this.told(laid));
  }

  // Adds a question, the answer to which is about to come; `forgotten` and `fresh` as a source's `ask` says.
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
