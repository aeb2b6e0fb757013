"use strict";
const { profile, operations, kernels, images_per_second, version } = JSON.parse(document.getElementById("data").textContent);
const known = profile.roof.tflops !== null || profile.roof.gbs !== null;
const $ = (id) => document.getElementById(id);
const digits = (value, n) => value.toLocaleString("en", { minimumFractionDigits: n, maximumFractionDigits: n });
const number = (value, n = 1) => (value === null || value === undefined ? "-" : digits(value, n));
// Microseconds to three figures or so.
const us = (value) => number(value, Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);

function element(name, attributes = {}, text = "") {
  const svg = ["svg", "g", "rect", "circle", "line", "path", "text"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== "") made.textContent = text;
  return made;
}

// Colours by operation, the slowest first; those behind share one.
const palette = ["#0b6bcb", "#d9480f", "#2b8a3e", "#9c36b5", "#e8a300", "#0c8599", "#c2255c", "#6741d9", "#5c940d", "#a0522d"];
const totals = new Map();
for (const line of operations) totals.set(line.name, (totals.get(line.name) || 0) + line.us);
const ranked = [...totals.entries()].sort((a, b) => b[1] - a[1]).map(([name]) => name);
const colour = (name) => palette[ranked.indexOf(name)] || "#868e96";
let picked = null;

function hint(target, text) {
  target.addEventListener("pointermove", (event) => {
    const tip = $("tip");
    tip.textContent = text;
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
  });
  target.addEventListener("pointerleave", () => ($("tip").style.display = "none"));
}

function rates(line) {
  const floor = known ? `\nfloor ${us(line.floor_us)} us, ${number(line.roof_percent)} % of the roof` : "";
  return `${number(line.tflops, 2)} TFLOP/s, ${number(line.gbs)} GB/s${floor}`;
}

function head() {
  document.title = `warpdiff profile: ${profile.title}`;
  $("title").textContent = profile.title;
  $("about").textContent = `${profile.device}, ${profile.precision}, warpdiff ${version}. Medians of ${profile.runs} runs.`;
  const floor = operations.reduce((sum, line) => sum + (line.floor_us || 0), 0);
  const figures = [
    [us(profile.run_us), "us a run, as it is"],
    [number(images_per_second), "images a second"],
    [us(profile.steps_us), `us in ${profile.steps.length} steps`],
  ];
  if (profile.run_us > profile.steps_us) figures.push([us(profile.run_us - profile.steps_us), "us between steps"]);
  if (known) figures.push([us(floor), "us at the floor"], [number((100 * floor) / profile.run_us) + " %", "of the roof"]);
  if (profile.overhead_us > 0) figures.push([us(profile.overhead_us), "us to time a step, left out"]);
  for (const [value, what] of figures) {
    const box = element("div");
    box.append(element("b", {}, value), element("span", {}, what));
    $("figures").append(box);
  }
  $("next-about").textContent = known
    ? "By the time above the floor, the larger of operations and bytes at the roofs: what a perfect kernel would save."
    : "By time. No roof of this device is known: with --roof-tflops and --roof-gbs this list is by the time above the floor.";
  const gain = (line) => (known ? line.over_floor_us : line.us);
  for (const line of [...operations].sort((a, b) => gain(b) - gain(a)).slice(0, 5)) {
    const share = (100 * gain(line)) / profile.steps_us;
    const item = element("li");
    item.append(element("b", {}, `${line.name} ${line.shape}`));
    const saved = known ? ` of ${us(line.us)} us to gain` : " us";
    item.append(` ${line.count} x, ${us(gain(line))}${saved} (${number(share)} %) ${line.detail}`);
    $("next").append(item);
  }
}

