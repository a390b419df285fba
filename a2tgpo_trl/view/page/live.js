"use strict";
// The live page: its server says what is new, when it is asked. Only that travels, and only that is drawn.

const EVERY = 2000; // milliseconds between two questions
const known = { epoch: "", number: 0 };

async function ask(path, parameters) {
  const [response, text] = await answerTo(`/${path}?${new URLSearchParams(parameters)}`).catch(() => {
    throw new Error("the server does not answer");
  });
  if (response.status === 401) throw new Error("its token is no longer right: open the address that was printed");
  if (!response.ok) throw new Error(text);
  return JSON.parse(text);
}

async function answerTo(address) {
  const response = await fetch(address, { cache: "no-store" });
  return [response, await response.text()];
}

// ---- what is known

// Beside what the page shows of a run: `places` of groups by their keys, and the names of metrics by kind and step.
const emptyRun = (name) => ({
  ...{ name, notes: [], begun: [0, null], groups: [], places: new Map(), named: new Map(), scores: {} },
  ...{ curves: {}, turns: {}, envelopes: {} },
});

function emptied(run) {
  Object.assign(run, emptyRun(run.name));
}

// A step of a list that is in the order of its steps: its place, and whether it is there.
function placeOf(steps, step) {
  let at = steps.length;
  while (at > 0 && steps[at - 1] >= step) at -= 1;
  return [at, steps[at] === step];
}

// Lists that go with a list of steps: of a step, the values; null: there are none.
function enter(steps, lists, step, values) {
  const [at, isThere] = placeOf(steps, step);
  if (values === null) {
    if (isThere) for (const list of [steps, ...lists]) list.splice(at, 1);
    return;
  }
  if (!isThere) steps.splice(at, 0, step);
  lists.forEach((list, place) => list.splice(at, isThere ? 1 : 0, values[place]));
}

// The numbers of a step by their names; those that it had of this kind, and has no more, are taken out.
function enterNamed(run, kind, step, value, enterOne) {
  const names = Object.keys(value ?? {});
  const before = run.named.get(`${kind} ${step}`) ?? [];
  for (const name of new Set([...before, ...names])) enterOne(name, own(value ?? {}, name) ?? null);
  run.named.set(`${kind} ${step}`, names);
}

function enterCurves(run, kind, step, value) {
  const curves = run[kind];
  enterNamed(run, kind, step, value, (name, number) => {
    if (!Object.hasOwn(curves, name)) curves[name] = [[], []];
    const [steps, values] = curves[name];
    enter(steps, [values], step, number === null ? null : [number]);
    if (!steps.length) delete curves[name];
  });
}

function enterTurns(run, kind, step, value) {
  const { turns } = run;
  enterNamed(run, kind, step, value, (name, sums) => {
    if (!Object.hasOwn(turns, name)) turns[name] = { steps: [], sums: [], numbers: [] };
    const metric = turns[name];
    enter(metric.steps, [metric.sums, metric.numbers], step, sums);
    if (!metric.steps.length) delete turns[name];
  });
}

function enterGroup(run, key, line) {
  if (line === null) {
    run.groups = run.groups.filter((one) => one.key !== key);
    run.places = new Map(run.groups.map((one, at) => [one.key, at]));
    return;
  }
  const at = run.places.get(key) ?? run.groups.length;
  run.groups[at] = { ...line, key };
  run.places.set(key, at);
}

// What was changed in a run, and how.
const ENTER = {
  begun: (run, _, value) => { emptied(run); run.begun = value; },
  notes: (run, _, value) => { run.notes = value; },
  scores: (run, _, value) => { run.scores = value; },
  curves: (run, step, value) => enterCurves(run, "curves", Number(step), value),
  envelopes: (run, step, value) => enterCurves(run, "envelopes", Number(step), value),
  turns: (run, step, value) => enterTurns(run, "turns", Number(step), value),
  logged: (run, step, value) => enterTurns(run, "logged", Number(step), value),
  groups: enterGroup,
};

// What was changed and is to be drawn; lines: [[run, line], ...] of groups.
const nothing = () => ({ kinds: new Set(), begun: new Set(), lines: [] });

// The server has other runs than the page: the page is asked for again, and nothing goes on in this one.
function openAnew() {
  history.replaceState(null, "", location.pathname); // the address is of a group of these runs
  location.reload();
  return new Promise(() => {});
}

