// A line chart as SVG: axes with round numbers, the value under the pointer, and a summary for screen readers.

const WIDTH = 420, HEIGHT = 190, LEFT = 56, RIGHT = 10, TOP = 16, BOTTOM = 24;

/** Draw `points` ([{x, y}], ascending in x) into an svg element. `name` says what y is. */
export function drawChart(svg, points, name) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  const shown = points.filter((point) => Number.isFinite(point.y));
  svg.setAttribute("aria-label", summary(shown, name));
  if (!shown.length) {
    svg.replaceChildren(text(WIDTH / 2, HEIGHT / 2, "no values yet", "middle"));
    svg.onpointermove = svg.onpointerleave = null;
    return;
  }
  const xs = axis(shown.map((point) => point.x), LEFT, WIDTH - RIGHT, true);
  const ys = axis(shown.map((point) => point.y), HEIGHT - BOTTOM, TOP, false);
  const grid = [
    ...ys.ticks.map((y) => line(LEFT, ys.at(y), WIDTH - RIGHT, ys.at(y))),
    ...ys.ticks.map((y) => text(LEFT - 6, ys.at(y) + 4, format(y), "end")),
    ...xs.ticks.map((x) => text(xs.at(x), HEIGHT - 8, format(x), "middle")),
  ];
  const place = (point) => `${xs.at(point.x).toFixed(1)},${ys.at(point.y).toFixed(1)}`;
  const curve = make("polyline", { class: "curve", points: shown.map(place).join(" ") });
  const dots = shown.length > 60 ? [] : shown.map((point) => dot(xs.at(point.x), ys.at(point.y), 2.2));
  const hint = make("g", {});
  svg.replaceChildren(...grid, curve, ...dots, hint);
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const near = shown.reduce((a, b) => (Math.abs(xs.at(a.x) - x) <= Math.abs(xs.at(b.x) - x) ? a : b));
    const side = xs.at(near.x) > WIDTH / 2 ? "end" : "start";
    const label = text(xs.at(near.x), TOP - 4, `step ${near.x}: ${format(near.y)}`, side);
    label.setAttribute("class", "hint");
    hint.replaceChildren(dot(xs.at(near.x), ys.at(near.y), 4), label);
  };
  svg.onpointerleave = () => hint.replaceChildren();
}

/** A number in few characters. */
export function format(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(5)));
}

function summary(points, name) {
  if (!points.length) return `${name}: no values yet`;
  const first = points[0], last = points[points.length - 1];
  return `${name} from ${format(first.y)} at step ${first.x} to ${format(last.y)} at step ${last.x}`;
}

function axis(values, from, to, whole) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) {
    const margin = whole ? 1 : Math.abs(low) * 0.1 || 1;
    low -= margin;
    high += margin;
  }
  const step = roundStep((high - low) / 4, whole);
  const ticks = [];
  for (let n = Math.ceil(low / step); n <= Math.floor(high / step + 1e-9); n += 1) ticks.push(n * step);
  return { ticks, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
}

function roundStep(rough, whole) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  return whole ? Math.max(1, Math.round(step)) : step;
}

function make(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const line = (x1, y1, x2, y2) => make("line", { class: "grid", x1, y1, x2, y2 });
const dot = (cx, cy, r) => make("circle", { class: "dot", cx, cy, r });

function text(x, y, content, anchor) {
  const node = make("text", { x, y, "text-anchor": anchor });
  node.textContent = content;
  return node;
}
