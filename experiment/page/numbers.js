// Numbers, in three significant digits as in the tables.

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e7 || size < 1e-4 ? value.toExponential(2) : size >= 100 ? value.toFixed(0) : value.toPrecision(3);
  return text.replaceAll("-", "−");
}
const whole = (value) => (value === null ? "–" : Math.round(value).toLocaleString("en-US"));
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const percent = (value) => `${Math.round(value * 100)} %`;
const seconds = (value) => (value === null ? "–" : value >= 5400 ? `${number(value / 3600)} h` : `${number(value)} s`);
function short(value) {
  if (Math.abs(value) >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  return Math.abs(value) >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : String(+value.toPrecision(4)).replace("-", "−");
}
function estimate([mean, low, high], show = number) {
  const text = [show(mean)];
  if (low !== null) text.push(" ", h("span", { class: "faint interval" }, `[${show(low)}, ${show(high)}]`));
  return text;
}
// Holm's correction (1979) of p-values that are looked at together; null was not tested.
function holm(ps) {
  const tested = ps.flatMap((p, at) => (p === null ? [] : [at])).sort((a, b) => ps[a] - ps[b]);
  const adjusted = ps.map(() => null);
  let highest = 0;
  tested.forEach((at, rank) => {
    highest = Math.max(highest, Math.min(1, (tested.length - rank) * ps[at]));
    adjusted[at] = highest;
  });
  return adjusted;
}
const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Orders by a value; what has none comes last either way.
function ordered(items, value, descending) {
  const of = new Map(items.map((item) => [item, value(item)]));
  const none = (v) => v === null || v === undefined || Number.isNaN(v);
  return [...items].sort((a, b) => {
    const x = of.get(a), y = of.get(b);
    if (none(x) || none(y)) return none(x) - none(y);
    const by = typeof x === "string" ? x.localeCompare(y) : x - y;
    return descending ? -by : by;
  });
}
