"use strict";
// A group: its rollouts side by side, a row for each turn, coloured by what the turn is credited with.

const NUMBERS = [["gain", "gain"], ["score", "z"], ["credit", "credit"], ["advantage", "advantage"]];

// What colours a turn, as the reader chose it.
const HUES = [
  ["advantage", "advantage", "red is done less from now on, blue more often"],
  ["credit", "credit", "advantage beyond that of the whole rollout"],
  ["gain", "gain", "by how much the right answer became more probable"],
];
let hue = 0;

const MOST_IN_SUMMARY = 160; // characters of a call, as long as it is folded

function largest(rollouts) {
  const sizes = rollouts.flatMap((one) => one.turns.map((turn) => Math.abs(turn[HUES[hue][0]] ?? 0)));
  return Math.max(...sizes, 0) || 1;
}

function legendElement(scale, tokens, redraw) {
  const select = element("select");
  options(select, HUES.map(([, name]) => name));
  select.selectedIndex = hue;
  select.addEventListener("change", () => {
    hue = select.selectedIndex;
    redraw();
  });
  return element("p", { class: "legend" }, element("label", {}, "colour: ", select), `−${scale.toFixed(2)}`,
    element("span", { class: "ramp" }), `+${scale.toFixed(2)}`, element("span", {}, HUES[hue][2]),
    ...(tokens ? tokenLegend(tokens, redraw) : []));
}

// shown: {place and run, line, group} of the one that is open, and of one beside it; again: links to others.
function groupElements(shown, words, links, again, redraw) {
  const [{ run, line, group }] = shown;
  const rollouts = shown.flatMap((one) => one.group.rollouts);
  const [range, scale, tokens] = [valueRange(rollouts), largest(rollouts), tokenColours(rollouts)];
  const columns = shown.map((one) => columnsElement(one, scale, tokens, range, words));
  return [
    element("h2", { id: "group-title", tabindex: -1 }, titleOf(run, line)),
    element("p", { class: "links" }, ...links),
    textElement(group.prompt.at(-1), words, "question"),
    group.prompt.length > 1
      ? folded("all of the prompt", () => element("div", {}, ...group.prompt.map((text) => textElement(text, words))))
      : null,
    group.answer === null ? null : element("p", {}, "right: ", element("strong", {}, group.answer)),
    again,
    legendElement(scale, tokens, redraw),
    ...(shown.length === 1 ? columns : [element("div", { class: "pair" },
      ...columns.map((one, at) => element("div", {}, ofRunElement(shown[at]), one)))]),
  ].filter((one) => one !== null);
}

function columnsElement({ run, group }, scale, tokens, range, words) {
  const label = `Rollouts of ${run.name}`;
  const columns = element("div", { class: "rollouts", tabindex: 0, role: "group", "aria-label": label },
    ...group.rollouts.map((one, place) => rolloutElement(one, place, scale, tokens, range, words)));
  columns.style.setProperty("--rows", Math.max(...group.rollouts.map((one) => one.turns.length)) + 2);
  columns.style.setProperty("--rollouts", group.rollouts.length);
  return columns;
}

function ofRunElement({ place, run, line }) {
  const dot = element("span", { class: "dot" });
  dot.style.background = colour(place);
  return element("p", { class: "of-run" }, dot, element("strong", {}, run.name), ` ${placeOfLine(line)}`);
}

function placeOfLine(line) {
  const round = line.round > 1 ? `, round ${line.round}` : "";
  const batch = line.batch > 1 ? `, batch ${line.batch}` : "";
  return `step ${line.step}, group ${line.group}${round}${batch}: ${line.solved} solved, ${line.failed} failed`;
}

function titleOf(run, line) {
  const about = placeOfLine(line);
  return INDEX.runs.length > 1 ? `${run.name}, ${about}` : `${about[0].toUpperCase()}${about.slice(1)}`;
}

// ---- a rollout

function rolloutElement(one, place, scale, tokens, range, words) {
  const rewards = Object.entries(one.rewards).map(([name, value]) => `${name} ${number(value)}`).join(", ");
  const ended = [one.ended && one.ended !== "answer" ? `ended: ${one.ended}` : "", one.excluded ? "left out" : ""];
  const head = element("header", {},
    element("h3", {}, `${place + 1}: ${one.solved ? "solved" : "failed"}`),
    element("p", {}, `outcome ${number(one.outcome)} (${rewards})`),
    ended.some(Boolean) ? element("p", { class: "failed" }, ended.filter(Boolean).join(", ")) : null);
  return element("article", { class: one.solved ? "solved" : "unsolved", "aria-label": `Rollout ${place + 1}` },
    head, valueElement(one, range), ...one.turns.map((turn, row) => turnElement(turn, row, scale, tokens, words)));
}

function valueRange(rollouts) {
  const known = rollouts.flatMap((one) => one.values.filter((value) => value !== null));
  return known.length ? [Math.min(...known), Math.max(...known)] : null;
}

