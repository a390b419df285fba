"use strict";
// What the page holds: an index, read at once, and pieces with the rollouts of some groups, read when they are needed.

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

let lastPiece = { id: null, groups: null }; // the one that was read last is kept: its neighbours are opened next

async function rolloutsOf(run, line) {
  const id = `piece-${line.piece}`;
  if (lastPiece.id !== id) lastPiece = { id, groups: await unpack(id) };
  return lastPiece.groups[line.place];
}

// What a turn wrote once more, token by token; and words of our own.
const NO_TEXTS = ["pieces", "status", "ended"];

function holds(value, words) {
  if (typeof value === "string") return value.toLowerCase().includes(words);
  if (value === null || typeof value !== "object") return false;
  return Object.entries(value).some(([name, inside]) => !NO_TEXTS.includes(name) && holds(inside, words));
}

// The keys of a run's groups that hold these words in any text. `told` hears how far it is; false from it ends the
// search.
async function groupsWith(run, words, told) {
  const lines = INDEX.runs[run].groups;
  const found = new Set();
  const ids = [...new Set(lines.map((line) => line.piece))];
  const byPiece = new Map(ids.map((id) => [id, []]));
  for (const line of lines) byPiece.get(line.piece).push(line);
  for (const [number, id] of ids.entries()) {
    if (!told(number / ids.length)) return null;
    const groups = await unpack(`piece-${id}`);
    for (const line of byPiece.get(id)) if (holds(groups[line.place], words)) found.add(line.key);
  }
  return found;
}

async function readIndex() {
  const index = await unpack("index");
  for (const run of index.runs) run.groups.forEach((line, place) => { line.key = String(place); });
  return index;
}

// Where the page has its data from. A live page has it from its server, and then also follows what is new.
const store = { index: readIndex, rolloutsOf, groupsWith, follow: null };
