"use strict";
// The text of a turn as its tokens: coloured by what each is credited with, or by what updates have made of it.

// How the reader has a turn's text: a name, what colours a token (from -1 to 1, or null), and what that means.
const TEXTS = [
  ["as it reads", null, ""],
  ["tokens by advantage", (turn, place, most) => turn.advantage ? turn.advantage / most.advantage : null,
    "tokens have the advantage of their turn"],
  ["tokens by ratio", (turn, place, most) => {
    const ratio = turn.pieces.ratio?.[place] ?? null;
    return ratio === null ? null : Math.log(ratio) / most.ratio;
  }, "red became less probable until the last update, blue more; underlined: the clip range stopped it"],
];
const LEAST = 0.001; // of a logarithm of ratios, that has the full colour: what is less far from 1 may be rounding
let textAs = 0;

// What tokens of these rollouts are coloured by now, if any are known.
function tokenColours(rollouts) {
  const turns = rollouts.flatMap((one) => one.turns).filter((turn) => turn.pieces);
  if (!turns.length) return null;
  const most = { advantage: 0, ratio: LEAST };
  for (const turn of turns) {
    most.advantage = Math.max(most.advantage, Math.abs(turn.advantage ?? 0));
    for (const ratio of turn.pieces.ratio ?? []) {
      if (ratio > 0) most.ratio = Math.max(most.ratio, Math.abs(Math.log(ratio)));
    }
  }
  const paint = TEXTS[textAs][1];
  return { most, paint: paint && ((turn, place) => paint(turn, place, most)) };
}

function tokenLegend(tokens, redraw) {
  const select = element("select", { id: "text-as" });
  options(select, TEXTS.map(([name]) => name));
  select.selectedIndex = textAs;
  select.addEventListener("change", () => {
    textAs = select.selectedIndex;
    redraw();
    document.getElementById("text-as").focus();
  });
  const widest = Math.exp(tokens.most.ratio);
  const ends = [1 / widest, widest].map((ratio) => `×${ratio.toFixed(3)}`);
  const scale = textAs === 2 ? [ends[0], element("span", { class: "ramp" }), ends[1]] : [];
  return [element("label", {}, "text: ", select), ...scale, element("span", {}, TEXTS[textAs][2])];
}

// One thing to go to by Tab; the arrow keys go from token to token, and what is known of it stands below.
function tokenElements(turn, row, paint) {
  const told = element("p", { class: "of-token", "aria-live": "polite" });
  const tokens = turn.pieces.texts.map((text, place) => tokenElement(turn, place, paint(turn, place)));
  const shown = tokens.filter((one) => one.textContent !== ""); // a part of a character has no text
  const left = turn.pieces.left ? ` ... (${number(turn.pieces.left)} tokens more)` : "";
  const text = element("pre", { class: "tokens", tabindex: 0, role: "group",
    "aria-label": `Tokens of turn ${row + 1}: the arrow keys go from one to the next` }, ...shown, left);
  let current = 0;
  const tell = (place) => {
    shown[current]?.classList.remove("current");
    current = Math.min(Math.max(place, 0), shown.length - 1);
    shown[current]?.classList.add("current");
    told.textContent = shown.length ? shown[current].dataset.told : "";
  };
  text.addEventListener("mouseover", (event) => {
    const place = shown.indexOf(event.target);
    if (place >= 0) tell(place);
  });
  text.addEventListener("focus", () => tell(current));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    tell(current + step);
  });
  return [text, told];
}

function tokenElement(turn, place, share) {
  const { texts, ratio, logp, clipped } = turn.pieces;
  const known = [
    turn.advantage === null ? null : `advantage ${signed(turn.advantage)}`,
    ratio?.[place] == null ? null : `ratio ×${ratio[place].toFixed(4)}`,
    logp?.[place] == null ? null : `log-probability ${signed(logp[place])}`,
    clipped?.[place] ? "clipped" : null,
  ];
  const made = element("span", { class: "token",
    "data-told": `${JSON.stringify(texts[place])}: ${known.filter(Boolean).join(", ") || "in no loss"}` }, texts[place]);
  if (clipped?.[place]) made.classList.add("clipped");
  if (share) {
    made.classList.add(share > 0 ? "more" : "less");
    made.style.setProperty("--share", Math.min(Math.abs(share), 1));
  }
  return made;
}
