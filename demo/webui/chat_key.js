// What makes two requests of the Chat page the same: all but the seed, which is drawn anew each time.

function requestKey(path, body) {
  return JSON.stringify([path, JSON.parse(body ?? "null")], (name, value) => (name === "seed" ? undefined : value));
}