// Asks until all is there, and adds it to what was changed; `told` hears how much it is.
async function readNews(runs, changed, told) {
  for (let share = 0; share < 1;) {
    const news = await ask("news", { epoch: known.epoch, since: known.number });
    const isOther = news.epoch !== known.epoch; // a server that was started again, and says all of it
    const names = JSON.stringify(runs.map((run) => run.name));
    if (isOther && JSON.stringify(news.names) !== names) await openAnew();
    if (isOther) runs.forEach(emptied);
    Object.assign(known, { epoch: news.epoch, number: news.number });
    for (const [place, kind, key, value] of news.entries) {
      ENTER[kind](runs[place], key, value);
      changed.kinds.add(kind);
      if (kind === "begun" && !isOther) changed.begun.add(place);
      if (kind === "groups" && value !== null) changed.lines.push([place, value]);
    }
    share = news.share;
    told(share);
  }
}

// ---- what the page asks for

store.index = async () => {
  const index = await unpack("index");
  const runs = index.names.map(emptyRun);
  await readNews(runs, nothing(), (share) => {
    by("trouble").textContent = `The runs are read: ${Math.round(100 * share)} %`;
  });
  return { ...index, runs };
};

store.rolloutsOf = (run, line) => ask("group", { run, begun: INDEX.runs[run].begun[0], key: line.key });

store.groupsWith = async (run, words, told, first = 0) => {
  const found = new Set();
  for (let from = first; from !== null;) {
    const answer = await ask("search", { run, begun: INDEX.runs[run].begun[0], from, words });
    answer.found.forEach((key) => found.add(key));
    if (!told(answer.share)) return null;
    from = answer.next;
  }
  return found;
};

// ---- what is new, drawn

const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();

store.follow = async () => {
  const say = (text, isTrouble = false) => {
    by("live").hidden = false;
    by("live").textContent = text;
    by("live").classList.toggle("failed", isTrouble);
  };
  say("live");
  for (let changed = nothing(); ;) {
    await new Promise((done) => { setTimeout(done, EVERY); });
    if (document.hidden) {
      await new Promise((done) => { document.addEventListener("visibilitychange", done, { once: true }); });
    }
    try {
      await readNews(INDEX.runs, changed, () => {});
      if (changed.kinds.size) await drawNews(changed);
      changed = nothing();
      say(`live, ${clock(Date.now() / 1000)}`);
    } catch (error) {
      say(`not live: ${error.message}`, true);
    }
  }
};

async function drawNews({ kinds, begun, lines }) {
  const has = (...names) => kinds.has("begun") || names.some((name) => kinds.has(name));
  if (has("notes", "groups")) drawRuns();
  if (has("curves", "scores")) drawSteps();
  if (has("turns", "logged", "envelopes")) drawStages();
  if (!has("groups")) return;
  await renewTable();
  const steps = lines.filter(([run]) => run === chosen.run).map(([, line]) => line.step);
  if (kinds.has("begun")) await search();
  else if (steps.length && chosen.withWords) await searchAlso(Math.min(...steps));
  renewOpen(begun);
}

// The words that are looked for, in groups that are new.
async function searchAlso(first) {
  const { run, words } = chosen;
  const isNewest = () => chosen.run === run && chosen.words === words;
  const found = await store.groupsWith(run, words, isNewest, first);
  if (!isNewest() || !chosen.withWords) return;
  found.forEach((key) => chosen.withWords.add(key));
  await keepingPlace(applyFilters);
}

// The table keeps how it is sorted, filtered and scrolled, and the row whose link has the focus.
function renewTable() {
  return keepingPlace(() => chosen.table.replaceData(lines()));
}

async function keepingPlace(change) {
  const holder = by("table").querySelector(".tabulator-tableholder");
  const row = document.activeElement?.closest("#table .tabulator-row");
  const key = row && chosen.table.getRows().find((one) => one.getElement() === row)?.getData().key;
  const top = holder.scrollTop;
  await change();
  if (holder.scrollTop !== top) {
    holder.scrollTop = top;
    await new Promise(requestAnimationFrame); // until the rows are there
  }
  if (key && document.activeElement === document.body) {
    chosen.table.searchRows("key", "=", key)[0]?.getElement().querySelector("a")?.focus({ preventScroll: true });
  }
}

// What is open stays as it is. Where there is more of it, or no longer such a group, that is said.
function renewOpen(begun) {
  const { open } = chosen;
  if (!open || by("group").hidden) return;
  const line = lineOf(open.run, open.key);
  by("group").querySelector(".links")?.replaceChildren(...linksFrom(open.run, open.key));
  if (begun.has(open.run) || !line) {
    sayOfOpen("Its run was begun anew, or its file was written over: this is what was there before.");
  } else if (line.rollouts !== open.line.rollouts) {
    const button = element("button", { type: "button" }, "show them");
    button.addEventListener("click", openAddressed);
    sayOfOpen(`There are ${line.rollouts} rollouts of this group now. `, button);
  }
}

function sayOfOpen(...children) {
  by("group").querySelector(".news")?.remove();
  by("group-title").after(element("p", { class: "news", role: "status" }, ...children));
}
