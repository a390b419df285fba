"use strict";
// Charts of uPlot. Colours are read on dark and on light alike, so that what was drawn on a screen can be printed.

const COLOURS = ["#3a86d4", "#dd7a2c", "#2f9e75", "#a765c9", "#c9505f", "#8b8f3a"];
const INK = "#7b818a";
const GRID = "rgba(128, 128, 128, 0.2)";

const colour = (run) => COLOURS[run % COLOURS.length];

// series: {name, label (a short one), colour, xs, ys, dash, apart (points without a line), dots (points on it),
//          low and high (of each point)}
function chart({ title, x, series, sync, height = 190, note = null }) {
  const drawn = series.filter((one) => one.ys.some((y) => y !== null));
  const box = element("div", { class: "plot", "aria-hidden": "true" });
  const caption = element("figcaption", {}, title, note && element("small", {}, ` ${note}`));
  const figure = element("figure", {}, caption, box);
  if (!drawn.length) {
    box.replaceWith(element("p", { class: "faint" }, "not in these runs"));
    return figure;
  }
  const data = uPlot.join(drawn.map((one) => [one.xs, one.ys]));
  figure.append(folded("numbers", () => plainTable([x, ...drawn.map((one) => one.name)],
    data[0].map((at, row) => [number(at), ...drawn.map((_, place) => number(data[place + 1][row]))]))));
  whenSeen(figure, box, (width) => new uPlot(chartOptions(x, drawn, sync, width, height), data, box));
  return figure;
}

function chartOptions(x, series, sync, width, height) {
  const axis = { stroke: INK, grid: { stroke: GRID, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const whole = (_, values) => values.map((value) => (Number.isInteger(value) ? value.toLocaleString("en") : ""));
  return {
    width,
    height,
    scales: { x: { time: false, range: spaced }, y: { range: high } },
    axes: [{ ...axis, size: 24, gap: 4, values: whole }, { ...axis, size: 46, gap: 4, values: digits }],
    cursor: { sync: { key: sync }, drag: { x: true, y: false } },
    series: [{ label: x, value: (_, value) => number(value) }, ...series.map(seriesOptions)],
    hooks: { draw: [(plot) => series.forEach((one) => drawIntervals(plot, one))] },
  };
}

// A little room to the left and right; a single point has some as well.
function spaced(_, low, high) {
  const room = (high - low) * 0.03 || 0.5;
  return [low - room, high + room];
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
  const points = { show: one.apart || one.dots || one.ys.length < 3, size: one.apart ? 8 : 5, fill: one.colour };
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
  context.save();
  context.strokeStyle = one.colour;
  context.lineWidth = 1.5 * devicePixelRatio;
  one.xs.forEach((at, place) => {
    if (one.low[place] === null) return;
    const left = plot.valToPos(at, "x", true);
    context.beginPath();
    context.moveTo(left, plot.valToPos(one.low[place], "y", true));
    context.lineTo(left, plot.valToPos(one.high[place], "y", true));
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
    const [xs, ys] = run.curves[metric] ?? [[], []];
    series.push({ name: run.name, colour: colour(place), xs, ys });
    const points = (reward && run.scores[reward]) || [];
    if (points.length) {
      const [at, mean, low, high] = [0, 1, 2, 3].map((which) => points.map((point) => point[which]));
      const name = `${run.name}, held out`;
      series.push({ name, label: "held out", colour: colour(place), xs: at, ys: mean, low, high, apart: true });
    }
  });
  return chart({ title: reward ? `${reward.replaceAll("_", " ")}` : metric, x: "step", series, sync: "steps" });
}

function envelopeChart(runs) {
  const series = runs.flatMap((run, place) =>
    Object.entries(run.envelopes).map(([name, [xs, ys]]) => ({
      ...{ name: `${run.name}, ${name}`, label: name, colour: colour(place), xs, ys },
      ...(name === "mean" ? {} : { dash: [4, 4], thin: true }),
    })));
  return chart({ title: "Figure 5: advantages of turns", note: "smallest, mean, largest", x: "step", series,
    sync: "steps" });
}