// The value of the prompt and after each turn, on the same scale in all rollouts.
function valueElement(one, range) {
  if (range === null || one.values.every((value) => value === null)) {
    return element("p", { class: "values faint" }, "no values: gains were not read");
  }
  const box = element("div", { class: "values", role: "img",
    "aria-label": `Values: ${one.values.map(number).join(", ")}` });
  const room = (range[1] - range[0]) * 0.08 || 0.5;
  const axis = { stroke: INK, grid: { stroke: GRID, width: 1 }, ticks: { show: false }, font: "10px system-ui" };
  const data = [one.values.map((_, place) => place), one.values];
  whenSeen(box, box, (width) => new uPlot({
    width,
    height: 96,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, range: spaced }, y: { range: [range[0] - room, range[1] + room] } },
    axes: [
      { ...axis, size: 18, gap: 2, incrs: [1, 2, 5], values: (_, at) => at.map((value) => `V${value}`) },
      { ...axis, size: 38, gap: 3, space: 24 },
    ],
    series: [{}, seriesOptions({ name: "value", colour: COLOURS[0], ys: one.values, dots: true })],
  }, data, box));
  return box;
}

// ---- a turn

function turnElement(turn, row, scale, tokens, words) {
  const credit = turn[HUES[hue][0]];
  const made = element("section", { class: "turn", "aria-label": `Turn ${row + 1}` },
    element("p", { class: "numbers" }, ...numbersOf(turn)),
    ...(tokens?.paint && turn.pieces ? tokenElements(turn, row, tokens.paint) : saidElements(turn, words)),
    ...callElements(turn, words));
  if (credit) {
    made.classList.add(credit > 0 ? "more" : "less");
    made.style.setProperty("--share", Math.min(Math.abs(credit) / scale, 1));
  }
  return made;
}

function saidElements(turn, words) {
  return turn.said ? [textElement(turn.said, words)] : [];
}

function numbersOf(turn) {
  const known = NUMBERS.filter(([key]) => turn[key] !== null);
  const texts = known.map(([key, name]) => element("span", { "data-number": key }, `${name} ${signed(turn[key])}`));
  if (turn.clip_scale !== null && turn.clip_scale !== 1) {
    texts.push(element("span", {}, `clip ×${turn.clip_scale.toFixed(2)}`));
  }
  if (turn.ratio !== null && Math.abs(turn.ratio - 1) >= 0.0005) {
    texts.push(element("span", { "data-number": "ratio" }, `ratio ×${turn.ratio.toFixed(3)}`));
  }
  for (const [name, value] of Object.entries(turn.rewards)) {
    if (value) texts.push(element("span", {}, `${name} ${signed(value)}`));
  }
  if (turn.status !== "ok") texts.push(element("span", { class: "failed" }, turn.status));
  return texts;
}

// Each call with its result, folded; where it cannot be said which belong together, one after the other.
function callElements(turn, words) {
  const apart = turn.calls.length !== turn.read.length;
  const calls = turn.calls.map((call, place) => {
    const read = apart ? [] : [turn.read[place]];
    return foldedTexts(call.text, endOf(call), read, words);
  });
  const results = apart ? turn.read.map((text) => foldedTexts("what it read", [], [text], words)) : [];
  return [...calls, ...results];
}

// How a call ended, unless it is what is expected, and what it took, if that is long.
function endOf(call) {
  const failed = call.status === undefined || call.status === "ok" ? null : call.status;
  const seconds = call.seconds >= 0.1 ? `${call.seconds.toFixed(1)} s` : null;
  return [failed && element("span", { class: "failed" }, ` ${failed}`),
    seconds && element("span", { class: "faint" }, ` ${seconds}`)];
}

// Texts under a title, which is one of them where it is too long to be read as a title.
function foldedTexts(title, end, texts, words) {
  const label = title.length > MOST_IN_SUMMARY ? `${title.slice(0, MOST_IN_SUMMARY)}…` : title;
  const all = label === title ? texts : [title, ...texts];
  if (!all.length) return element("p", { class: "call" }, ...marked(label, words), ...end.filter(Boolean));
  return folded(element("span", {}, ...marked(label, words), ...end.filter(Boolean)),
    () => element("div", {}, ...all.map((text) => textElement(text, words, "inside"))),
    all.some((text) => words !== "" && text.toLowerCase().includes(words)));
}

// ---- text

function textElement(text, words, kind = "said") {
  return element("pre", { class: kind }, ...marked(text, words));
}

// A text as it is, in parts: what was searched for is marked.
function marked(text, words) {
  const lower = text.toLowerCase();
  if (!words || lower.length !== text.length) return [text]; // where lower case is longer, places would not fit
  const parts = [];
  let begin = 0;
  for (let at = lower.indexOf(words); at >= 0; at = lower.indexOf(words, begin)) {
    parts.push(text.slice(begin, at), element("mark", {}, text.slice(at, at + words.length)));
    begin = at + words.length;
  }
  return [...parts, text.slice(begin)];
}
