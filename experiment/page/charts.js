// Charts.

const DASHES = ["", "7 4", "2 4", "9 3 2 3"];  // for runs whose colors come round again

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-6; at += 1) found.push(at * step);
  return found;
}

// Where numbers lie within a chart of this width.
function scales(width, height, points) {
  const ys = points.flatMap((p) => [p[1], p[2] ?? p[1], p[3] ?? p[1]]);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const room = (high - low) * 0.07 || Math.abs(high) * 0.05 || 0.5;
  // Not beyond 0 or 1 unless what is drawn goes there: few scores can.
  [low, high] = [low >= 0 ? Math.max(low - room, 0) : low - room, high <= 1 ? Math.min(high + room, 1) : high + room];
  const right = Math.max(...points.map((p) => p[0])) || 1;
  const [l, r, t, b] = [50, width - 14, 10, height - 38];
  return { l, r, b, low, high, right,
    x: (value) => l + (value / right) * (r - l),
    y: (value) => b - ((value - low) / (high - low)) * (b - t) };
}

// lines: [{run, points: [[x, y, low, high]]}]. Steps hold a value until the next point.
function draw(width, lines, { xLabel, yLabel, steps }) {
  const height = Math.round(Math.min(260, Math.max(190, width * 0.5)));
  const { l, r, b, low, high, right, x, y } = scales(width, height, lines.flatMap((line) => line.points));
  const f = (value) => value.toFixed(1);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${yLabel} against ${xLabel}: ` + lines.map((line) => {
      const end = line.points[line.points.length - 1];
      return `${INDEX.runs[line.run].name} ${number(end[1])} at ${short(end[0])}`;
    }).join("; ") });
  for (const tick of ticks(low, high, 4)) {
    svg.append(s("line", { class: "grid", x1: l, x2: r, y1: y(tick), y2: y(tick) }),
      s("text", { x: l - 8, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(0, right, Math.max(3, Math.floor(width / 90)))) {
    svg.append(s("text", { x: x(tick), y: b + 17, "text-anchor": "middle" }, short(tick)));
  }
  svg.append(s("line", { class: "grid", x1: l, x2: r, y1: b, y2: b }),
    s("text", { x: r, y: b + 33, "text-anchor": "end" }, xLabel));
  const path = (values, at) => values.map((p, i) =>
    i === 0 ? `M${f(x(p[0]))},${f(y(at(p)))}` :
    steps ? `H${f(x(p[0]))}V${f(y(at(p)))}` : `L${f(x(p[0]))},${f(y(at(p)))}`).join("");
  for (const { run, points: own } of lines) {
    const line = s("g", { "data-run": run, color: color(run) });
    const banded = own.filter((p) => p[2] !== null && p[2] !== undefined);
    if (banded.length > 1) {
      const back = [...banded].reverse().map((p, i) => steps && i > 0
        ? `V${f(y(p[2]))}H${f(x(p[0]))}` : `L${f(x(p[0]))},${f(y(p[2]))}`).join("");
      line.append(s("path", { class: "band", d: `${path(banded, (p) => p[3])}${back}Z` }));
    }
    line.append(s("path", { class: "curve", "stroke-dasharray": DASHES[Math.floor(run / COLORS) % DASHES.length], d: path(own, (p) => p[1]) }));
    for (const p of own.length > 16 ? [own[0], own[own.length - 1]] : own) {
      line.append(s("circle", { class: "dot", cx: f(x(p[0])), cy: f(y(p[1])), r: many ? 3 : 4 },
        s("title", {}, `${INDEX.runs[run].name}: ${number(p[1])} at ${short(p[0])} ${xLabel}`)));
    }
    svg.append(line);
  }
  return svg;
}

// A chart's legend; pointing at a run brings its line out of the others.
function legend(runs, place) {
  const bring = (run) => {
    for (const line of place.querySelectorAll("g[data-run]")) {
      line.classList.toggle("hot", Number(line.dataset.run) === run);
      line.classList.toggle("dim", run !== null && Number(line.dataset.run) !== run);
    }
  };
  return h("span", { class: "legend" }, runs.map((run) => h("span", {
    onmouseenter: () => bring(run), onmouseleave: () => bring(null),
  }, runName(run))));
}

// views: {name: {lines, xLabel, yLabel, steps}}; the first is shown.
function chart(title, views) {
  const names = Object.keys(views);
  const place = h("div", { class: many ? "plot crowded" : "plot" });
  const runs = [...new Set(Object.values(views).flatMap((view) => view.lines.map((line) => line.run)))];
  let chosen = names[0], width = 0;
  const show = () => { if (width) place.replaceChildren(draw(width, views[chosen].lines, views[chosen])); };
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now && Math.abs(now - width) > 8) { width = now; show(); }
  }).observe(place);
  return h("figure", { class: "chart card" },
    h("figcaption", {}, h("b", {}, title),
      names.length > 1 ? choice(names.map((name) => [name, name]), chosen, (name) => { chosen = name; show(); }, "cost") : null,
      several ? legend(runs, place) : null),
    place);
}