function roofline() {
  const svg = $("roofline");
  svg.replaceChildren();
  const points = operations.filter((line) => line.flops > 0 && line.bytes > 0 && line.us > 0);
  const { tflops, gbs } = profile.roof;
  $("roof-about").textContent = known
    ? `Area is time. Roofs: ${profile.roof.source}. Bytes are operands and results once: caches and fusion can lift a point above the slope.`
    : "Area is time. No roofs are known for this device; --roof-tflops and --roof-gbs draw them.";
  if (points.length === 0) return svg.append(element("text", { x: 20, y: 30 }, "No step has floating-point operations."));
  const box = { left: 64, right: 1160, top: 16, bottom: 336 };
  const x = points.map((p) => p.flops / p.bytes);
  const y = points.map((p) => p.tflops);
  if (tflops && gbs) x.push((tflops * 1e3) / gbs);
  if (tflops) y.push(tflops);
  const range = (values) => [Math.floor(Math.log10(Math.min(...values)) - 0.1), Math.ceil(Math.log10(Math.max(...values)) + 0.1)];
  const [x0, x1] = range(x);
  const [y0, y1] = range(y);
  const atX = (v) => box.left + ((Math.log10(v) - x0) / (x1 - x0)) * (box.right - box.left);
  const atY = (v) => box.bottom - ((Math.log10(v) - y0) / (y1 - y0)) * (box.bottom - box.top);
  for (let e = x0; e <= x1; e++) {
    svg.append(element("line", { class: "grid", x1: atX(10 ** e), x2: atX(10 ** e), y1: box.top, y2: box.bottom }));
    svg.append(element("text", { x: atX(10 ** e), y: box.bottom + 16, "text-anchor": "middle" }, String(10 ** e)));
  }
  for (let e = y0; e <= y1; e++) {
    svg.append(element("line", { class: "grid", x1: box.left, x2: box.right, y1: atY(10 ** e), y2: atY(10 ** e) }));
    svg.append(element("text", { x: box.left - 6, y: atY(10 ** e) + 4, "text-anchor": "end" }, Number(10 ** e).toPrecision(1) / 1));
  }
  svg.append(element("text", { x: (box.left + box.right) / 2, y: 368, "text-anchor": "middle" }, "operations a byte"));
  const label = { x: 14, y: (box.top + box.bottom) / 2, "text-anchor": "middle" };
  svg.append(element("text", { ...label, transform: `rotate(-90 14 ${label.y})` }, "TFLOP/s"));
  if (known) {
    const roof = (v) => Math.min(tflops || Infinity, gbs ? (v * gbs) / 1e3 : Infinity);
    const steps = Array.from({ length: 121 }, (_, i) => 10 ** (x0 + ((x1 - x0) * i) / 120));
    const inside = steps.filter((v) => roof(v) >= 10 ** y0 && roof(v) <= 10 ** y1);
    svg.append(element("path", { class: "roof", d: "M" + inside.map((v) => `${atX(v)} ${atY(roof(v))}`).join("L") }));
    if (tflops) svg.append(element("text", { class: "strong", x: box.right - 4, y: atY(tflops) - 6, "text-anchor": "end" }, `${tflops} TFLOP/s`));
  }
  const longest = Math.max(...points.map((p) => p.us));
  for (const line of points) {
    const dot = element("circle", {
      class: picked && picked !== line.name ? "mark dim" : "mark", cx: atX(line.flops / line.bytes), cy: atY(line.tflops),
      r: Math.max(3, 22 * Math.sqrt(line.us / longest)), fill: colour(line.name), "fill-opacity": 0.75,
    });
    hint(dot, `${line.name} ${line.shape}\n${line.count} x, ${us(line.us)} us, ${number(line.percent)} %\n${rates(line)}`);
    dot.addEventListener("click", () => pick(line.name));
    svg.append(dot);
  }
}

const view = { from: 0, to: profile.steps_us || 1 };

function timeline() {
  const svg = $("timeline");
  svg.replaceChildren();
  const width = 1180;
  const at = (t) => ((t - view.from) / (view.to - view.from)) * width;
  const span = view.to - view.from;
  const tick = [1, 2, 5, 10].map((m) => m * 10 ** Math.floor(Math.log10(span / 8))).find((v) => span / v <= 10);
  for (let t = Math.ceil(view.from / tick) * tick; t <= view.to; t += tick) {
    svg.append(element("line", { class: "grid", x1: at(t), x2: at(t), y1: 0, y2: 110 }));
    svg.append(element("text", { x: at(t) + 3, y: 124 }, `${us(t)} us`));
  }
  for (const step of profile.steps) {
    const [left, right] = [Math.max(at(step.start_us), 0), Math.min(at(step.start_us + step.us), width)];
    if (right < 0 || left > width || right - left < 0.02) continue;
    const bar = element("rect", {
      x: left, y: 20, width: Math.max(right - left, 0.4), height: 70, fill: colour(step.operation),
      class: picked && picked !== step.operation ? "dim" : "",
    });
    const place = step.kernel ? `\n${step.kernel}, ${step.grid.join("x")} blocks of ${step.block}` : "";
    const floor = step.floor ? `\nfloor ${us(step.floor.us)} us` : "";
    hint(bar, `${step.operation} ${step.shape}\n${step.scope}${place}\n${us(step.us)} us at ${us(step.start_us)}${floor}`);
    svg.append(bar);
    if (right - left > 7 * step.operation.length + 8) {
      svg.append(element("text", { x: left + 4, y: 14, class: "strong" }, step.operation));
    }
  }
}

function zoom(factor, at = 0.5) {
  const whole = profile.steps_us || 1;
  const span = Math.min(Math.max((view.to - view.from) * factor, whole / 5000), whole);
  const middle = view.from + (view.to - view.from) * at;
  move(middle - span * at, span);
}

function move(from, span) {
  view.from = Math.min(Math.max(from, 0), (profile.steps_us || 1) - span);
  view.to = view.from + span;
  timeline();
}

