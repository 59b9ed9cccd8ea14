// Another checkpoint in the place of the one that is loaded.

import { act, BUSY, getStatus, Problem } from "./api.js";
import { language, say } from "./words.js";

const LOOK = 500; // milliseconds between two looks at a load

const busy = (occupancy) => Boolean(occupancy && occupancy.running + occupancy.waiting);

// Waits until `checkpoint` is loaded, and begins that if need be, once nobody's answer is being written, as each would
// end. `changed(status)` is told what the server says.
export async function bring(checkpoint, signal, changed) {
  let status = await getStatus();
  while (status.checkpoint !== checkpoint && busy(status.model?.occupancy)) {
    await new Promise((resolve) => setTimeout(resolve, LOOK));
    signal.throwIfAborted();
    status = await getStatus();
  }
  status = await act("load", { checkpoint });
  for (;;) {
    signal.throwIfAborted();
    changed(status);
    if (status.checkpoint !== checkpoint) throw new Problem(say("loaded_otherwise", { checkpoint }), "refused");
    if (status.phase === "ready") return;
    if (!BUSY.includes(status.phase))
      throw new Problem(status.texts[language].error || say("loaded_otherwise", { checkpoint }), "refused");
    await new Promise((resolve) => setTimeout(resolve, LOOK));
    status = await getStatus();
  }
}
