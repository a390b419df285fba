"use strict";
// Means by the place of a turn in its rollout, of all steps or of a third of them.

const STAGES = ["all steps", "the first third of the steps", "the second third", "the last third"];
const BY_TURN = [
  ["advantage", "advantage", "of all turns, the answer's too"],
  ["turn_ratio", "importance ratio", null],
  ["clip_fraction", "share of clipped tokens", null],
  ["clip_scale", "width of the clip range", "1: not adapted"],
  ["survivors", "share of rollouts with this turn", null],
  ["failed", "share of turns that failed", null],
];
const FIGURE_4 = [
  ["gain", "Figure 4: raw gain", "log-probability"],
  ["score", "Figure 4: z-score", "gain as it was compared in its cell"],
  ["credit", "Figure 4: credit", "advantage beyond that of the rollout"],
];
// What the paper reads off its figure: Qwen3-4B on questions of several hops.
const DRIFT_OF_PAPER = { gain: "1.30", score: "IGPO 1.54, A2TGPO 0.00", credit: "IGPO 1.03, A2TGPO 0.00" };
const FEWEST_TURNS = 8; // a step, of a place that counts in the differences

function lastStep(runs) {
  return Math.max(...runs.flatMap((run) => Object.values(run.turns).map((metric) => Math.max(...metric.steps))));
}

// Of each place: {mean, number (of terms), steps}, of the steps of a stage.
function byTurn(run, name, stage, last) {
  const metric = run.turns[name];
  const [low, high] = stage === 0 ? [0, Infinity] : [((stage - 1) * last) / 3, (stage * last) / 3];
  const steps = (metric?.steps ?? []).map((step, row) => [step, row]).filter(([step]) => step > low && step <= high);
  return Array.from({ length: INDEX.most_turns }, (_, place) => {
    const total = steps.reduce((sum, [, row]) => sum + metric.sums[row][place], 0);
    const terms = steps.reduce((sum, [, row]) => sum + metric.numbers[row][place], 0);
    return { mean: terms ? total / terms : null, total, number: terms, steps: steps.length };
  });
}

function turnChart(runs, [name, title, note], stage, last) {
  const xs = Array.from({ length: INDEX.most_turns }, (_, place) => place + 1);
  const of = runs.map((run) => byTurn(run, name, stage, last).map((one) => one.mean));
  const longest = Math.max(0, ...of.map((means) => means.findLastIndex((mean) => mean !== null))) + 1;
  const series = runs.map((run, place) => ({
    ...{ name: run.name, colour: colour(place), dash: dash(place), dots: true },
    ...{ xs: xs.slice(0, longest), ys: of[place].slice(0, longest) },
  }));
  return { title, note, x: "turn", series, sync: "turns" };
}

// Which turns failed how, a row for each way.
function failureTable(run, stage, last) {
  const ways = Object.keys(run.turns).filter((name) => name.startsWith("status/")
    && run.turns[name].sums.some((sums) => sums.some((sum) => sum > 0)));
  const reached = byTurn(run, "failed", stage, last).filter((one) => one.number);
  const rows = ways.map((name) => [
    name.slice("status/".length),
    ...byTurn(run, name, stage, last).slice(0, reached.length).map((one) =>
      (one.total ? `${number(one.total)} (${(100 * one.mean).toFixed(1)} %)` : "–")),
  ]);
  if (!rows.length) return element("p", { class: "faint" }, `${run.name}: no turn failed.`);
  const head = ["ended as", ...reached.map((one, place) => `turn ${place + 1} of ${number(one.number)}`)];
  return element("figure", { class: "wide" }, element("figcaption", {}, `Failed turns of ${run.name}`),
    element("div", { class: "scrolls" }, plainTable(head, rows)));
}

// By how much the means of figure 4 differ between turns.
function driftTable(runs, stage, last) {
  const rows = FIGURE_4.map(([name, title]) => {
    const of = runs.map((run) => {
      const turns = byTurn(run, name, stage, last)
        .filter((one) => one.steps && one.number >= FEWEST_TURNS * one.steps);
      const known = turns.map((one) => one.mean);
      return known.length > 1 ? number(Math.max(...known) - Math.min(...known)) : "–";
    });
    return [title.slice("Figure 4: ".length), ...of, DRIFT_OF_PAPER[name]];
  });
  const head = ["largest difference between turns", ...runs.map((run) => run.name), "in the paper"];
  return element("div", { class: "scrolls" }, plainTable(head, rows));
}

function drawTurns(runs, stage) {
  const last = lastStep(runs);
  fillCharts("turn-charts", BY_TURN.map((panel) => turnChart(runs, panel, stage, last)));
  fill("failures", ...runs.map((run) => failureTable(run, stage, last)));
  fillCharts("paper-charts", [...FIGURE_4.map((panel) => turnChart(runs, panel, stage, last)), envelopeChart(runs)]);
  fill("drift", driftTable(runs, stage, last));
}