function legend() {
  $("legend").replaceChildren();
  for (const name of ranked.slice(0, palette.length)) {
    const entry = element("span", { role: "button", tabindex: "0", "aria-pressed": String(picked === name) });
    const mark = element("i");
    mark.style.background = colour(name);
    entry.append(mark, `${name} ${number((100 * totals.get(name)) / profile.steps_us)} %`);
    entry.addEventListener("click", () => pick(name));
    entry.addEventListener("keydown", (event) => event.key === "Enter" && pick(name));
    $("legend").append(entry);
  }
}

function pick(name) {
  picked = picked === name ? null : name;
  roofline();
  timeline();
  legend();
}

const floors = known ? [["floor_us", "floor us", us], ["roof_percent", "% of roof", number], ["over_floor_us", "us to gain", us]] : [];
const summed = [["count", "count", (v) => String(v)], ["us", "us", us], ["percent", "%", number], ["tflops", "TFLOP/s", (v) => number(v, 2)], ["gbs", "GB/s", number], ...floors];
const details = kernels.length > 0 ? [["detail", "kernels"]] : [];
const tables = {
  operations: { rows: operations, columns: [["name", "operation"], ["shape", "shape"], ...details, ...summed] },
  kernels: { rows: kernels, columns: [["name", "kernel"], ["detail", "operations"], ...summed] },
  steps: {
    rows: profile.steps.map((step) => ({ ...step, blocks: step.grid ? step.grid.join("x") : "", percent: (100 * step.us) / profile.steps_us })),
    columns: [["start_us", "start us", us], ["scope", "where"], ["operation", "operation"], ["shape", "shape"], ["kernel", "kernel"], ["blocks", "blocks"], ["us", "us", us], ["percent", "%", number]],
  },
};
const shown = { table: "operations", key: "us", down: true };

function table() {
  const { rows, columns } = tables[shown.table];
  const wanted = $("filter").value.toLowerCase();
  const texts = columns.filter((c) => c.length === 2).map(([key]) => key);
  const kept = rows.filter((row) => texts.some((key) => String(row[key] ?? "").toLowerCase().includes(wanted)));
  const order = (a, b) => {
    const [p, q] = [a[shown.key] ?? "", b[shown.key] ?? ""];
    return (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q))) * (shown.down ? -1 : 1);
  };
  kept.sort(order);
  const titles = element("tr");
  for (const [key, title, format] of columns) {
    const sorted = shown.key === key ? (shown.down ? "descending" : "ascending") : "none";
    const cell = element("th", { class: format ? "" : "text", "aria-sort": sorted });
    const mark = { none: "", descending: " ▾", ascending: " ▴" }[sorted];
    const button = element("button", {}, title + mark);
    button.addEventListener("click", () => {
      shown.down = shown.key === key ? !shown.down : Boolean(format);
      shown.key = key;
      table();
    });
    cell.append(button);
    titles.append(cell);
  }
  $("head").replaceChildren(titles);
  $("body").replaceChildren(
    ...kept.map((row) => {
      const line = element("tr");
      for (const [key, , format] of columns) {
        const text = format ? format(row[key]) : String(row[key] ?? "");
        const cell = element("td", { class: key === "percent" ? "share" : format ? "" : "text", title: format ? "" : text });
        if (key === "percent") {
          const share = element("i");
          share.style.width = `${Math.min(row[key], 100)}%`;
          cell.append(share);
        }
        cell.append(text);
        line.append(cell);
      }
      return line;
    }),
  );
  $("shown").textContent = `${kept.length} of ${rows.length} lines`;
  $("tabs").replaceChildren(
    ...Object.keys(tables)
      .filter((name) => tables[name].rows.length > 0)
      .map((name) => {
        const button = element("button", { "aria-pressed": String(name === shown.table) }, name);
        button.addEventListener("click", () => {
          Object.assign(shown, name === "steps" ? { key: "start_us", down: false } : { key: "us", down: true }, { table: name });
          table();
        });
        return button;
      }),
  );
}

head();
roofline();
timeline();
legend();
table();
$("filter").addEventListener("input", table);
$("zoom-in").addEventListener("click", () => zoom(0.5));
$("zoom-out").addEventListener("click", () => zoom(2));
$("zoom-all").addEventListener("click", () => zoom(Infinity));
const line = $("timeline");
const across = (event) => (event.clientX - line.getBoundingClientRect().left) / line.clientWidth;
line.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(event.deltaY > 0 ? 1.25 : 0.8, across(event));
}, { passive: false });
let held = null;
line.addEventListener("pointerdown", (event) => (held = { at: across(event), from: view.from }));
addEventListener("pointerup", () => (held = null));
line.addEventListener("pointermove", (event) => {
  const span = view.to - view.from;
  if (held) move(held.from - (across(event) - held.at) * span, span);
});
