"use strict";
// The page: what is in it, and what its controls do. The address says which group is open.

let INDEX = null;
const by = (id) => document.getElementById(id);

function notesOf({ notes, begun }) {
  const at = begun?.[1] && new Date(1000 * begun[1]).toLocaleTimeString();
  return at ? [`It was begun anew, or files of it were written over: all was read again at ${at}.`, ...notes] : notes;
}

function drawRuns() {
  fill("runs", ...INDEX.runs.map((run, place) => {
    const dot = element("span", { class: "dot" });
    dot.style.background = colour(place);
    const count = run.groups.reduce((sum, line) => sum + line.rollouts, 0);
    return element("li", {}, dot, element("strong", {}, run.name),
      ` ${number(count)} rollouts in ${number(run.groups.length)} groups`,
      ...notesOf(run).map((note) => element("span", { class: "note" }, ` ${note}`)));
  }));
}

let others = []; // metrics that are drawn when they are chosen

function drawSteps() {
  const logged = new Set(INDEX.runs.flatMap((run) => Object.keys(run.curves)));
  fillCharts("step-charts",
    INDEX.metrics.filter((name) => logged.has(name)).map((name) => stepChart(INDEX.runs, name)));
  const before = others[by("metric").selectedIndex - 1];
  const now = [...logged].filter((name) => !INDEX.metrics.includes(name)).sort();
  if (now.join("\n") !== others.join("\n") || !by("metric").length) {
    others = now;
    options(by("metric"), ["–", ...others]);
    by("metric").selectedIndex = others.indexOf(before) + 1;
  }
  drawChosen();
}

function drawChosen() {
  const name = others[by("metric").selectedIndex - 1];
  fillCharts("chosen-chart", name === undefined ? [] : [stepChart(INDEX.runs, name)]);
}

function drawStages() {
  drawTurns(INDEX.runs, by("stage").selectedIndex);
}

// ---- groups

const chosen = { run: 0, other: null, words: "", withWords: null, table: null, open: null };
const lineOf = (run, key) => INDEX.runs[run]?.groups.find((line) => line.key === key);

function drawGroups() {
  const names = INDEX.runs.map((run) => run.name);
  options(by("run"), names);
  options(by("other"), ["–", ...names]);
  for (const id of ["which-run", "which-other"]) by(id).hidden = names.length < 2;
  chosen.table = groupTable((line) => `group-${chosen.run}-${line.key}`, tellFound);
  chosen.table.on("tableBuilt", () => chooseRun(0).then(openAddressed));
  by("run").addEventListener("change", () => chooseRun(by("run").selectedIndex));
  by("other").addEventListener("change", () => chooseOther(by("other").selectedIndex - 1));
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["mixed", "failing", "spread"]) by(id).addEventListener("input", applyFilters);
  let waiting = null;
  by("text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 250);
  });
}

async function chooseRun(place) {
  chosen.run = place;
  by("run").selectedIndex = place;
  if (chosen.other === place) chosen.other = null;
  showOther();
  await chosen.table.setData(lines());
  await search();
}

async function search() {
  const words = by("text").value.trim().toLowerCase();
  const run = chosen.run;
  chosen.words = words;
  const isNewest = () => chosen.words === words && chosen.run === run;
  const found = words === "" ? null : await store.groupsWith(run, words, (share) => {
    by("found").textContent = `searching, ${Math.round(100 * share)} %`;
    return isNewest();
  }).catch((error) => {
    by("found").textContent = `could not be searched: ${error.message}`;
    return undefined;
  });
  if (found === undefined || !isNewest()) return;
  chosen.withWords = found;
  applyFilters();
}

function applyFilters() {
  const spread = by("spread").valueAsNumber;
  const [mixed, failing] = [by("mixed").checked, by("failing").checked];
  chosen.table.setFilter((line) =>
    (!mixed || (line.solved > 0 && line.failed > 0)) && (!failing || line.failures > 0)
    && (Number.isNaN(spread) || line.spread >= spread) && (!chosen.withWords || chosen.withWords.has(line.key)));
}

function tellFound(count) {
  by("found").textContent = `${number(count)} of ${number(INDEX.runs[chosen.run].groups.length)} groups`;
}

// ---- the group that is open

async function openAddressed() {
  const address = /^#group-(\d+)-([\d.]+)$/.exec(location.hash);
  const [run, key] = address ? [Number(address[1]), address[2]] : [];
  const line = lineOf(run, key);
  chosen.open = null; // until it is drawn
  by("group").hidden = !line;
  if (!line) return;
  if (run !== chosen.run) await chooseRun(run);
  const asked = [[run, line], ...besideOf(line)];
  const groups = await Promise.all(asked.map(([of, one]) => store.rolloutsOf(of, one))).catch((error) => {
    by("group").replaceChildren(element("p", { class: "failed" }, `This group could not be read: ${error.message}`));
    return null;
  });
  if (groups === null || location.hash !== address[0]) return; // another one was opened since
  chosen.open = { run, key, line };
  const shown = asked.map(([of, one], at) => ({ place: of, run: INDEX.runs[of], line: one, group: groups[at] }));
  const draw = () => by("group").replaceChildren(
    ...groupElements(shown, chosen.words, linksFrom(run, key), againElement(asked), () => {
      draw();
      by("group").querySelector(".legend select").focus();
    }));
  draw();
  by("group").scrollIntoView();
  by("group-title").focus({ preventScroll: true });
}

// To the neighbours in the table as it is sorted and filtered now.
function linksFrom(run, key) {
  const keys = chosen.table.getRows("active").map((row) => row.getData().key);
  const place = keys.indexOf(key);
  const link = (to, text) => (to === undefined ? null : element("a", { href: `#group-${run}-${to}` }, text));
  const [before, after] = place < 0 ? [] : [keys[place - 1], keys[place + 1]];
  return [link(before, "← previous"), link(after, "next →"), element("a", { href: "#groups" }, "close")]
    .filter((one) => one !== null);
}

// ---- all of it

async function begin() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser is too old: Chrome 117, Firefox 113, Safari 16.4 or a later one will do.");
  }
  INDEX = await store.index();
  drawRuns();
  drawSteps();
  by("metric").addEventListener("change", drawChosen);
  options(by("stage"), STAGES);
  by("stage").addEventListener("change", drawStages);
  drawStages();
  drawGroups();
  addEventListener("hashchange", openAddressed);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !by("group").hidden) location.hash = "groups";
  });
  foldedInPrint();
  by("trouble").hidden = true;
  store.follow?.();
}

// What is folded in the open group is printed.
function foldedInPrint() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...by("group").querySelectorAll("details:not([open])")];
    for (const details of opened) {
      details.open = true;
      details.dispatchEvent(new Event("toggle")); // filled at once, not when the browser comes to say so
    }
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
}

begin().catch((error) => {
  by("trouble").textContent = `This page could not be shown: ${error.message}`;
  throw error;
});
