"use strict";
// Two runs: groups of the same prompt, in the table and when one of them is open.

const MOST_AGAIN = 12; // groups of the same prompt that there are links to

// The run that is beside the one of the table, none for -1: its groups of the same prompts.
async function chooseOther(place) {
  chosen.other = place < 0 || place === chosen.run ? null : place;
  showOther();
  await chosen.table.replaceData(lines());
  if (!by("group").hidden) openAddressed();
}

function showOther() {
  by("other").selectedIndex = chosen.other === null ? 0 : chosen.other + 1;
  [...by("other").options].forEach((option, at) => { option.disabled = at === chosen.run + 1; });
  for (const field of BESIDE) chosen.table[chosen.other === null ? "hideColumn" : "showColumn"](field);
  chosen.table.redraw(true); // to the width that there is
}

// The lines of the table, each with what came of its prompt in the run beside.
function lines() {
  const { groups } = INDEX.runs[chosen.run];
  const same = chosen.other === null ? null : byPrompt(INDEX.runs[chosen.other]);
  for (const line of groups) {
    line.other = (same && nearest(same.get(line.asked) ?? [], line.step)?.reward) ?? null;
    line.gap = line.other === null || line.reward === null ? null : line.reward - line.other;
  }
  return groups;
}

function byPrompt(run) {
  const found = new Map();
  for (const line of run.groups) {
    if (found.has(line.asked)) found.get(line.asked).push(line);
    else found.set(line.asked, [line]);
  }
  return found;
}

function nearest(found, step) {
  const away = (line) => Math.abs(line.step - step);
  return found.reduce((best, line) => (best !== null && away(best) <= away(line) ? best : line), null);
}

// The group of the same prompt in the run beside, if there are both.
function besideOf(line) {
  if (chosen.other === null) return [];
  const found = nearest(byPrompt(INDEX.runs[chosen.other]).get(line.asked) ?? [], line.step);
  return found ? [[chosen.other, found]] : [];
}

// Links to the other groups of the same prompt, the nearest in their steps first.
function againElement(asked) {
  const [[, line]] = asked;
  const found = INDEX.runs.flatMap((run, place) =>
    run.groups.filter((one) => one.asked === line.asked).map((one) => [place, one]));
  const others = found.filter(([, one]) => !asked.some(([, known]) => known === one));
  others.sort(([, one], [, other]) => Math.abs(one.step - line.step) - Math.abs(other.step - line.step));
  const missing = chosen.other !== null && asked.length < 2;
  if (!others.length && !missing) return null;
  return element("p", { class: "again" },
    missing ? `${INDEX.runs[chosen.other].name} was not asked this. ` : "",
    others.length ? "Asked the same:" : "",
    ...others.slice(0, MOST_AGAIN).flatMap((one) => [" ", againLink(...one)]),
    others.length > MOST_AGAIN ? ` and ${others.length - MOST_AGAIN} more` : "");
}

function againLink(place, line) {
  const run = INDEX.runs.length > 1 ? `${INDEX.runs[place].name}, ` : "";
  const text = `${run}step ${line.step} (${line.solved} of ${line.rollouts} solved)`;
  return element("a", { href: `#group-${place}-${line.key}` }, text);
}
