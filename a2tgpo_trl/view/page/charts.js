"use strict";
// Charts of uPlot. Colours are read on dark and on light alike, so that what was drawn on a screen can be printed.

const COLOURS = ["#3a86d4", "#dd7a2c", "#2f9e75", "#a765c9", "#c9505f", "#8b8f3a"];
const INK = "#7b818a";
const GRID = "rgba(128, 128, 128, 0.2)";

const DASHES = [undefined, [8, 4], [2, 3], [10, 3, 2, 3]]; // where there are more runs than colours

const colour = (run) => COLOURS[run % COLOURS.length];
const dash = (run) => DASHES[Math.floor(run / COLOURS.length) % DASHES.length];

// Charts in their place. One that is there already is kept, zoomed and unfolded as it is, and draws what is new.
// A chart: {title, note, x (its name), sync, height, series: [{name, label (a short one), colour, xs, ys, dash, apart
// (points without a line), dots (points on it), low and high (of each point)}]}
function fillCharts(id, charts) {
  const place = document.getElementById(id);
  const known = new Map([...place.children].map((figure) => [figure.chart.title, figure]));
  const figures = charts.map((chart) => {
    const figure = known.get(chart.title);
    return figure?.renew(chart) ? figure : chartElement(chart);
  });
  if (figures.length === place.children.length && figures.every((one, at) => one === place.children[at])) return;
  place.replaceChildren(...figures);
}

const withPoints = (series) => series.filter((one) => one.ys.some((y) => y !== null));
// Copies: what is new is entered in the lists that a live page has.
const joined = (series) => uPlot.join(series.map((one) => [[...one.xs], [...one.ys]]));

function chartElement(chart) {
  const box = element("div", { class: "plot", "aria-hidden": "true" });
  const caption = element("figcaption", {}, chart.title, chart.note && element("small", {}, ` ${chart.note}`));
  const figure = element("figure", {}, caption, box);
  const shown = { series: withPoints(chart.series), data: null, plot: null };
  figure.chart = chart;
  figure.renew = (newer) => renewed(figure, shown, newer);
  if (!shown.series.length) {
    box.replaceWith(element("p", { class: "faint" }, "not in these runs"));
    return figure;
  }
  shown.data = joined(shown.series);
  figure.append(folded("numbers", () => numbersTable(chart.x, shown)));
  whenSeen(figure, box, (width) => {
    shown.plot = new uPlot(chartOptions(chart.x, shown, chart.sync, width, chart.height ?? 190), shown.data, box);
    return shown.plot;
  });
  return figure;
}

function numbersTable(x, { series, data }) {
  return plainTable([x, ...series.map((one) => one.name)],
    data[0].map((at, row) => [number(at), ...series.map((_, place) => number(data[place + 1][row]))]));
}

// Whether what is new could be drawn in a chart that is there: it has the same curves.
function renewed(figure, shown, chart) {
  const series = withPoints(chart.series);
  const names = (all) => JSON.stringify(all.map((one) => one.name));
  if (names(series) !== names(shown.series)) return false;
  figure.chart = chart;
  shown.series = series;
  if (!series.length) return true;
  const [before, plot] = [shown.data, shown.plot];
  shown.data = joined(series);
  if (JSON.stringify(before) === JSON.stringify(shown.data)) return true;
  const details = figure.querySelector("details");
  if (details.open) details.lastElementChild.replaceWith(numbersTable(chart.x, shown));
  else if (details.childElementCount > 1) details.lastElementChild.remove(); // made anew when it is opened
  if (plot === null) return true;
  const [low, top] = spaced(null, before[0][0], before[0].at(-1));
  const { min, max } = plot.scales.x;
  const zoomed = Math.abs(min - low) > 1e-6 || Math.abs(max - top) > 1e-6;
  plot.setData(shown.data, !zoomed);
  if (zoomed) plot.setScale("x", { min, max });
  return true;
}

function chartOptions(x, shown, sync, width, height) {
  const axis = { stroke: INK, grid: { stroke: GRID, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const whole = (_, values) => values.map((value) => (Number.isInteger(value) ? value.toLocaleString("en") : ""));
  return {
    width,
    height,
    scales: { x: { time: false, range: spaced }, y: { range: (_, ...of) => high(null, ...spanned(shown, ...of)) } },
    axes: [{ ...axis, size: 24, gap: 4, values: whole }, { ...axis, size: 46, gap: 4, values: digits }],
    cursor: { sync: { key: sync }, drag: { x: true, y: false } },
    series: [{ label: x, value: (_, value) => number(value) }, ...shown.series.map(seriesOptions)],
    hooks: { draw: [(plot) => shown.series.forEach((one) => drawIntervals(plot, one))] },
  };
}

// A little room to the left and right; a single point has some as well.
function spaced(_, low, high) {
  const room = (high - low) * 0.03 || 0.5;
  return [low - room, high + room];
}

// From the lowest to the highest number in view, with the intervals of those that lie between them.
function spanned({ series }, low, top) {
  const ends = series.filter((one) => one.low).flatMap((one) => one.ys.flatMap((y, place) => (
    low !== null && y >= low && y <= top && one.low[place] !== null && one.high[place] !== null
      ? [one.low[place], one.high[place]] : [])));
  return low === null ? [low, top] : [Math.min(low, ...ends), Math.max(top, ...ends)];
}

// What differs by rounding alone is flat.
function high(_, low, top) {
  if (low === null) return [0, 1];
  if (top - low < 1e-6) return Math.abs(low) < 1e-6 ? [-0.05, 1] : [low - 0.5, low + 0.5];
  return uPlot.rangeNum(low, top, 0.1, true);
}

// As many digits as tell one line of the grid from the next.
function digits(_, values, axis, space, step) {
  let places = 0;
  while (places < 12 && Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-6) places += 1;
  return values.map((value) => (places > 4 ? value.toExponential(1) : value.toFixed(places)));
}

function seriesOptions(one) {
  const few = (plot, place) => plot.data[place].filter((y) => y !== null && y !== undefined).length < 3;
  const points = { show: one.apart || one.dots || few, size: one.apart ? 8 : 5, fill: one.colour };
  return {
    label: one.label ?? one.name,
    stroke: one.colour,
    width: one.thin ? 1 : 1.75,
    dash: one.dash,
    spanGaps: true,
    points,
    ...(one.apart ? { paths: () => null } : {}),
    value: (_, value) => number(value),
  };
}

function drawIntervals(plot, one) {
  if (!one.low) return;
  const context = plot.ctx;
  const { left, top, width, height } = plot.bbox;
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.strokeStyle = one.colour;
  context.lineWidth = 1.5 * devicePixelRatio;
  one.xs.forEach((at, place) => {
    if (one.low[place] === null || one.high[place] === null) return;
    const across = plot.valToPos(at, "x", true);
    context.beginPath();
    context.moveTo(across, plot.valToPos(one.low[place], "y", true));
    context.lineTo(across, plot.valToPos(one.high[place], "y", true));
    context.stroke();
  });
  context.restore();
}

// Makes a plot as soon as its place is in the page, and keeps it as wide as that.
function whenSeen(figure, box, make) {
  let plot = null;
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (!width) return;
    if (plot === null) plot = make(width);
    else if (plot.width !== width) plot.setSize({ width, height: plot.height });
  }).observe(box);
}

// ---- over steps

function stepChart(runs, metric) {
  const reward = /^rewards\/(.+)\/mean$/.exec(metric)?.[1];
  const series = [];
  runs.forEach((run, place) => {
    const [xs, ys] = own(run.curves, metric) ?? [[], []];
    series.push({ name: run.name, colour: colour(place), dash: dash(place), xs, ys });
    const points = (reward && own(run.scores, reward)) || [];
    if (points.length) {
      const [at, mean, low, high] = [0, 1, 2, 3].map((which) => points.map((point) => point[which]));
      const name = `${run.name}, held out`;
      series.push({ name, label: "held out", colour: colour(place), xs: at, ys: mean, low, high, apart: true });
    }
  });
  return { title: reward ? `${reward.replaceAll("_", " ")}` : metric, x: "step", series, sync: "steps" };
}

function envelopeChart(runs) {
  const series = runs.flatMap((run, place) =>
    Object.entries(run.envelopes).map(([name, [xs, ys]]) => ({
      ...{ name: `${run.name}, ${name}`, label: name, colour: colour(place), dash: dash(place), xs, ys },
      ...(name === "mean" ? {} : { dash: [4, 4], thin: true }),
    })));
  return { title: "Figure 5: advantages of turns", note: "smallest, mean, largest", x: "step", series, sync: "steps" };
}
